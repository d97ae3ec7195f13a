"""`show`: a front as a table."""

from __future__ import annotations

from typing import Annotated

import typer

from dato.cli.console import out
from dato.cli.options import STRATEGY
from dato.report.tables import front_table
from dato.strategies import load_front


def show(front: Annotated[str, typer.Argument(help=f"A front: {STRATEGY}.")]) -> None:
    """Print a front as a table, fastest first, with what it was compared with."""
    out.print(front_table(load_front(front)))
