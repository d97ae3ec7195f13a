"""Search prune ratios on top of cache-depth schedules; `--help` tells the options."""

from dato.cli.search import search_ratio
from dato.console import main

if __name__ == "__main__":
    main(search_ratio)
