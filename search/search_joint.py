"""Search depths and prune ratios together. `--help` lists the options."""

from dato.cli.console import main
from dato.cli.search import search_joint

if __name__ == "__main__":
    main(search_joint)
