"""Which guidance scale a model is usually sampled with."""

from __future__ import annotations

import warnings
from pathlib import Path

from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError, first_line
from dato.generation.model_configs import RANDOM_MODELS, text_width
from dato.generation.model_folder import check_layout
from dato.generation.single_file import SD2, family_of, is_single_file

_OF_EMBEDDED, _OF_SD2, _OF_OTHERS = 3.0, 9.0, 7.5
_SD2_WIDTH = 1024  # features of SD 2.x's text states; SD 1.x's have 768


def usual_guidance(model: str) -> float:
    """Return the guidance scale that a model is sampled with by default: 3 for the embedded model, else the papers'."""
    return _OF_EMBEDDED if model == EMBEDDED else guidance_of(model)


def guidance_of(model: str) -> float:
    """Return the papers' guidance scale: 9.0 for SD 2.x, 7.5 for all others.

    Raises:
        DatoError: if the model's configuration cannot be read.
    """
    if model == EMBEDDED:
        return _OF_OTHERS
    if model in RANDOM_MODELS:
        return guidance_of_width(text_width(model))
    if is_single_file(model):
        return _OF_SD2 if family_of(model) is SD2 else _OF_OTHERS
    if Path(model).is_dir():
        check_layout(Path(model))
    from diffusers import UNet2DConditionModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers passes the hub's client an argument that is no longer used
            width = UNet2DConditionModel.load_config(model, subfolder="unet").get("cross_attention_dim")
    except (OSError, ValueError) as error:
        raise DatoError(
            f"cannot load the model {model!r}: its UNet has no configuration ({first_line(error)})"
        ) from None
    return guidance_of_width(width)


def guidance_of_width(width: int) -> float:
    """Return the papers' guidance scale for a UNet whose text states have `width` features."""
    return _OF_SD2 if width == _SD2_WIDTH else _OF_OTHERS
