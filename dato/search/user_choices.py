"""Read what a user asks for: a point of a front (knee, speedup=3) and a lowest quality."""

from __future__ import annotations

from dato.errors import DatoError
from dato.front import Front
from dato.metrics import shown
from dato.point import Point


def floor_of(metric: str, value: float | None) -> float | None:
    """Return `Point.quality` for a quality that a user writes: a distance changes its sign."""
    return None if value is None else shown(metric, value)


def pick_point(front: Front, text: str) -> Point:
    """Return the point of a front that a text means: knee, speedup=NUMBER or quality=NUMBER.

    Raises:
        DatoError: if the text is none of these, or no point reaches the number.
    """
    if text == "knee":
        return front.knee()
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        name = ""
    if name == "speedup":
        return front.pick(speedup=number)
    if name == "quality":
        return front.pick(quality=floor_of(front.conditions["quality"], number))
    raise DatoError(f"`pick` {text!r}: give knee, speedup=NUMBER or quality=NUMBER")
