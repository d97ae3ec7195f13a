"""`report`: a page of one run, or of several beside each other, and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dato.cli.console import out
from dato.report.page import write_page
from dato.search.run_folder import Folder, Run


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
    folder = Path(runs[0])
    page = out_file or (Folder(folder).report if len(runs) == 1 and folder.is_dir() else Path("report.html"))
    write_page(loaded, page)
    written = [page, *([] if pictures is None else _draw(loaded, pictures))]
    for path in written:
        out.print(f"written to {path}", highlight=False, soft_wrap=True)


def _draw(runs: list[Run], folder: Path) -> list[Path]:
    """Write the pictures of runs to a folder, and return their paths."""
    # The page alone needs neither matplotlib nor torch.
    from dato.report import front_picture, samples_picture, schedules_picture

    front_picture(runs, folder / "front.png")
    schedules_picture(runs[0].front, folder / "schedules.png")
    written = [folder / "front.png", folder / "schedules.png"]
    if runs[0].samples:
        samples_picture(runs[0], folder / "images.png")
        written.append(folder / "images.png")
    return written
