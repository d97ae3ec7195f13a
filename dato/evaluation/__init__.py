"""Judge schedules and other packages' methods: generate their images, measure quality and time.

An `Evaluator` judges `Method`s with one pipeline. A pool holds evaluators, one in this process (`InProcess`) or several
on Ray (`make_pool`). `baselines` lists the schedules that every search has to beat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dato.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from dato.evaluation.evaluator import Evaluator
    from dato.evaluation.judgement import Judgement
    from dato.evaluation.methods import Method
    from dato.evaluation.pool import Facts, InProcess, Pool, Recipe
    from dato.evaluation.ray_pool import make_pool
    from dato.evaluation.stock import Stock

# A report reads the families of baselines and needs no torch.
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Evaluator": "dato.evaluation.evaluator",
        "Facts": "dato.evaluation.pool",
        "InProcess": "dato.evaluation.pool",
        "Judgement": "dato.evaluation.judgement",
        "Method": "dato.evaluation.methods",
        "Pool": "dato.evaluation.pool",
        "Recipe": "dato.evaluation.pool",
        "Stock": "dato.evaluation.stock",
        "make_pool": "dato.evaluation.ray_pool",
    },
)
