"""`dato`: every command under one name."""

from __future__ import annotations

from typing import Annotated

import typer

from dato.cli.benchmark import run_benchmark
from dato.cli.console import out, run_app
from dato.cli.evaluate import evaluate
from dato.cli.generalise import generalise
from dato.cli.generate import generate_image
from dato.cli.options import STRATEGY
from dato.cli.pruned_tokens import pruned_tokens
from dato.cli.report import report
from dato.cli.search import search_depth, search_joint, search_ratio
from dato.cli.share import share
from dato.report.tables import front_table
from dato.strategies import load_front

app = typer.Typer(
    help="Search cache-and-prune schedules for UNet diffusion models, and run them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    no_args_is_help=True,
)
searches = typer.Typer(help="Search schedules: depths, ratios on top of them, or both together.", no_args_is_help=True)
app.add_typer(searches, name="search")
searches.command("depth")(search_depth)
searches.command("ratio")(search_ratio)
searches.command("joint")(search_joint)
app.command("generate")(generate_image)
app.command("report")(report)
app.command("evaluate")(evaluate)
app.command("generalise")(generalise)
app.command("pruned-tokens")(pruned_tokens)
app.command("benchmark")(run_benchmark)
app.command("share")(share)


@app.command("show")
def show(front: Annotated[str, typer.Argument(help=f"A front: {STRATEGY}.")]):
    """Print a front as a table, fastest first, with what it was compared with."""
    out.print(front_table(load_front(front)))


def main() -> None:
    """The command `dato`."""
    run_app(app)
