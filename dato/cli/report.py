"""`report`: a page of one run, or of several beside each other, and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dato.cli.console import out
from dato.report.page import write_page
from dato.report.plots import front_picture, samples_picture, schedules_picture
from dato.search.run_folder import Folder
from dato.search.run_record import Run


def report(
    runs: Annotated[
        list[str], typer.Argument(help="Folders of runs; also fronts, by file, shipped name, or user/name on the hub.")
    ],
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="The page.", show_default="report.html in the run's folder; of several: here"),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Also write front.png, schedules.png and images.png to this folder.")
    ] = None,
) -> None:
    """Write report.html: the front to choose from, each schedule, its images, and how to use it. It works offline."""
    loaded = [Run.load(run) for run in runs]
    single = Path(runs[0])
    page = out_file or (Folder(single).report if len(runs) == 1 and single.is_dir() else Path("report.html"))
    write_page(loaded, page)
    written = [page]
    if pictures is not None:
        front_picture(loaded, pictures / "front.png")
        schedules_picture(loaded[0].front, pictures / "schedules.png")
        written += [pictures / "front.png", pictures / "schedules.png"]
        if loaded[0].samples:
            samples_picture(loaded[0], pictures / "images.png")
            written.append(pictures / "images.png")
    for path in written:
        out.print(f"written to {path}", highlight=False, soft_wrap=True)
