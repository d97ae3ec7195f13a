"""The command `pruned-tokens`: draw how often each token is pruned, with and without noise on the base score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dato.cli import options as opt
from dato.cli.console import err, out, quiet_libraries
from dato.emoji_sd import EMBEDDED


def pruned_tokens(
    prompt: opt.Prompt,
    ratio: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of the tokens to prune.")] = 0.5,
    relative_noise: Annotated[
        str | None, typer.Option(help="Weights of relative noise, with commas between them: one more setting each.")
    ] = None,
    model: opt.Model = EMBEDDED,
    config: opt.Config = None,
    variant: opt.Variant = None,
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

    It also prints how many of a step's pruned tokens the next step prunes again (figure 1a).

    Every call runs the whole UNet. The first two rows are SiTo's base tokens with and without noise; each block chooses
    its own tokens. Then comes a row for each weight of relative noise. The last row is dato's recovery from the past;
    tokens take turns.
    """
    from dato.experiments.pruned_counts import compare_pruning, pruned_picture
    from dato.generation.pipelines import load_pipeline
    from dato.generation.sampling import Sampling

    quiet_libraries()
    alphas = opt.numbers("--relative-noise", relative_noise, float) or ()
    where = opt.device_of(device)
    with err.status(f"Loading {model}"):
        kind = opt.dtype_of(dtype, where)
        loading = {"scheduler": scheduler, "config": config, "variant": variant}
        pipe = load_pipeline(model, device=where, dtype=kind, **loading)
    sampling = Sampling(steps, guidance_scale, height, width, seed)
    with err.status("Generating"):
        counts = compare_pruning(pipe, prompt, sampling, ratio, alphas)
    pruned_picture(counts, out_file)
    for name, count in counts.items():
        shares = f"{count.never:.1%} of the tokens never pruned, {count.always:.1%} always"
        out.print(f"{name}: {shares}; {count.again:.1%} pruned again by the next step", highlight=False)
    out.print(f"written to {out_file}", highlight=False, soft_wrap=True, markup=False)
