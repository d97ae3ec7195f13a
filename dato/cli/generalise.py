"""`generalise`: what a front is worth under conditions under which it was not searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from dato.cli import options as opt
from dato.cli.console import out, show_progress
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.experiments import generalisation
from dato.experiments.generalisation import recipe_of_search, recipes_of
from dato.front import Front
from dato.generation.prompts import read_prompts
from dato.samplers import SAMPLERS
from dato.strategies import load_front
from dato.utils.files import dumps, write_atomic
from dato.utils.hardware import versions
from dato.utils.markdown import markdown

PICKS = ("speedup=3", "speedup=5")
STEPS = "25,50,100"
SCHEDULERS = "dpm++2m,plms,ddim,euler"
GUIDANCE = "1.5,3,5,7.5"


def generalise(
    front: Annotated[str, typer.Argument(help=f"A front: {opt.STRATEGY}.")],
    pick: Annotated[
        list[str] | None,
        typer.Option(
            help="A point of it: knee, speedup=NUMBER or quality=NUMBER; may be repeated.",
            show_default=" and ".join(PICKS),
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file with other prompts, one a line.", show_default="the embedded model's evaluation split"
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="How many prompts.")] = 8,
    steps: Annotated[str, typer.Option(help="Sampler steps of the reference to try.")] = STEPS,
    schedulers: Annotated[str, typer.Option(help=f"Samplers to try, of {', '.join(SAMPLERS)}.")] = SCHEDULERS,
    guidance: Annotated[str, typer.Option(help="Guidance scales to try.")] = GUIDANCE,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per generation.")] = 2,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    workers: Annotated[int, typer.Option(min=1, help="GPUs (or shares of a CPU) at work together; with Ray.")] = 1,
    ray_address: Annotated[str | None, typer.Option(help="A Ray cluster, as auto or ray://host:10001.")] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of images and tables; what it holds is not made again.",
            show_default="runs/generalisation-<time>",
        ),
    ] = None,
) -> None:
    """Judge points of a front where they were not searched, beside the best that needs no search.

    A point's PSNR is to stock under the same condition. Beside it stands the best PSNR of stock with fewer steps and
    DeepCache's uniform schedules, among those that are at least as fast there. If that is higher, search again.
    """
    loaded = load_front(front)
    points = {text: opt.pick_point(loaded, text) for text in pick or _reachable(loaded)}
    model = loaded.conditions.get("model", EMBEDDED)
    if model != EMBEDDED and prompts is None:
        raise DatoError(f"give --prompts FILE for {model}: the built-in ones are {EMBEDDED}'s")
    other = read_prompts(prompts, images, "evaluation")
    where = opt.device_of(device, elsewhere=ray_address is not None)
    searched = recipe_of_search(loaded, images, batch_size, str(where), opt.dtype_name(dtype, where))
    samplers = schedulers.split(",")
    for name in samplers:
        if name not in SAMPLERS:
            raise DatoError(f"--schedulers: unknown scheduler {name!r}; known are {', '.join(SAMPLERS)}")
    counts = opt.whole_numbers("--steps", steps) or ()
    scales = opt.numbers("--guidance", guidance, float) or []
    recipes = recipes_of(searched, other, counts, samplers, scales)
    folder = out_folder or opt.new_folder(None, "generalisation")
    results = list(
        generalisation.generalise(
            loaded, points, recipes, folder, workers=workers, ray_address=ray_address, progress=show_progress
        )
    )
    table = [result.cells() for result in results]
    out.print(_table(table))
    write_atomic(folder / "table.md", markdown(table))
    data = {
        "front": front,
        "picks": list(points),
        "images": len(other),
        "versions": versions("dato", "torch", "diffusers"),
        "conditions": {result.condition: result.to_dict() for result in results},
    }
    write_atomic(folder / "generalisation.json", dumps(data) + "\n")
    out.print(f"written to {folder}", highlight=False, soft_wrap=True, markup=False)


def _reachable(front: Front) -> list[str]:
    """Return the usual picks that the front is fast enough for, or else its knee."""
    fastest = max(point.speedup for point in front.points)
    return [text for text in PICKS if float(text.partition("=")[2]) <= fastest] or ["knee"]


def _table(rows: Sequence[Mapping[str, str]]) -> Table:
    table = Table(title="PSNR to stock", title_justify="left", box=box.SIMPLE, header_style="bold")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "condition" else "right")
    for row in rows:
        table.add_row(*row.values())
    return table
