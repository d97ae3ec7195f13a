"""A judgement: what is known of a schedule after it was judged, and how a journal stores it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dato.errors import DatoError
from dato.point import Point, point_from_dict
from dato.pruning import Pruning
from dato.schedule import Schedule

_SCHEDULE_KEYS = ("depths", "ratios", "orders", "forecast")


@dataclass(frozen=True)
class Judgement:
    """A judged schedule.

    Attributes:
        point: What was measured. The quality of a schedule that failed is -inf.
        per_image: The objective of each image, in the order of the prompts. Empty if it is not a mean over images.
        images: How many images were generated for it. Fewer than there are prompts if it was given up early.
        failure: Why it could not be judged, for example "out of memory". None if it could.
        sample: The first images side by side, as a picture file. None if it failed, or was read from a journal.
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
        """Return plain JSON values, without the sample, the rungs and the settings of pruning."""
        point = self.point.to_dict()
        if self.failure is not None:
            schedule = {key: point[key] for key in _SCHEDULE_KEYS if key in point}
            return {"failed": schedule, "why": self.failure, "images": self.images}
        return {"judged": point, "per_image": list(self.per_image), "images": self.images}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], rungs: int, pruning: Pruning) -> Judgement:
        """Return the judgement that `to_dict` wrote. Raise DatoError if something is missing or not valid."""
        try:
            if "failed" in data:
                entries = data["failed"]
                forecast = entries.get("forecast", "polynomial")
                schedule = Schedule(entries["depths"], entries["ratios"], entries["orders"], rungs, pruning, forecast)
                return failed(schedule, str(data["why"]), int(data["images"]))
            point = point_from_dict("a judged point", data["judged"], rungs, pruning)
            return cls(point, tuple(map(float, data["per_image"])), int(data["images"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DatoError(f"not a judgement: {type(error).__name__}: {error}") from None


def failed(schedule: Schedule, why: str, images: int) -> Judgement:
    """Return the judgement of a schedule that could not be run, or gave no usable images.

    Args:
        schedule: The schedule.
        why: What went wrong.
        images: How many images were generated for it.
    """
    return Judgement(Point(schedule, -math.inf, math.inf, 0.0), images=images, failure=why)
