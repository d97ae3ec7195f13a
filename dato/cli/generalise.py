"""The command `generalise`: judge a front under other conditions than those of its search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from dato.cli import options as opt
from dato.cli.console import out, quiet_libraries, show_progress
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.front import Front
from dato.generation.prompts import read_prompts
from dato.samplers import SAMPLERS
from dato.search.user_choices import pick_point
from dato.strategies import load_front
from dato.utils.files import dumps, write_atomic
from dato.utils.hardware import versions
from dato.utils.markdown import markdown

if TYPE_CHECKING:
    from dato.experiments.generalisation import ConditionResult

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
    workers: Annotated[
        int, typer.Option(min=1, help="GPUs (or shares of a CPU) that work at the same time; above 1 with Ray.")
    ] = 1,
    ray_address: Annotated[str | None, typer.Option(help="A Ray cluster, as auto or ray://host:10001.")] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of images and tables; what is there is not made again.",
            show_default="runs/generalisation-<time>",
        ),
    ] = None,
) -> None:
    """Judge points of a front under other conditions than its search's, beside the best methods that need no search.

    The PSNR of a point compares its images with stock's under the same condition. The table also shows the best PSNR of
    stock with fewer steps and of DeepCache's uniform schedules, among those that are at least as fast as the point. If
    that is higher, search again.
    """
    from dato.experiments import generalisation

    quiet_libraries()
    loaded = load_front(front)
    points = {text: pick_point(loaded, text) for text in pick or _reachable(loaded)}
    other_prompts = _prompts(loaded, prompts, images)
    where = opt.device_of(device, elsewhere=ray_address is not None)
    searched = generalisation.recipe_of_search(loaded, images, batch_size, str(where), opt.dtype_name(dtype, where))
    recipes = generalisation.recipes_of(
        searched,
        other_prompts,
        opt.whole_numbers("--steps", steps),
        _samplers(schedulers),
        opt.numbers("--guidance", guidance, float),
    )
    folder = out_folder or opt.new_folder(None, "generalisation")
    results = list(
        generalisation.generalise(
            loaded, points, recipes, folder, workers=workers, ray_address=ray_address, progress=show_progress
        )
    )
    _write(results, folder, {"front": front, "picks": list(points), "images": len(other_prompts)})


def _reachable(front: Front) -> list[str]:
    """Return the usual picks that the front is fast enough for, or else its knee."""
    fastest = max(point.speedup for point in front.points)
    return [text for text in PICKS if float(text.partition("=")[2]) <= fastest] or ["knee"]


def _prompts(front: Front, file: Path | None, count: int) -> list[str]:
    """Return prompts that the front was not searched with: those of a file, or the embedded model's."""
    model = front.conditions.get("model", EMBEDDED)
    if model != EMBEDDED and file is None:
        raise DatoError(f"give --prompts FILE for {model}: the built-in ones are {EMBEDDED}'s")
    return read_prompts(file, count, "evaluation")


def _samplers(text: str) -> list[str]:
    """Return the samplers that --schedulers names. Raises DatoError if one is unknown."""
    names = text.split(",")
    for name in names:
        if name not in SAMPLERS:
            raise DatoError(f"--schedulers: unknown scheduler {name!r}; known are {', '.join(SAMPLERS)}")
    return names


def _write(results: Sequence[ConditionResult], folder: Path, conditions: Mapping[str, Any]) -> None:
    """Print the table, and write it and all numbers to the folder."""
    rows = [result.cells() for result in results]
    out.print(_table(rows))
    write_atomic(folder / "table.md", markdown(rows))
    data = {
        **conditions,
        "versions": versions("dato", "torch", "diffusers"),
        "conditions": {result.condition: result.to_dict() for result in results},
    }
    write_atomic(folder / "generalisation.json", dumps(data) + "\n")
    out.print(f"written to {folder}", highlight=False, soft_wrap=True, markup=False)


def _table(rows: Sequence[Mapping[str, str]]) -> Table:
    table = Table(title="PSNR to stock", title_justify="left", box=box.SIMPLE, header_style="bold")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "condition" else "right")
    for row in rows:
        table.add_row(*row.values())
    return table
