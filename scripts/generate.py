"""Generate an image with a searched schedule, and stock's beside it; `--help` tells the options."""

from dato.cli.generate import generate_image
from dato.console import main

if __name__ == "__main__":
    main(generate_image)
