"""emoji-sd, the embedded model: a small text-to-image latent diffusion pipeline with the shape of SD 1.x.

`MODEL_CARD.md` beside this file says what it was trained on and how; `scripts/train_emoji_sd.py` makes it again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

EMBEDDED = "emoji-sd"  # what `--model` and a front's conditions call it
FOLDER = Path(__file__).parent
PIPE = FOLDER / "pipe"  # a diffusers StableDiffusionPipeline folder
CLIP = FOLDER / "clip"  # a transformers CLIPModel folder: CLIP score and image features
STATISTICS = FOLDER / "statistics.safetensors"  # mean and covariance of the real pictures' CLIP features


def prompts(split: Literal["search", "evaluation"]) -> list[str]:
    """The captions of one split, 74 each, one for every name the model knows.

    "search" holds captions that the model was trained on; "evaluation" holds the captions that it never saw.
    No caption is in both, and no search may use the second: it is what results are reported on.
    """
    return json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8"))[split]
