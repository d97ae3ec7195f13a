"""The hypervolume of what a search has found, after each candidate. It shows when the search stopped improving.

Both objectives are normalised: time by stock's time, quality by the worst and the best quality seen. The reference
point is stock's time at the worst quality. So the hypervolume lies between 0 and 1. It is 1 if the best quality takes
no time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dato.errors import DatoError
from dato.point import Point


@dataclass(frozen=True)
class Scale:
    """How objectives are normalised. Curves compare only on the same scale.

    Attributes:
        worst: The lowest quality that was seen. It is the quality of the reference point.
        best: The highest quality that was seen.
        share: The time of the reference point, as a share of stock's. Slower points do not count.
    """

    worst: float
    best: float
    share: float = 1.0

    @classmethod
    def of(cls, histories: Iterable[Iterable[Point]]) -> Scale:
        """Return the scale of all candidates of several searches.

        Raises:
            DatoError: if no quality is finite.
        """
        seen = [point.quality for history in histories for point in history if math.isfinite(point.quality)]
        if not seen:
            raise DatoError("hypervolume: no candidate has a finite quality")
        return cls(min(seen), max(seen))

    def objectives(self, point: Point) -> tuple[float, float]:
        """Return a point's time as a share of the reference point's, and the share of quality that it lacks."""
        spread = self.best - self.worst
        return 1 / point.speedup / self.share, (self.best - point.quality) / spread if spread else 0.0


def by_evaluation(history: Sequence[Point], scale: Scale) -> list[float]:
    """Return the hypervolume after each candidate of a search, failed ones included."""
    import numpy as np
    from pymoo.indicators.hv import HV  # not before it is needed: a report of a front has no history

    indicator = HV(ref_point=np.ones(2))
    front: list[tuple[float, float]] = []
    values: list[float] = []
    for point in history:
        value = values[-1] if values else 0.0
        if math.isfinite(point.quality):
            share, missing = scale.objectives(point)
            # Only a point that nothing dominates changes the volume. Few candidates of a long search are such points.
            if not any(s <= share and m <= missing for s, m in front):
                front = [(s, m) for s, m in front if s < share or m < missing]
                front.append((share, missing))
                value = float(indicator(np.array(front)))
        values.append(value)
    return values
