"""Search prune ratios on top of cache-depth schedules. `--help` lists the options."""

from dato.cli.console import main
from dato.cli.search import search_ratio

if __name__ == "__main__":
    main(search_ratio)
