"""emoji-sd, the embedded model: a small text-to-image latent diffusion pipeline in the shape of SD 1.x.

This module says where its parts are and has its prompts. `MODEL_CARD.md` says what it was trained on, and how.
`dato.emoji_sd.training` and `scripts/train_emoji_sd.py` train it again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

EMBEDDED = "emoji-sd"  # the model's name, for `load_pipeline` and in the conditions of fronts
FOLDER = Path(__file__).parent
PIPE = FOLDER / "pipe"  # a diffusers StableDiffusionPipeline folder
CLIP = FOLDER / "clip"  # a transformers CLIPModel folder: CLIP score and image features
STATISTICS = FOLDER / "statistics.safetensors"  # mean and covariance of the real pictures' CLIP features


def prompts(split: Literal["search", "evaluation"]) -> list[str]:
    """Return the captions of one split: 74, one for each name that the model knows.

    The model was trained on the captions of "search". It never saw those of "evaluation". No caption is in both. Report
    results on "evaluation", and never search on it.
    """
    return json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8"))[split]
