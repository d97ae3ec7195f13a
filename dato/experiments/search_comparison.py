"""Comparing searches: how good a front each finds for the UNet calls that it spends.

All searches draw on one study, so that a schedule that two of them ask for is generated once, and each keeps its own
account of what it would have spent alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from dato.evaluation.racing import expected_if_beaten, rival_for, rivals_of
from dato.point import Point, non_dominated
from dato.schedule import Schedule
from dato.search.hypervolume import Scale, by_evaluation
from dato.search.study import Study


@dataclass
class Account:
    """One search's use of a shared study; what a search is to be given as its `ask`.

    A race is run on paper: the study knows all images of a candidate, and where the first of them would have been
    enough to give it up, the search is told what it would have been told, and charged for them alone.

    Attributes:
        study: Who judges, with a latency table and without a race.
        race: After how many images a candidate may be given up; None: never.
        calls: UNet calls spent so far, in whole calls of one image.
        points: What the search was told, in order.
        spent: `calls` after each of them.
    """

    study: Study
    race: int | None = None
    calls: float = 0.0
    points: list[Point] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)
    _whole: dict[Schedule, Point] = field(default_factory=dict)

    def __call__(self, schedules: Sequence[Schedule]) -> Iterator[Point]:
        """See `dato.search.nsga2.search`."""
        judged, table = self.study.judged, self.study.table
        front = non_dominated(self._whole.values())
        rivals = rivals_of([(p.latency_ms, judged[p.schedule].per_image) for p in front]) if self.race else ()
        told = {point.schedule: point for point in self.points}
        for point in self.study(schedules):
            if point.schedule in told:  # a search remembers
                yield told[point.schedule]
                continue
            own = judged[point.schedule].per_image
            rival, images, expected = rival_for(point.latency_ms, rivals), len(own), None
            if rival is not None and self.race < len(own):
                expected = expected_if_beaten(own[: self.race], rival)
            if expected is None:
                self._whole[point.schedule] = point
            else:
                images, point = self.race, replace(point, quality=expected)
            self.calls += images * table.predict_unet(point.schedule) / table.stock
            told[point.schedule] = point
            self.points.append(point)
            self.spent.append(self.calls)
            yield point

    @property
    def front(self) -> tuple[Point, ...]:
        """The non-dominated of the candidates that got all their images."""
        return non_dominated(self._whole.values())

    def curve(self, scale: Scale) -> list[tuple[float, float]]:
        """(calls spent, hypervolume) after each candidate."""
        return list(zip(self.spent, by_evaluation(self.points, scale), strict=True))
