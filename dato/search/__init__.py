"""Search schedules by NSGA-II: quality against latency, on a user's own pipeline and prompts.

`search_depth`, `search_ratio` and `search_joint` are the searches as functions. Of the modules, `options` and
`presets` say what can be asked for, `spaces` what can be chosen, and `operators` and `nsga2` vary it. `planner` and
`adviser` guess qualities before images are generated, `study` has candidates judged and keeps the `journal`, and `run`
is the course of a search from its first step to its last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dato.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from dato.search.functions import search_depth, search_joint, search_ratio
    from dato.search.progress import ProgressBar, SearchProgress

# A search needs torch and pymoo. Reading a run's folder does not.
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ProgressBar": "dato.search.progress",
        "SearchProgress": "dato.search.progress",
        "search_depth": "dato.search.functions",
        "search_joint": "dato.search.functions",
        "search_ratio": "dato.search.functions",
    },
)
