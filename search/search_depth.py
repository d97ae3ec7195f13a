"""Search cache-depth schedules; `--help` tells the options."""

from dato.cli.search import search_depth
from dato.console import main

if __name__ == "__main__":
    main(search_depth)
