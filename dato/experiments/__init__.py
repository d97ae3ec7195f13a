"""Experiments: the papers' tables and figures, the benchmark, and comparisons of searches, as functions.

`evaluate` judges methods and fronts on held-out prompts, `generalise` judges a front under other conditions,
`benchmark` measures speed, `compare_searches` compares kinds of search, `compare_pruning` counts which tokens are
pruned. The commands of the same names call these functions. `method_families` lists the methods to compare with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dato.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from dato.experiments.benchmark import BenchmarkSettings
    from dato.experiments.generalisation import generalise
    from dato.experiments.paper_evaluation import evaluate
    from dato.experiments.pruned_counts import compare_pruning
    from dato.experiments.search_comparison import ComparisonSettings, compare_searches

# `benchmark` the function is not exported here: the module of that name would hide it.
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BenchmarkSettings": "dato.experiments.benchmark",
        "ComparisonSettings": "dato.experiments.search_comparison",
        "compare_pruning": "dato.experiments.pruned_counts",
        "compare_searches": "dato.experiments.search_comparison",
        "evaluate": "dato.experiments.paper_evaluation",
        "generalise": "dato.experiments.generalisation",
    },
)
