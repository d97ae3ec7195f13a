"""Compare the rule of `speedup=` with DeepCache and Spectrum, image by image. `--help` lists the options."""

from dato.cli.compare_rule import compare_rule
from dato.cli.console import main

if __name__ == "__main__":
    main(compare_rule)
