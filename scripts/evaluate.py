"""Judge fronts and schedules on held-out prompts, beside other methods. `--help` lists the options."""

from dato.cli.console import main
from dato.cli.evaluate import evaluate

if __name__ == "__main__":
    main(evaluate)
