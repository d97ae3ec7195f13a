"""What a front says of its points, beside what an evaluation measures.

A search picks the best of many candidates, so what it measured of them is too good by chance. An evaluation on other
prompts shows by how much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from dato.front import Front
from dato.metrics import shown, text_of
from dato.point import Point
from dato.report.columns import SAID


@dataclass(frozen=True)
class Claim:
    """The means over those points of a front that were evaluated.

    Attributes:
        front: What the evaluation calls the front.
        metric: The front's objective.
        said: The mean of what the front says, with the sign of `Point.quality`.
        measured: The mean of what was measured here.
        points: How many points.
    """

    front: str
    metric: str
    said: float
    measured: float
    points: int

    def __str__(self) -> str:
        """Return one line for people, with the sign of the field, in which a distance is positive."""
        difference = shown(self.metric, self.said) - shown(self.metric, self.measured)
        means = f"{text_of(self.metric, self.said)} by the front, {text_of(self.metric, self.measured)} measured here"
        points = f"mean of {self.points} points" if self.points > 1 else "one point"
        return f"{self.front}: {self.metric} {means}, difference {difference:+.2f} ({points})"


def objective_of(front: Front) -> str | None:
    """Return the name of the metric that a front's qualities are of, if the front says it."""
    return front.conditions.get("quality")


def said_of(point: Point, front: Front, metrics: Sequence[str]) -> dict[str, float]:
    """Return what a front says of a point, to be kept with the point's metrics. Empty if the metric is not measured."""
    objective = objective_of(front)
    return {SAID.format(objective): point.quality} if objective in metrics else {}


def claims(families: Mapping[str, Sequence[str]], points: Mapping[str, Point], metrics: Sequence[str]) -> list[Claim]:
    """Return a claim for each front.

    Args:
        families: Title -> names of methods. Families that are no front claim nothing.
        points: Name -> point, as measured here, with `said_of` among its metrics if it is of a front.
        metrics: The metrics that were measured.
    """
    result = []
    for title, names in families.items():
        for metric in metrics:
            of_front = [points[name].metrics for name in names if SAID.format(metric) in points[name].metrics]
            if of_front:
                said = fmean(values[SAID.format(metric)] for values in of_front)
                measured = fmean(values[metric] for values in of_front)
                result.append(Claim(title, metric, said, measured, len(of_front)))
    return result
