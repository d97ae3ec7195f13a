"""The options that say what metrics are made from: models and real pictures, where they are no embedded ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from dato.cli.options import given_place
from dato.emoji_sd import EMBEDDED
from dato.metrics.base import Setup

NAMES = ("clip", "statistics", "image_reward", "image_reward_backend", "pick_score", "inception", "real")


Clip = Annotated[
    str | None,
    typer.Option(
        help="CLIP checkpoint (folder or hub id) for the CLIP score and features.",
        show_default="the embedded one; openai/clip-vit-base-patch16 for other models",
        callback=given_place,
    ),
]
Statistics = Annotated[
    str | None,
    typer.Option(
        help="Statistics of real pictures' CLIP features for 'frechet': safetensors with mean and covariance.",
        show_default="the embedded ones, for the embedded model",
        callback=given_place,
    ),
]
ImageReward = Annotated[
    str | None,
    typer.Option(
        help="ImageReward's checkpoint: hub id, folder, or ImageReward.pt.",
        show_default=Setup.image_reward,
        callback=given_place,
    ),
]
ImageRewardBackend = Annotated[
    str | None,
    typer.Option(
        help="What computes ImageReward: transformers, or the authors' package where it imports.",
        show_default=Setup.image_reward_backend,
    ),
]
PickScore = Annotated[
    str | None,
    typer.Option(
        help="A preference model in CLIP's form: hub id or folder.",
        show_default=Setup.pick_score,
        callback=given_place,
    ),
]
Inception = Annotated[
    str | None,
    typer.Option(
        help="Weights of pytorch-fid's InceptionV3 for 'fid' and 'kid'.",
        show_default="in torch's cache, or fetched",
        callback=given_place,
    ),
]
Real = Annotated[
    str | None,
    typer.Option(
        help="Real pictures to compare with: a folder; for 'fid' also an .npz of pytorch-fid.", callback=given_place
    ),
]


def files_of(options: Mapping[str, Any], front: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What was named on the command line or, failing that, in a front's conditions."""
    found = {name: options.get(name) or (front or {}).get(name) for name in NAMES}
    return {name: value for name, value in found.items() if value is not None}


def setup_of(model: str, files: Mapping[str, str]) -> Setup:
    """What the metrics of a model are made from: the embedded model's own, or what is published."""
    own = {} if model == EMBEDDED else {"clip": "openai/clip-vit-base-patch16", "statistics": None}
    return Setup(**(own | dict(files)))
