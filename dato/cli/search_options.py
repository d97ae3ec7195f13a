"""The options that the searches share, as types of their parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dato.cli import options as opt
from dato.errors import DatoError
from dato.metrics import METRICS
from dato.pruning import SCORES
from dato.samplers import SAMPLERS
from dato.schedule import FORECASTS
from dato.search.journal import check_header, read_entries
from dato.search.run_folder import Folder


def take_up(ctx: typer.Context, folder: Path | None) -> Path | None:
    """Make a journal's options this command line's defaults."""
    if folder is None:
        return None
    path = Folder(folder).journal
    entries, _ = read_entries(path)
    check_header(entries[0] if entries else None, path)
    kind = entries[0]["command"]
    if f"search {kind}" not in opt.SCRIPTS:
        raise DatoError(f"{path} is the journal of {kind!r}, no search that can be gone on with")
    if f"search_{kind}" != ctx.command.callback.__name__:
        raise DatoError(f"{folder} holds a search of {kind}: go on with {opt.command_line(f'search {kind}')}")
    ctx.default_map = {k: v for k, v in entries[0]["options"].items() if v is not None}
    return folder


Prompts = Annotated[
    Path | None, typer.Option(help="Text file, one prompt a line.", show_default="the embedded model's search split")
]
Quality = Annotated[
    str, typer.Option(help=f"Objective beside latency: {', '.join(METRICS)}. All that need no extra file are recorded.")
]
MinQuality = Annotated[
    float | None,
    typer.Option(help="Constraint: the objective must be at least this (a distance, as frechet: at most)."),
]
Images = Annotated[
    int | None, typer.Option(min=1, help="Images (prompts) for each candidate.", show_default="the preset's")
]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Images per generation; latency is per image.")]
PopSize = Annotated[int | None, typer.Option(min=2, help="Population of NSGA-II.", show_default="the preset's")]
Generations = Annotated[int | None, typer.Option(min=1, help="Generations.", show_default="the preset's")]
Rounds = Annotated[
    int, typer.Option(min=0, help="After the search, time the front, references and stock again this often, in turn.")
]
Out = Annotated[
    Path | None, typer.Option(help="Folder of the run; pareto.json goes there.", show_default="runs/<kind>-<time>")
]
PresetName = Annotated[
    str, typer.Option("--preset", help="quick (minutes on a CPU, embedded model) or paper (DaTo's).")
]
Resume = Annotated[
    Path | None,
    typer.Option(
        is_eager=True,
        callback=take_up,
        help="Go on with the search of this folder, with its options: what its journal holds is not generated again.",
    ),
]
Workers = Annotated[
    int, typer.Option(min=1, help="GPUs (or shares of a CPU) that judge candidates at the same time; above 1 with Ray.")
]
RayAddress = Annotated[
    str | None, typer.Option(help="A Ray cluster, as auto or ray://host:10001; --device auto is a GPU there.")
]
Race = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="After so many images a candidate that is surely dominated is given up; 0: all get all images.",
        show_default="the preset's",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the place of the front and nothing else.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print what happens as JSON, one object a line.")]
Ratios = Annotated[
    str | None, typer.Option(help="Ratios to choose from, as in 0,0.3,0.5,0.7.", show_default="the preset's")
]
Score = Annotated[str, typer.Option(help=f"Base score of token pruning: {', '.join(SCORES)}.")]
RecoverFrom = Annotated[
    str | None,
    typer.Option(
        "--recover-from",
        help="What a pruned token gets: base, kept (token's output), past (its own).",
        show_default="past; with --preset paper base",
    ),
]
MaxDownsample = Annotated[
    int | None, typer.Option(min=1, help="Prune at a downsampling of at most this.", show_default="the smallest")
]
Depths = Annotated[
    str | None,
    typer.Option(help="Depths to choose from besides the whole UNet, as in 0,1,3.", show_default="the preset's"),
]
Orders = Annotated[
    str | None,
    typer.Option(help="Orders of forecasts to choose from; 0: hand back what is cached.", show_default="the preset's"),
]
Forecast = Annotated[
    str | None,
    typer.Option(help=f"What an order above 0 means: {', '.join(FORECASTS)}.", show_default="the preset's"),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale",
        min=1,
        help="Classifier-free guidance; 1 is off.",
        show_default="emoji-sd: the preset's; else the papers', 7.5 and of SD 2.x 9",
    ),
]
Steps = Annotated[
    str | None,
    typer.Option(help="Sampler steps to choose from, as in 10,15,20,25,50.", show_default="the preset's"),
]
ReferenceSteps = Annotated[
    int | None,
    typer.Option(min=1, help="Stock with so many steps is the reference.", show_default="the largest of --steps"),
]
Scheduler = Annotated[
    str | None,
    typer.Option(help=f"Sampler: {', '.join(SAMPLERS)}.", show_default="the model's own; quick on emoji-sd: dpm++2m"),
]
