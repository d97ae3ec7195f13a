"""Measure speed beside stock and the peers; `--help` tells the options."""

from dato.cli.benchmark import run_benchmark
from dato.cli.console import main

if __name__ == "__main__":
    main(run_benchmark)
