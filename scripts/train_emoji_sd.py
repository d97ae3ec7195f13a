"""Train emoji-sd, the embedded text-to-image model. `--help` lists the options.

    python scripts/train_emoji_sd.py --out runs/emoji-sd

It may be killed at any time. The same command goes on where it was.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Option

from dato.cli.console import main, out


def train_emoji_sd(
    out_folder: Annotated[
        Path, Option("--out", help="The run's folder. The finished model is its subfolder emoji-sd.")
    ],
    data: Annotated[
        Path | None,
        Option(help="The npm package emoji-datasource-google 16.0.0, unpacked or .tgz. Default: npm pack fetches it."),
    ] = None,
    stages: Annotated[
        str,
        Option(help="Comma-separated: tokenizer, clip, vae, unet, clip-image, export, statistics. Default: all."),
    ] = "all",
    init: Annotated[
        Path | None,
        Option(help="Go on from a trained model in the layout of dato/emoji_sd: parts not trained are taken from it."),
    ] = None,
    names: Annotated[
        str | None,
        Option(help="What the VAE and the UNet learn, comma-separated names of emoji.json. Default: the 74 names."),
    ] = None,
    steps_clip: Annotated[int | None, Option(min=1, help="Default: 724.")] = None,
    steps_vae: Annotated[int | None, Option(min=1, help="Default: 3163.")] = None,
    steps_unet: Annotated[int | None, Option(min=1, help="Default: 3372. More is the first thing that helps.")] = None,
    steps_clip_image: Annotated[int | None, Option(min=1, help="Default: 978.")] = None,
    device: Annotated[str, Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, Option(help="auto, bf16 or float32. auto: bf16 where it is native.")] = "auto",
    seed: Annotated[int, Option(max=2**64 - 1, help="Of the initial weights and of every random draw.")] = 0,
    save_seconds: Annotated[float, Option(min=0, help="Time between checkpoints; 0: after every step.")] = 60.0,
    smoke: Annotated[bool, Option("--smoke", help="Toy widths and 3 steps a stage: whether it runs.")] = False,
) -> None:
    """Train emoji-sd. If it is killed, the same command goes on from the last checkpoint of the stage it was in."""
    from dato.emoji_sd import pictures
    from dato.emoji_sd.training import STAGES, package, train
    from dato.emoji_sd.training.recipe import Recipe
    from dato.emoji_sd.training.workspace import Workspace, choose_device, choose_precision

    recipe = Recipe.smoke() if smoke else Recipe()
    steps = {"clip": steps_clip, "vae": steps_vae, "unet": steps_unet, "clip_image": steps_clip_image}
    for stage, count in steps.items():
        if count is not None:
            settings = getattr(recipe, stage)
            recipe = replace(recipe, **{stage: replace(settings, fit=replace(settings.fit, steps=count))})
    chosen = choose_device(device)
    read = pictures.read(package.find(data, out_folder), _listed(names) if names else None)
    work = Workspace(
        out=out_folder,
        pictures=read.to(chosen),
        recipe=recipe,
        device=chosen,
        bf16=choose_precision(precision, chosen),
        init=init,
        seed=seed,
        save_seconds=save_seconds,
    )
    train(work, tuple(STAGES) if stages == "all" else _listed(stages))
    out.print(f"done: {out_folder}")


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


if __name__ == "__main__":
    main(train_emoji_sd)
