"""Load a pipeline by its name: a folder, a hub id, a file, or a model that comes with dato."""

from __future__ import annotations

import warnings

import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline, UNet2DConditionModel

from dato import emoji_sd
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError, first_line
from dato.generation.model_configs import RANDOM_MODELS
from dato.generation.random_models import random_pipeline
from dato.generation.single_file import is_single_file, load_single_file
from dato.samplers import set_scheduler


def load_pipeline(
    model: str = EMBEDDED,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    scheduler: str | None = None,
    config: str | None = None,
) -> DiffusionPipeline:
    """Load a text-to-image pipeline with a UNet.

    Args:
        model: "emoji-sd" for the embedded model. "sd15-random", "sd21-random" or "sdxl-random" for the configuration
            of a published model with random weights. Else a folder or a hub id in diffusers' layout, or a .safetensors
            or .ckpt file with the whole model.
        device: Where it runs.
        dtype: The precision.
        scheduler: A key of `dato.samplers.SAMPLERS`. None: the model's own.
        config: For a file: the folder or hub id in diffusers' layout that describes its parts. None: that of SD 1.5,
            2.1 or XL, from the hub.

    Raises:
        DatoError: if it cannot be loaded or has no UNet, or `config` is given for a model that is not a file.
    """
    if model not in (EMBEDDED, *RANDOM_MODELS) and is_single_file(model):
        pipe = load_single_file(model, dtype, config)
    elif config is not None:
        raise DatoError(f"`config` {config!r} is for a model in one file, and {model!r} is none: leave it out")
    else:
        pipe = random_pipeline(model, device=device, dtype=dtype) if model in RANDOM_MODELS else _stored(model, dtype)
    if not isinstance(getattr(pipe, "unet", None), UNet2DConditionModel):
        raise DatoError(f"{model!r} is a {type(pipe).__name__} without a UNet2DConditionModel; dato is for UNets")
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, scheduler)
    return pipe.to(device)


def _stored(model: str, dtype: torch.dtype) -> DiffusionPipeline:
    path = str(emoji_sd.PIPE) if model == EMBEDDED else model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions have another name for `torch_dtype`
            return AutoPipelineForText2Image.from_pretrained(path, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise DatoError(
            f"cannot load the model {model!r}: {reason} (give a folder or hub id in diffusers' layout, a file, or "
            f"{', '.join((EMBEDDED, *RANDOM_MODELS))})"
        ) from error
