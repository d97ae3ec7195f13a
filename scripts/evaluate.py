"""Evaluate fronts and schedules on held-out prompts; `--help` tells the options."""

from dato.cli.evaluate import evaluate
from dato.console import main

if __name__ == "__main__":
    main(evaluate)
