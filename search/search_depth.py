"""Search cache-depth schedules. `--help` lists the options."""

from dato.cli.console import main
from dato.cli.search import search_depth

if __name__ == "__main__":
    main(search_depth)
