"""Train emoji-sd: one module for each stage. A finished stage is skipped, an interrupted one goes on."""

from __future__ import annotations

from collections.abc import Sequence

from dato.emoji_sd.training import clip, clip_image, export, tokenizer, unet, vae
from dato.emoji_sd.training.workspace import Workspace
from dato.errors import DatoError

STAGES = {
    "tokenizer": tokenizer.train,
    "clip": clip.train,
    "vae": vae.train,
    "unet": unet.train,
    "clip-image": clip_image.train,
    "export": export.export,
    "statistics": export.add_statistics,
}


def train(work: Workspace, stages: Sequence[str] = tuple(STAGES)) -> None:
    """Run stages in the order of `STAGES`.

    Args:
        work: The run.
        stages: Which ones, in any order.

    Raises:
        DatoError: if there is no such stage, or a stage fails.
    """
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise DatoError(f"no stage '{unknown[0]}': the stages are {', '.join(STAGES)}")
    for stage, run in STAGES.items():
        if stage in stages:
            run(work)
