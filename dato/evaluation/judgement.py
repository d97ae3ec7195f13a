"""What is known of a schedule once it was judged, and how a journal holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dato.errors import DatoError
from dato.point import Point, point_from_dict
from dato.pruning import Pruning
from dato.schedule import Schedule

_SCHEDULE = ("depths", "ratios", "orders", "forecast")


@dataclass(frozen=True)
class Judgement:
    """A judged schedule.

    Attributes:
        point: What was measured; of a schedule that failed, its quality is no number.
        per_image: The objective for each image, in the order of the prompts; empty if it is not a mean over images.
        images: How many images were generated for it; fewer than there are prompts where it was given up early.
        failure: Why it could not be judged, as "out of memory"; None if it could.
        sample: The first images side by side, as a picture file; None where nobody asked.
    """

    point: Point
    per_image: tuple[float, ...] = ()
    images: int = 0
    failure: str | None = None
    sample: bytes | None = None

    @property
    def schedule(self) -> Schedule:
        """What was judged."""
        return self.point.schedule

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the sample, the rungs and the settings of pruning are kept elsewhere."""
        data = self.point.to_dict()
        if self.failure is not None:
            return {"failed": {k: data[k] for k in _SCHEDULE if k in data}, "why": self.failure, "images": self.images}
        return {"judged": data, "per_image": list(self.per_image), "images": self.images}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], rungs: int, pruning: Pruning) -> Judgement:
        """The inverse of `to_dict`. Raises DatoError if something is missing or not valid."""
        try:
            if "failed" in data:
                own = data["failed"]
                schedule = Schedule(
                    own["depths"], own["ratios"], own["orders"], rungs, pruning, own.get("forecast", "polynomial")
                )
                return failed(schedule, str(data["why"]), int(data["images"]))
            point = point_from_dict("a judged point", data["judged"], rungs, pruning)
            return cls(point, tuple(map(float, data["per_image"])), int(data["images"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DatoError(f"not a judgement: {type(error).__name__}: {error}") from None


def failed(schedule: Schedule, why: str, images: int) -> Judgement:
    """The judgement of a schedule that could not be run, or gave no images."""
    return Judgement(Point(schedule, -math.inf, math.inf, 0.0), images=images, failure=why)
