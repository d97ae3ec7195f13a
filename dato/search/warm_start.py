"""Begin a search from a front that is there already: an earlier run's, or that of another model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dato.errors import DatoError
from dato.schedule import Schedule
from dato.search.spaces import DepthSpace
from dato.strategies import load_front

LENGTH_TOLERANCE = 0.1  # share of a schedule's length by which the nearest length of a space may differ


def digest(schedules: Sequence[Schedule]) -> str:
    """Return a SHA-256 by which conditions and journals know the schedules that a search builds on."""
    content = json.dumps([schedule.to_dict() for schedule in schedules])
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class WarmStart:
    """The schedules of a front to begin from; none if there is no such front.

    Attributes:
        schedules: In the front's order, the fastest first.
        source: The front's file or name, for messages and conditions.
        calls: UNet calls of the front's reference.
        prompts: Those that the front was searched with.
    """

    schedules: Sequence[Schedule] = ()
    source: str = ""
    calls: int = 0
    prompts: frozenset[str] = frozenset()

    @classmethod
    def load(cls, source: str | Path) -> WarmStart:
        """Load a front, or raise DatoError; see `dato.load_front`."""
        front = load_front(source)
        prompts = frozenset(front.conditions.get("prompts", ()))
        return cls([point.schedule for point in front.points], str(source), len(front.baseline.schedule), prompts)

    @property
    def settings(self) -> dict[str, Any]:
        """What a front's conditions record of it."""
        return {"warm_start": self.source, "warm_start_sha256": digest(self.schedules)} if self.schedules else {}

    def told(self, validation: Collection[str]) -> str:
        """Return one line for the user on where a search begins.

        Args:
            validation: The prompts that the search validates by.
        """
        line = f"Beginning with {len(self.schedules)} schedules of {self.source}."
        if known := self.prompts & set(validation):
            line += (
                f" warning: it was searched with {len(known)} of the {len(set(validation))} prompts to validate by, so "
                "its points may seem too good; give prompts that it has not seen"
            )
        return line

    def inside(self, space: DepthSpace) -> WarmStart:
        """Return the schedules for a space, without those that it does not hold.

        They are made for a UNet of the space's height. They are resampled (see `Schedule.resampled`) as the front's
        reference has to be to become the longest of the space. The space must have about that length, so that the
        speed-up stays the same. Polynomials of a higher degree than the space has become those of its highest.

        Raises:
            DatoError: if there are some, and none is left.
        """
        moved = [self._moved(schedule, space) for schedule in self.schedules]
        genes = [space.encode(schedule) for schedule in moved if schedule is not None]
        found = dict.fromkeys(space.decode(x) for x in genes if x is not None)
        if self.schedules and not found:
            raise DatoError(
                f"`warm_start` {self.source}: this search cannot hold any of its schedules; their lengths must be "
                "among `steps`, their depths among `depths`, their orders among `orders`, and their forecast `forecast`"
            )
        return replace(self, schedules=list(found))

    def _moved(self, schedule: Schedule, space: DepthSpace) -> Schedule | None:
        """Return a schedule for the height and the lengths of a space; None if it does not fit."""
        wanted = len(schedule) * space.calls[-1] / self.calls
        calls = min(space.calls, key=lambda count: abs(count - wanted))
        if abs(calls - wanted) > LENGTH_TOLERANCE * wanted:
            return None
        try:
            moved = schedule.for_rungs(space.rungs).resampled(calls)
        except DatoError:  # that UNet does not have a depth of it
            return None
        if space.forecast == moved.forecast == "polynomial":
            return moved.with_order_at_most(max(space.orders))
        return moved
