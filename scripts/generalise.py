"""Judge a front under other conditions than those of its search. `--help` lists the options."""

from dato.cli.console import main
from dato.cli.generalise import generalise

if __name__ == "__main__":
    main(generalise)
