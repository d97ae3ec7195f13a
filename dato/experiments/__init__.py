"""The papers' tables and figures, the benchmark, and comparisons of searches."""
