"""Say in words what a model with dato's settings will run, and what a generation has run."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from dato.comfyui.settings import Settings
from dato.report.schedule_text import strip, strip_of

if TYPE_CHECKING:
    from dato.comfyui.run import Run

_log = logging.getLogger(__name__)


def what_will_run(settings: Settings) -> str:
    """Return what the settings say, in a few lines."""
    lines = []
    if settings.schedule is not None:
        schedule = settings.schedule
        lines += [f"{settings.name}: {_counts(schedule.depths, schedule.rungs)}", strip(schedule)]
        lines += [settings.point.summary] if settings.point is not None else []
        if settings.point is None:
            lines.append("How fast it is was not measured; after a run you see by how much the UNet takes fewer FLOPs.")
        lines.append("A run of another number of calls gets it stretched or squeezed.")
    elif settings.speedup is not None:
        lines.append(
            f"The rule: {settings.speedup:g} times fewer FLOPs in the UNet. It chooses the calls of each run by its "
            "number of steps, its sampler and its cfg."
        )
    if settings.schedule is not None or settings.speedup is not None:
        window = [f"before {settings.start:.0%}"] * (settings.start > 0) + [f"after {settings.end:.0%}"] * (
            settings.end < 1
        )
        lines += [f"All calls {' and '.join(window)} of the run are whole."] if window else []
    if settings.ratio is not None:
        lines.append(f"Each call leaves out {settings.ratio:.0%} of the tokens.")
    return "\n".join(lines)


def what_ran(run: Run) -> str:
    """Return what a generation has run, in a few lines."""
    rungs = run.schedule.rungs
    depths = tuple(depth for _, depth in sorted(run.depths.items()))
    lines = []
    if depths:
        lines.append(_counts(depths, rungs) + _saved(run, depths))
        lines.append(strip_of(depths, rungs))
    if run.made_for != len(run.schedule):
        lines.append(f"The schedule is made for {run.made_for} calls, so it was resampled.")
    more = sum(depth > run.schedule.depths[index] for index, depth in run.depths.items())
    if more:
        lines.append(f"{more} of them ran whole because nothing was cached for them.")
    if run.besides:
        lines.append(f"Besides, the UNet was called {run.besides} times at levels that are not the schedule's: whole.")
    ratio = max((ratio for ratio in run.schedule.ratios), default=0.0)
    if ratio:
        lines.append(f"Up to {ratio:.0%} of the tokens were left out.")
    if run.unpruned:
        lines.append(f"{run.unpruned} calls kept all tokens, because another node changes attention or sizes.")
    return "\n".join(lines)


def _saved(run: Run, depths: tuple[int, ...]) -> str:
    """Return how many times fewer FLOPs the UNet has taken, by its depths alone."""
    from dato.unet.depth_shares import depth_share

    rungs, size = run.schedule.rungs, (64, 64)
    shares = {0: 0.0, rungs: 1.0}
    try:
        for depth in set(depths) - set(shares):
            shares[depth] = depth_share(run.unet, depth, size)
    except Exception:  # layers of other nodes, such as quantised ones, may not run without weights
        _log.debug("dato: the FLOPs of this UNet cannot be counted", exc_info=True)
        return ""
    total = sum(shares[depth] for depth in depths) + run.besides
    return f". The UNet took {(len(depths) + run.besides) / total:.2f} times fewer FLOPs" if total else ""


def _counts(depths: tuple[int, ...], rungs: int) -> str:
    """Return "20 calls: 7 whole, 13 at depth 1"."""
    count = Counter(depths)
    parts = [f"{count.pop(rungs, 0)} whole", *(f"{n} at depth {depth}" for depth, n in sorted(count.items()))]
    return f"{len(depths)} calls: {', '.join(parts)}"
