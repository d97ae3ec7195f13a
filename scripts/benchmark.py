"""Measure speed beside stock and other packages. `--help` lists the options."""

from dato.cli.benchmark import run_benchmark
from dato.cli.console import main

if __name__ == "__main__":
    main(run_benchmark)
