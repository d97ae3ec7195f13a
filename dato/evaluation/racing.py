"""Racing: stop judging a candidate after its first images if it is surely dominated.

All candidates get the same prompts and the same noise, so a candidate is compared with a rival image by image. This
cancels the effect of easy and hard prompts. Source: Maron and Moore, "Hoeffding Races" (1993); paired differences as in
Birattari et al., "A Racing Algorithm for Configuring Metaheuristics" (2002).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

PRIOR = 2.0  # weight of the known spread, counted in differences
SIGMAS = 2.0  # standard errors by which a rival must be better


@dataclass(frozen=True)
class Rival:
    """A point of the front that candidates have to beat.

    Attributes:
        latency_ms: Milliseconds per image.
        per_image: Its quality for each image.
        spread: Standard deviation of the differences in quality, image by image, between schedules of similar latency.
    """

    latency_ms: float
    per_image: tuple[float, ...]
    spread: float

    @property
    def quality(self) -> float:
        """The mean over images."""
        return statistics.fmean(self.per_image)


def rivals_of(front: Sequence[tuple[float, Sequence[float]]]) -> tuple[Rival, ...]:
    """Return the points of a front as rivals; none if there are fewer than two points or two images.

    Args:
        front: (milliseconds per image, quality of each image) of each point.
    """
    front = sorted(front)
    if len(front) < 2 or len(front[0][1]) < 2:
        return ()
    spreads = [
        statistics.stdev(b - a for a, b in zip(one, other, strict=True)) for (_, one), (_, other) in pairwise(front)
    ]
    return tuple(Rival(latency, tuple(values), statistics.median(spreads)) for latency, values in front)


def rival_for(latency_ms: float, rivals: Sequence[Rival]) -> Rival | None:
    """Return the rival of the highest quality among those that are at least as fast, or None."""
    return max((r for r in rivals if r.latency_ms <= latency_ms), key=lambda r: r.quality, default=None)


def expected_if_beaten(first_values: Sequence[float], rival: Rival) -> float | None:
    """Return the expected mean quality of a candidate that is surely worse than a rival, or None if it may be better.

    The difference d between rival and candidate has the mean m over the k images seen, of n in all. Its mean over all n
    is then m with a standard error of s sqrt((n - k) / (n k)), where s is the standard deviation of d.

    Args:
        first_values: (k,) the candidate's quality of the first images, 1 <= k < n.
        rival: Its quality of all n images is known.
    """
    seen, total = len(first_values), len(rival.per_image)
    differences = [r - c for r, c in zip(rival.per_image, first_values, strict=False)]
    mean = statistics.fmean(differences)
    squares = PRIOR * rival.spread**2 + sum((d - mean) ** 2 for d in differences)
    spread = math.sqrt(squares / (PRIOR + seen - 1))
    error = spread * math.sqrt((total - seen) / (total * seen))
    return rival.quality - mean if mean > SIGMAS * error else None
