"""`plan`: one schedule of a given speed-up, in a minute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dato.cli import options as opt
from dato.cli.console import err, out, quiet_libraries
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError


def plan_schedule(
    speedup: Annotated[float, typer.Option(help="How many times as fast as the unchanged pipeline.")] = 3.0,
    model: opt.Model = EMBEDDED,
    config: opt.Config = None,
    variant: opt.Variant = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file, one prompt a line; two are used.", show_default="the embedded model's search split"
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Sampler steps.")] = 50,
    scheduler: opt.Scheduler = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(min=1, help="Classifier-free guidance; 1 is off.", show_default="emoji-sd: 3; else 7.5, SD 2.x 9"),
    ] = None,
    height: opt.Height = None,
    width: opt.Width = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    out_file: Annotated[Path, typer.Option("--out", help="Where to write the plan, a front of one point.")] = Path(
        "plan.json"
    ),
) -> None:
    """Plan one schedule of a given speed-up, without a search: an error model and dynamic programming only.

    It takes about as long as seven images. A search (search_depth) takes longer and finds better schedules.
    """
    from dato.generation.guidance import guidance_of
    from dato.generation.pipelines import load_pipeline, loading_conditions
    from dato.generation.prompts import read_prompts
    from dato.report.schedule_text import strip
    from dato.search.planning import IMAGES, plan

    quiet_libraries()
    if model != EMBEDDED and prompts is None:
        raise DatoError(f"give --prompts FILE for {model}: the prompts that are built in are {EMBEDDED}'s")
    texts = read_prompts(prompts, IMAGES)
    where = opt.device_of(device)
    with err.status(f"Loading {model}") as status:
        loading = loading_conditions(config, variant)
        sampler = scheduler or ("dpm++2m" if model == EMBEDDED else None)
        pipe = load_pipeline(model, device=where, dtype=opt.dtype_of(dtype, where), scheduler=sampler, **loading)
        pipe.set_progress_bar_config(disable=True)
        guidance = guidance_scale or (None if model == EMBEDDED else guidance_of(model))
        front = plan(
            pipe,
            texts,
            speedup,
            steps=steps,
            guidance_scale=guidance,
            height=height,
            width=width,
            seed=seed,
            note=status.update,
        )
    front = replace(front, conditions={**front.conditions, **loading})  # a pipeline does not say these
    front.save(out_file)
    point = front.points[0]
    out.print(
        f"{point.speedup:.2f} times as fast as stock, measured on {len(texts)} images (asked: {speedup:g}); "
        f"PSNR to stock's images {point.quality:.1f} dB",
        highlight=False,
        soft_wrap=True,
    )
    out.print(f" calls: {strip(point.schedule)}", highlight=False)
    out.print(f"written to {out_file}. Next:", highlight=False, soft_wrap=True, markup=False)
    command = opt.command_line("generate", "--strategy", str(out_file), texts[0])
    out.print(f"  {command}", highlight=False, soft_wrap=True, markup=False)
