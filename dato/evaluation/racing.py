"""Racing: a candidate that is surely dominated after its first images does not get the others.

All candidates see the same prompts and the same noise, so a candidate and a rival are compared image by image, and
what an easy or hard prompt adds to both cancels. Source: Maron and Moore, "Hoeffding Races" (1993); paired differences
as in Birattari et al., "A Racing Algorithm for Configuring Metaheuristics" (2002).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

PRIOR = 2.0  # how many differences the spread that is known beforehand counts as
SIGMAS = 2.0  # how sure "surely" is


@dataclass(frozen=True)
class Rival:
    """A point of the front that candidates have to beat.

    Attributes:
        latency_ms: Milliseconds per image.
        per_image: Its quality for each image.
        spread: Standard deviation of such differences between schedules of similar latency.
    """

    latency_ms: float
    per_image: tuple[float, ...]
    spread: float

    @property
    def quality(self) -> float:
        """The mean over images."""
        return statistics.fmean(self.per_image)


def rivals_of(front: Sequence[tuple[float, Sequence[float]]]) -> tuple[Rival, ...]:
    """The points of a front, (latency, quality for each image), as rivals; none if there are fewer than two."""
    front = sorted(front)
    if len(front) < 2 or len(front[0][1]) < 2:
        return ()
    spreads = [
        statistics.stdev(b - a for a, b in zip(one, other, strict=True)) for (_, one), (_, other) in pairwise(front)
    ]
    return tuple(Rival(latency, tuple(own), statistics.median(spreads)) for latency, own in front)


def rival_for(latency_ms: float, rivals: Sequence[Rival]) -> Rival | None:
    """The best of the rivals that are at least as fast."""
    return max((r for r in rivals if r.latency_ms <= latency_ms), key=lambda r: r.quality, default=None)


def expected_if_beaten(own: Sequence[float], rival: Rival) -> float | None:
    """What a candidate's mean quality will be, if its first images show that the rival's is higher; else None.

    The difference d between rival and candidate has the mean m over the k images seen, of n in all. The mean over all
    of them is then m with a standard error of s sqrt((n - k) / (n k)), where s is the spread of d.

    Args:
        own: (k,) the candidate's quality for the first images, 1 <= k < n.
        rival: Its quality for each of the n images.
    """
    seen, total = len(own), len(rival.per_image)
    differences = [r - c for r, c in zip(rival.per_image, own, strict=False)]
    mean = statistics.fmean(differences)
    squares = PRIOR * rival.spread**2 + sum((d - mean) ** 2 for d in differences)
    spread = math.sqrt(squares / (PRIOR + seen - 1))
    error = spread * math.sqrt((total - seen) / (total * seen))
    return rival.quality - mean if mean > SIGMAS * error else None
