"""`pruned-tokens`: pictures of how often each token is pruned, with and without noise on the base score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dato.cli import options as opt
from dato.cli.console import err, out
from dato.emoji_sd import EMBEDDED
from dato.experiments.pruned_counts import pruned_counts, pruned_picture
from dato.generation.pipelines import load_pipeline
from dato.generation.sampling import Sampling
from dato.pruning import PAPER_PRUNING, Pruning
from dato.samplers import num_calls
from dato.schedule import Schedule
from dato.tokens.pruner import smallest_downsample


def pruned_tokens(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    ratio: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of the tokens to prune.")] = 0.5,
    model: opt.Model = EMBEDDED,
    config: opt.Config = None,
    steps: Annotated[int, typer.Option(min=1, help="Sampler steps.")] = 50,
    scheduler: opt.Scheduler = "plms",
    guidance_scale: Annotated[float, typer.Option(min=1, help="Classifier-free guidance; 1 is off.")] = 3.0,
    height: opt.Height = None,
    width: opt.Width = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    out_file: Annotated[Path, typer.Option("--out", help="The PNG.")] = Path("images/pruned-tokens.png"),
) -> None:
    """Draw a heat map and a histogram of how often each token was pruned (figure 4 of the SiTo paper).

    Every call is whole; the rows are SiTo's base tokens with and without noise, every block with its own choice, and
    dato's recovery from the past, which lets tokens take turns.
    """
    where = opt.device_of(device)
    with err.status(f"Loading {model}"):
        kind = opt.dtype_of(dtype, where)
        pipe = load_pipeline(model, device=where, dtype=kind, scheduler=scheduler, config=config)
    sampling = Sampling(steps, guidance_scale, height, width, seed)
    whole = Schedule.full(num_calls(pipe, steps)).with_ratios(ratio)
    limit = smallest_downsample(pipe.unet)
    rows = {
        "with noise (VI)": replace(PAPER_PRUNING, score="VI", max_downsample=limit),
        "without noise (V)": replace(PAPER_PRUNING, score="V", max_downsample=limit),
        "recovered from the past": Pruning(recover_from="past", max_downsample=limit),
    }
    with err.status("Generating"):
        found = {name: pruned_counts(pipe, prompt, sampling, whole, pruning) for name, pruning in rows.items()}
    pruned_picture(found, out_file)
    for name, counts in found.items():
        never, always = (counts.share == 0).float().mean(), (counts.share == 1).float().mean()
        out.print(f"{name}: {never:.1%} of the tokens never pruned, {always:.1%} always", highlight=False)
    out.print(f"written to {out_file}", highlight=False, soft_wrap=True, markup=False)
