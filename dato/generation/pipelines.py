"""Load a pipeline by its name: a folder, a hub id, a file, or a model that comes with dato."""

from __future__ import annotations

import traceback
import warnings
from pathlib import Path

import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline, UNet2DConditionModel

from dato import emoji_sd
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError, reason_of
from dato.generation.model_configs import RANDOM_MODELS
from dato.generation.model_folder import check_folder, check_loaded
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
    variant: str | None = None,
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
        variant: For a folder or hub id: which weights to load, such as "fp16". Parts without this variant are loaded
            without. None: those that are of no variant.

    Raises:
        DatoError: if it cannot be loaded or has no UNet, or `config` is given for a model that is not a file, or
            `variant` for one that is not a folder or hub id.
    """
    own = model in (EMBEDDED, *RANDOM_MODELS)
    if variant is not None and (own or is_single_file(model)):
        raise DatoError(f"`variant` {variant!r} is for a folder or hub id, and {model!r} is none: leave it out")
    if not own and is_single_file(model):
        pipe = load_single_file(model, dtype, config)
    elif config is not None:
        raise DatoError(f"`config` {config!r} is for a model in one file, and {model!r} is none: leave it out")
    else:
        random = model in RANDOM_MODELS
        pipe = random_pipeline(model, device=device, dtype=dtype) if random else _stored(model, dtype, variant)
    if not isinstance(getattr(pipe, "unet", None), UNet2DConditionModel):
        raise DatoError(f"{model!r} is a {type(pipe).__name__} without a UNet2DConditionModel; dato is for UNets")
    pipe.set_progress_bar_config(disable=True)
    set_scheduler(pipe, scheduler)
    return pipe.to(device)


def loading_conditions(config: str | None, variant: str | None) -> dict[str, str]:
    """Return what is given of the two, as conditions name it. With the model's name it says what was loaded."""
    given = {"config": config, "variant": variant}
    return {name: value for name, value in given.items() if value is not None}


def _stored(model: str, dtype: torch.dtype, variant: str | None) -> DiffusionPipeline:
    path = str(emoji_sd.PIPE) if model == EMBEDDED else model
    folder = Path(path) if Path(path).is_dir() else None
    if folder is not None:
        check_folder(folder, variant)
    usual = torch.get_default_dtype()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions have another name for `torch_dtype`
            pipe = AutoPipelineForText2Image.from_pretrained(path, torch_dtype=dtype, variant=variant)
    except Exception as error:  # what is damaged makes diffusers and transformers raise anything
        hint = " or give `variant`, if it has only weights of one" if folder is None and variant is None else ""
        raise DatoError(
            f"cannot load the model {model!r}: {_part_at_fault(error)}{reason_of(error)} (give a folder or hub id in "
            f"diffusers' layout, a file, or {', '.join((EMBEDDED, *RANDOM_MODELS))}{hint})"
        ) from error
    finally:
        torch.set_default_dtype(usual)  # diffusers changes it while it loads, and not back if that fails
    check_loaded(pipe, path, variant)
    return pipe


def _part_at_fault(error: Exception) -> str:
    """Return "unet: " if diffusers failed while it loaded the part unet, "" if it says no part."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "load_sub_model"]
    names = [frame.f_locals["name"] for frame in frames if "name" in frame.f_locals]
    return f"{names[-1]}: " if names else ""
