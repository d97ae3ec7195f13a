"""How emoji-sd is trained, a module per stage. A stage that is done is left alone; a killed one goes on."""

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
    """Run the stages, in the order of `STAGES` whatever the order they are given in.

    Raises:
        DatoError: a name is no stage's, or a stage raises it.
    """
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise DatoError(f"no stage '{unknown[0]}': the stages are {', '.join(STAGES)}")
    for stage, run in STAGES.items():
        if stage in stages:
            run(work)
