"""The command `compare_searches`: compare kinds of search by hypervolume and by UNet calls."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from dato.cli import options as opt
from dato.cli.console import out, quiet_libraries, show_progress
from dato.errors import DatoError
from dato.experiments.compared_searches import SEARCHES
from dato.utils.files import dumps, write_atomic


def compare_searches(
    methods: Annotated[
        str | None,
        typer.Option(help=f"Kinds of search, with semicolons between them: {'; '.join(SEARCHES)}.", show_default="all"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... of each search.")] = 5,
    candidates: Annotated[
        int, typer.Option(min=10, help="Candidates that each search judges, except the papers'.")
    ] = 45,
    images: Annotated[int, typer.Option(min=2, help="Images (prompts) for each candidate.")] = 4,
    held_out: Annotated[int, typer.Option(min=1, help="Other prompts, on which the fronts are judged again.")] = 8,
    steps: Annotated[int, typer.Option(min=2, help="PLMS steps.")] = 50,
    guidance_scale: Annotated[float, typer.Option(min=1, help="Classifier-free guidance.")] = 3.0,
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder of the journals; what is there is not generated again.")
    ] = Path("runs/searches"),
    out_file: Annotated[Path | None, typer.Option("--json", help="Also write all numbers to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also write the curves as a PNG.")] = None,
    device: opt.Device = "auto",
) -> None:
    """Compare kinds of search on the embedded model: hypervolume against UNet calls, several seeds, held-out prompts.

    The objectives are PSNR to stock and the latency by one table for all. The reference point of the hypervolume is a
    share of stock's time at 20 dB. The hypervolume is 1 if images equal to stock's (100 dB) took no time.
    """
    from dato.experiments import search_comparison

    quiet_libraries()
    chosen = tuple(SEARCHES) if methods is None else tuple(name.strip() for name in methods.split(";"))
    for name in chosen:
        if name not in SEARCHES:
            raise DatoError(f"--methods: unknown search {name!r}; known are {'; '.join(SEARCHES)}")
    where = str(opt.device_of(device))
    settings = search_comparison.ComparisonSettings(
        chosen, repeats, candidates, images, held_out, steps, guidance_scale, where
    )
    result = search_comparison.compare_searches(settings, out_folder, show_progress)
    _print(result.rows, chosen)
    if out_file is not None:
        write_atomic(out_file, dumps(result.conditions | {"rows": result.rows}) + "\n")
        out.print(f"written to {out_file}", highlight=False)
    if plot is not None:
        from dato.report.plots import curves_picture

        curves = {name: [row["curve"] for row in result.rows if row["search"] == name] for name in chosen}
        curves_picture(curves, "UNet calls spent", "hypervolume on the prompts of the search", plot)
        out.print(f"written to {plot}", highlight=False)


def _print(rows: Sequence[dict[str, Any]], chosen: Sequence[str]) -> None:
    """Print the mean and the spread of each kind of search, and what the kinds are."""
    from dato.experiments.search_comparison import SHARES

    table = Table(box=box.SIMPLE, header_style="bold", title="Mean ± standard deviation over seeds")
    columns = {"candidates": ".0f", "unet_calls": ".0f"}
    columns |= {f"{kind} at {share:g}": ".4f" for share in SHARES for kind in ("hypervolume", "held-out")}
    table.add_column("search", no_wrap=True)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name in chosen:
        seeds = [row for row in rows if row["search"] == name]
        cells = []
        for column, form in columns.items():
            values = [row[column] for row in seeds]
            spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):{form}}{spread}")
        table.add_row(name, *cells)
    out.print(table)
    for name in chosen:
        out.print(f"{name}: {SEARCHES[name]}", highlight=False, style="dim")
