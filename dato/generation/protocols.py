"""What the SiTo and DaTo papers generate: 50 PLMS steps at 512 x 512 for ImageNet's classes or COCO's captions."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

from diffusers import UNet2DConditionModel

from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError, first_line
from dato.generation.random_models import RANDOM_MODELS, text_width
from dato.generation.single_file import SD2, family_of, is_single_file
from dato.utils.files import read_json

PROTOCOLS = ("imagenet", "coco", "file")
STEPS, SCHEDULER, SIZE = 50, "plms", 512
PER_CLASS, CAPTIONS = 2, 30_000
_SD2_WIDTH = 1024  # of SD 2.x's text states; SD 1.x's are 768 wide


def imagenet_prompts(count: int = 1000 * PER_CLASS) -> list[str]:
    """A prompt for each of ImageNet's 1,000 class names, in an order by chance, and then all of them once more.

    Raises:
        DatoError: if more are asked for.
    """
    from torchvision.models import ResNet18_Weights

    prompts = [f"a photo of a {name}" for name in ResNet18_Weights.IMAGENET1K_V1.meta["categories"]]
    random.Random(0).shuffle(prompts)  # ImageNet's own order begins with hundreds of animals
    prompts *= PER_CLASS
    if count > len(prompts):
        raise DatoError(f"--images {count}: the protocol imagenet has {len(prompts)} prompts")
    return prompts[:count]


def coco_captions(path: Path, count: int) -> list[str]:
    """Captions of `count` different images, always the same: the first of each image, in an order by chance.

    Raises:
        DatoError: if the file is not COCO's, or has captions of fewer images.
    """
    try:
        annotations = read_json(path)["annotations"]
        first: dict[int, tuple[int, str]] = {}
        for entry in annotations:
            own = int(entry["id"]), " ".join(entry["caption"].split())
            first[entry["image_id"]] = min(first.get(entry["image_id"], own), own)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatoError(f"{path}: not COCO's captions (annotations with image_id, id, caption): {error!r}") from None
    if len(first) < count:
        raise DatoError(f"{path} has captions of {len(first)} images, and {count} are asked for: give --images")
    images = sorted(first)
    random.Random(0).shuffle(images)
    return [first[image][1] for image in images[:count]]


def usual_guidance(model: str) -> float:
    """The guidance scale where neither user, front nor protocol says one: the embedded model's 3, else the papers'."""
    return 3.0 if model == EMBEDDED else guidance_of(model)


def guidance_of(model: str) -> float:
    """The papers' guidance scale: 7.5, of SD 2.x 9.0. Raises DatoError if the model's configuration is not there."""
    if model == EMBEDDED:
        return 7.5
    if model in RANDOM_MODELS:
        return 9.0 if text_width(model) == _SD2_WIDTH else 7.5
    if is_single_file(model):
        return 9.0 if family_of(model) is SD2 else 7.5
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers gives the hub's client an argument that it no longer knows
            width = UNet2DConditionModel.load_config(model, subfolder="unet").get("cross_attention_dim")
    except (OSError, ValueError) as error:
        raise DatoError(
            f"cannot load the model {model!r}: its UNet has no configuration ({first_line(error)})"
        ) from None
    return 9.0 if width == _SD2_WIDTH else 7.5
