"""Generate an image with a searched schedule, and stock's image beside it. `--help` lists the options."""

from dato.cli.console import main
from dato.cli.generate import generate_image

if __name__ == "__main__":
    main(generate_image)
