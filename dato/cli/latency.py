"""`--latency`: whether a search measures every candidate or predicts it by a table that is measured once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

from dato.cli import options as opt
from dato.console import err
from dato.errors import DatoError
from dato.evaluation import Evaluator
from dato.front import Point
from dato.latency_check import Pair, TableCheck
from dato.probes import measure_table
from dato.schedule import Schedule

MODES = ("auto", "table", "measured")
# What a front's conditions say.
HOW = {
    "measured": "end to end per image, median over batches; front, references and stock timed again in turn",
    "table": "end to end per image, predicted by latency_table; front, references and stock then timed in turn",
}

Latency = Annotated[
    str,
    typer.Option(
        help="How candidates are timed: table (each kind of UNet call is measured once, a schedule is their sum), "
        "measured (each candidate), or auto: measured on a GPU, table on a CPU."
    ),
]


def mode_of(name: str, device: str) -> str:
    """The mode that `--latency` means on this device. Raises DatoError for an unknown one."""
    if name not in MODES:
        raise DatoError(f"--latency {name!r}: known are {', '.join(MODES)}")
    if name == "auto":
        return "measured" if opt.device_of(device).type == "cuda" else "table"
    return name


def use_latency(mode: str, evaluator: Evaluator, schedules: Iterable[Schedule], conditions: dict[str, Any]) -> None:
    """Have the evaluator time candidates in this mode, and note in the conditions how.

    Args:
        mode: "table" or "measured".
        evaluator: It has judged nothing yet.
        schedules: Of every kind of call that it will be asked for.
        conditions: Of the front.
    """
    conditions["latency"] = HOW[mode]
    if mode == "measured":
        return
    with err.status("Measuring the latency table") as status:

        def show(done: float, rounds: int) -> None:
            status.update(f"Measuring the latency table: {done / rounds:.0%}")

        table = measure_table(evaluator.pipe, evaluator.prompts, evaluator.sampling, schedules, progress=show)
    err.print(f"Latency table: {len(table.calls)} kinds of call measured.", highlight=False)
    evaluator.latency = table.predict
    conditions["latency_table"] = table.to_dict()


def check_of(baseline: Point, points: Sequence[Point]) -> TableCheck:
    """What the table said of points that were timed since."""
    stock, *pairs = (Pair(p.metrics["table_ms"], p.latency_ms) for p in (baseline, *points))
    return TableCheck(tuple(pairs), stock)
