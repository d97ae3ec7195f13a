"""Judge a front where it was not searched; `--help` tells the options."""

from dato.cli.generalise import generalise
from dato.console import main

if __name__ == "__main__":
    main(generalise)
