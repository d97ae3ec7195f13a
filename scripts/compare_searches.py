"""Compare kinds of search by hypervolume and UNet calls. `--help` lists the options."""

from dato.cli.compare_searches import compare_searches
from dato.cli.console import main

if __name__ == "__main__":
    main(compare_searches)
