"""Choose how a search times candidates: measure each one, or predict it with a latency table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dato.errors import DatoError

if TYPE_CHECKING:
    from dato.point import Point
    from dato.prediction.latency_check import TableCheck

MODES = ("auto", "table", "measured")
# What a front's conditions say.
HOW = {
    "measured": "end to end per image, median over batches, scaled by a short stock generation before each candidate; "
    "front, references and stock then timed in turn",
    "validated": "end to end per image, median over the validation batches, scaled by a short stock generation before "
    "each schedule",
    "validated again": "end to end per image, median over the validation batches; front, references and stock then "
    "timed in turn",
    "table": "end to end per image, predicted by latency_table; front, references and stock then timed in turn",
    "predicted": "end to end per image, predicted by latency_table",
}


def mode_of(name: str, device: str) -> str:
    """Return "table" or "measured": the mode that `latency` means on a device, as "cuda:1".

    Raises:
        DatoError: if there is no mode of that name.
    """
    if name not in MODES:
        raise DatoError(f"`latency` {name!r}: known are {', '.join(MODES)}")
    if name == "auto":
        return "measured" if device.startswith("cuda") else "table"
    return name


def check_of(baseline: Point, points: Sequence[Point]) -> TableCheck:
    """Compare the table's predictions for points with later measurements."""
    from dato.prediction.latency_check import Pair, TableCheck

    stock, *pairs = (Pair(p.metrics["table_ms"], p.latency_ms) for p in (baseline, *points))
    return TableCheck(tuple(pairs), stock)
