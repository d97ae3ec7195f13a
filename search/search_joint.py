"""Search depths and prune ratios together; `--help` tells the options."""

from dato.cli.search import search_joint
from dato.console import main

if __name__ == "__main__":
    main(search_joint)
