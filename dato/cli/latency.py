"""`--latency`: whether a search measures every candidate or predicts it by a table that is measured once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import typer

from dato.errors import DatoError
from dato.point import Point
from dato.prediction.latency_check import Pair, TableCheck

MODES = ("auto", "table", "measured")
# What a front's conditions say.
HOW = {
    "measured": "end to end per image, median over batches, scaled by a short stock generation before each candidate; "
    "front, references and stock then timed in turn",
    "table": "end to end per image, predicted by latency_table; front, references and stock then timed in turn",
}

Latency = Annotated[
    str,
    typer.Option(
        help="How candidates are timed: table (each kind of UNet call is measured once, a schedule is their sum), "
        "measured (each candidate), or auto: measured on a GPU, table on a CPU."
    ),
]


def mode_of(name: str, device: torch.device) -> str:
    """The mode that `--latency` means on this device. Raises DatoError for an unknown one."""
    if name not in MODES:
        raise DatoError(f"--latency {name!r}: known are {', '.join(MODES)}")
    if name == "auto":
        return "measured" if device.type == "cuda" else "table"
    return name


def check_of(baseline: Point, points: Sequence[Point]) -> TableCheck:
    """What the table said of points that were timed since."""
    stock, *pairs = (Pair(p.metrics["table_ms"], p.latency_ms) for p in (baseline, *points))
    return TableCheck(tuple(pairs), stock)
