"""Search schedules by NSGA-II: quality against latency, on a user's own pipeline and prompts.

`search_depth`, `search_ratio` and `search_joint` are the searches as functions, and `plan` makes one schedule without a
search. Of the modules, `options` and `presets` say what can be asked for, `spaces` what can be chosen, and `operators`
vary it. `nsga2` is a search by generations, and `guided` one that evolves on predictions. `planner` and `adviser` make
the predictions, `study` has candidates judged and keeps the `journal`. `course` and `guided_course` are the steps of a
search from its first to its last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dato.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from dato.search.functions import search_depth, search_joint, search_ratio
    from dato.search.planning import plan
    from dato.search.progress import ProgressBar, SearchProgress

# A search needs torch and pymoo. Reading a run's folder does not.
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ProgressBar": "dato.search.progress",
        "SearchProgress": "dato.search.progress",
        "plan": "dato.search.planning",
        "search_depth": "dato.search.functions",
        "search_joint": "dato.search.functions",
        "search_ratio": "dato.search.functions",
    },
)
