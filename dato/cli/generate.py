"""`generate`: one image with a schedule, stock's image beside it, and how long both took."""

from __future__ import annotations

import re
import statistics as stats
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dato.cli import options as opt
from dato.cli.console import err, out
from dato.errors import DatoError
from dato.front import Front
from dato.generation.guidance import usual_guidance
from dato.generation.pipelines import load_pipeline
from dato.generation.sampling import Generated, Sampling, generate
from dato.report.schedule_text import strip
from dato.strategies import load_strategy
from dato.unet.patch import apply_patch, remove_patch
from dato.utils.files import write_atomic
from dato.utils.hardware import hardware
from dato.utils.images import png


def generate_image(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    strategy: Annotated[str, typer.Option(help=f"A front or schedule: {opt.STRATEGY}.")],
    pick: Annotated[str, typer.Option(help="Which point of a front: knee, speedup=NUMBER or quality=NUMBER.")] = "knee",
    model: opt.Model = None,
    config: opt.Config = None,
    steps: opt.Steps = None,
    scheduler: opt.Scheduler = None,
    guidance_scale: opt.Guidance = None,
    height: opt.Height = None,
    width: opt.Width = None,
    seed: opt.Seed = 0,
    repeats: Annotated[
        int, typer.Option(min=1, help="Time each of the two this often, in turn; the median counts.")
    ] = 3,
    device: opt.Device = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16 or auto.", show_default="the front's")
    ] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the images.")] = Path("images"),
) -> None:
    """Generate an image with a schedule, and stock's from the same noise, and print both times.

    Model, steps, sampler, guidance and size are those of the front, unless given. Where a schedule has its own number
    of steps, stock runs those of the front's reference.
    """
    loaded = load_strategy(strategy)
    if not isinstance(loaded, Front) and pick != "knee":
        raise DatoError(f"--pick {pick}: {strategy} is one schedule, there is nothing to pick")
    point = opt.pick_point(loaded, pick) if isinstance(loaded, Front) else None
    schedule = loaded if point is None else point.schedule
    known = loaded.conditions if isinstance(loaded, Front) else {}

    try:
        out_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatoError(f"cannot write to {out_folder}: {error.strerror}; give another --out") from None
    where = opt.device_of(device)
    name, config, own = opt.model_of(model, config, known)
    with err.status(f"Loading {name}"):
        kind = opt.dtype_of(dtype, where, known.get("dtype", "auto"))
        sampler = scheduler or known.get("scheduler_name")
        pipe = load_pipeline(name, device=where, dtype=kind, scheduler=sampler, config=config)
    sampling = Sampling(
        steps or known.get("steps", 50),
        guidance_scale or known.get("guidance_scale") or usual_guidance(name),
        height or own.get("height"),
        width or own.get("width"),
        seed,
        batch_size=1,
    )
    own = replace(sampling, steps=steps or (point and point.steps) or sampling.steps)
    runs: dict[str, list[Generated]] = {"stock": [], "dato": []}
    with err.status("Generating"):
        for repeat in range(repeats + 1):
            for way, results in runs.items():
                remove_patch(pipe) if way == "stock" else apply_patch(pipe, point or schedule)
                result = generate(pipe, [prompt], sampling if way == "stock" else own)
                if repeat:  # the first round warms up
                    results.append(result)

    stem = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "image"
    counts = {"stock": sampling.steps, "dato": own.steps}
    out.print(f"{hardware(where)}; median of {repeats}", highlight=False)
    times = {way: stats.median(r.latency_ms[0] for r in results) for way, results in runs.items()}
    for way, results in runs.items():
        path = out_folder / f"{stem}-{seed}{'' if way == 'dato' else '-stock'}.png"
        write_atomic(path, png(results[-1].images[0]))
        ratio = f" ({times['stock'] / times['dato']:.2f}x faster)" if way == "dato" else ""
        out.print(
            f"{way:>6}: {counts[way]} steps, {times[way]:8.1f} ms{ratio}  {path}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    out.print(f" calls: {strip(schedule)}", highlight=False)
