"""The command `compare-rule`: the rule of `speedup=` beside DeepCache and Spectrum, as a table in Markdown."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from dato.cli import options as opt
from dato.cli.console import err, out, quiet_libraries, show_progress
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.samplers import SAMPLERS


def compare_rule(
    model: opt.Model = EMBEDDED,
    config: opt.Config = None,
    variant: opt.Variant = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file, one prompt a line.", show_default="the embedded model's evaluation split"),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Prompts, one image for each.")] = 24,
    samplers: Annotated[str, typer.Option(help="Samplers, with commas between them.")] = (
        "dpm++2m,euler,unipc,ddim,plms,euler-a,dpm++2m-sde"
    ),
    steps: Annotated[str, typer.Option(help="Numbers of steps, as in 15,25,50.")] = "25",
    guidance_scales: Annotated[str, typer.Option("--guidance-scales", help="Scales of guidance.")] = "3",
    height: opt.Height = None,
    width: opt.Width = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per generation.")] = 8,
    seed: opt.Seed = 1000,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
) -> None:
    """Compare the rule of `dato.apply_patch(pipe, speedup=...)` with DeepCache and Spectrum at equal FLOPs.

    Every image is compared with the same sampler's stock image of the same number of steps and the same noise.
    """
    from dato.experiments.rule_comparison import compare_rule as compare
    from dato.experiments.rule_comparison import markdown
    from dato.generation.pipelines import load_pipeline
    from dato.generation.prompts import read_prompts
    from dato.generation.sampling import Sampling

    quiet_libraries()
    names, counts = samplers.split(","), opt.whole_numbers("--steps", steps) or ()
    if unknown := [name for name in names if name not in SAMPLERS]:
        raise DatoError(f"--samplers: unknown {unknown[0]!r}; known are {', '.join(SAMPLERS)}")
    scales = opt.numbers("--guidance-scales", guidance_scales, float) or []
    where = opt.device_of(device)
    with err.status(f"Loading {model}"):
        kind = opt.dtype_of(dtype, where)
        pipe = load_pipeline(model, device=where, dtype=kind, config=config, variant=variant)
    sampling = Sampling(height=height, width=width, seed=seed, batch_size=batch_size)
    texts = read_prompts(prompts, images, "evaluation")
    with show_progress("Settings") as update:
        results = list(compare(pipe, texts, list(product(names, counts, scales)), sampling, update))
    out.print(markdown(results), highlight=False, soft_wrap=True, markup=False)
