"""`export`: one schedule of a front as a file of its own, for programs that read no front or cannot forecast."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from dato.cli.console import out
from dato.cli.options import STRATEGY
from dato.errors import DatoError
from dato.schedule import FORMAT
from dato.search.user_choices import pick_point
from dato.strategies import load_front
from dato.utils.files import read_json


def export(
    front: Annotated[str, typer.Argument(help=f"A front: {STRATEGY}.")],
    pick: Annotated[str, typer.Option(help="Which point: knee, speedup=NUMBER or quality=NUMBER.")] = "knee",
    order: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1,
            help="Highest order that the reader knows: 0 reuses cached values, 1 continues them by a line. Higher "
            "orders and other forecasts become this.",
            show_default="as the point has it",
        ),
    ] = None,
    out_file: Annotated[Path, typer.Option("--out", help="Where to write the schedule.")] = Path("schedule.json"),
) -> None:
    """Write one schedule of a front as JSON, for programs that read one schedule or cannot forecast.

    The file also says, for people, what the schedule is for: model, steps, sampler, and what was measured.
    """
    point = pick_point(load_front(front), pick)
    _check_replaceable(out_file)
    written = point.export(out_file, order=order)
    out.print(point.summary, highlight=False, soft_wrap=True, markup=False)
    if written != point.schedule:
        out.print(
            f"The quality was measured with the point's own forecasts. With order {order} it will differ.",
            highlight=False,
            soft_wrap=True,
        )
    out.print(f"written to {out_file}", highlight=False, soft_wrap=True, markup=False)


def _check_replaceable(path: Path) -> None:
    """Raise DatoError if there is a file that may not be written, or anything but a schedule, such as a front."""
    if not os.path.exists(path):
        return
    if not os.access(path, os.W_OK):
        raise DatoError(f"cannot write {path}: it is read-only; give another --out")
    try:
        data = read_json(path)
    except DatoError:
        data = None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise DatoError(f"{path} exists and is not a schedule, so it is kept; give another --out")
