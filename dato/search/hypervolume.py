"""The hypervolume of what a search has found so far, candidate by candidate: how it went, and when it was over.

Both objectives are normalised: time by stock's, quality by the worst and the best that were seen. The reference point
is stock's time at the worst quality, so the hypervolume lies between 0 and 1; 1 were the best quality in no time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pymoo.indicators.hv import HV

from dato.errors import DatoError
from dato.point import Point


@dataclass(frozen=True)
class Scale:
    """The qualities between which quality is normalised; curves compare only on the same scale.

    Attributes:
        worst: The lowest quality that was seen; it is the reference point's.
        best: The highest.
        share: Of stock's time, the reference point's: slower points do not count.
    """

    worst: float
    best: float
    share: float = 1.0

    @classmethod
    def of(cls, histories: Iterable[Iterable[Point]]) -> Scale:
        """The scale of all candidates of all these searches.

        Raises:
            DatoError: if none of them is finite.
        """
        seen = [point.quality for history in histories for point in history if math.isfinite(point.quality)]
        if not seen:
            raise DatoError("hypervolume: no candidate has a finite quality")
        return cls(min(seen), max(seen))

    def objectives(self, point: Point) -> tuple[float, float]:
        """(time as a part of the reference point's, share of the quality that is missing), both to be small."""
        spread = self.best - self.worst
        return 1 / point.speedup / self.share, (self.best - point.quality) / spread if spread else 0.0


def by_evaluation(history: Sequence[Point], scale: Scale) -> list[float]:
    """The hypervolume after each candidate of a search, failed ones included; a list as long as `history`."""
    indicator = HV(ref_point=np.ones(2))
    front: list[tuple[float, float]] = []
    values: list[float] = []
    for point in history:
        value = values[-1] if values else 0.0
        if math.isfinite(point.quality):
            share, missing = scale.objectives(point)
            # Only what nothing dominates changes the volume, and few candidates of a long search are such.
            if not any(s <= share and m <= missing for s, m in front):
                front = [(s, m) for s, m in front if s < share or m < missing]
                front.append((share, missing))
                value = float(indicator(np.array(front)))
        values.append(value)
    return values
