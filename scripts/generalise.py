"""Judge a front where it was not searched; `--help` tells the options."""

from dato.cli.console import main
from dato.cli.generalise import generalise

if __name__ == "__main__":
    main(generalise)
