"""Prompts: from a text file, of the embedded model, and those with which the papers measure (ImageNet, COCO)."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dato import emoji_sd
from dato.errors import DatoError
from dato.utils.files import read_json, read_text

IMAGENET_PER_CLASS = 2
COCO_COUNT = 30_000  # captions that the papers use
ORDERS = ("drawn", "given")


def read_prompts(
    source: str | Path | None, count: int | None = None, split: Literal["search", "evaluation"] = "search"
) -> list[str]:
    """Return prompts from a text file, one a line, or of the embedded model.

    Args:
        source: The file. None: a split of the embedded model's prompts.
        count: How many, from the first. None: all.
        split: Which of the embedded model's prompts, see `dato.emoji_sd.prompts`.

    Raises:
        DatoError: if the file is missing, or has fewer prompts than `count`.
    """
    if source is None:
        prompts, name = emoji_sd.prompts(split), f"the embedded model's {split} split"
    else:
        # Only these end a line. `splitlines` also cuts at a form feed and at Unicode's line separators.
        lines = re.split("\r?\n", read_text(source, newlines=False))
        prompts, name = [line.strip() for line in lines if line.strip()], str(source)
    count = len(prompts) if count is None else count
    if not prompts:
        raise DatoError(f"{name} holds no prompts: write one a line")
    if not 1 <= count <= len(prompts):
        raise DatoError(f"{count} prompts are asked for and {name} has {len(prompts)}: ask for fewer, or add prompts")
    return prompts[:count]


def split_prompts(
    prompts: Sequence[str], images: int, validation: int, *, seed: int = 0, order: str = ORDERS[0]
) -> tuple[list[str], list[str]]:
    """Return prompts to search with and others to validate by. No prompt is in both.

    If there are fewer prompts than asked for, both get their share of what there is.

    Args:
        prompts: All prompts. With validation, one of equal ones counts.
        images: How many to search with.
        validation: How many to validate by; 0: none.
        seed: Fixes which are drawn.
        order: "drawn": at random; "given": the first ones to search with, the next ones to validate by.

    Raises:
        DatoError: if there are too few prompts for both, or `order` is neither.
    """
    if order not in ORDERS:
        raise DatoError(f"`prompts_order` {order!r}: known are {', '.join(ORDERS)}")
    prompts = list(dict.fromkeys(prompts) if validation else prompts)
    if order == "drawn":
        random.Random(seed).shuffle(prompts)
    if images + validation > len(prompts):
        if validation and len(prompts) < 4:
            raise DatoError(f"`prompts`: a search with validation needs at least 4 different ones, not {len(prompts)}")
        if validation:  # both get at least two
            share = round(len(prompts) * validation / (images + validation))
            validation = min(max(2, share), len(prompts) - 2)
        images = len(prompts) - validation
    return prompts[:images], prompts[images : images + validation]


def imagenet_prompts(count: int = 1000 * IMAGENET_PER_CLASS) -> list[str]:
    """Return a prompt for each of ImageNet's 1,000 class names in a fixed random order, then all of them once more.

    Args:
        count: How many, from the first.

    Raises:
        DatoError: if `count` is larger than 2,000.
    """
    from torchvision.models import ResNet18_Weights

    prompts = [f"a photo of a {name}" for name in ResNet18_Weights.IMAGENET1K_V1.meta["categories"]]
    random.Random(0).shuffle(prompts)  # ImageNet's own order begins with hundreds of animals
    prompts *= IMAGENET_PER_CLASS
    if count > len(prompts):
        raise DatoError(f"{count} prompts are asked for and ImageNet gives {len(prompts)}: ask for fewer")
    return prompts[:count]


def coco_captions(path: Path, count: int = COCO_COUNT) -> list[str]:
    """Return captions of different images, always the same: the first caption of each, in a fixed random order.

    Args:
        path: COCO's captions_val2014.json.
        count: How many.

    Raises:
        DatoError: if the file is not COCO's, or has captions of fewer images, or image ids of different kinds.
    """
    try:
        annotations = read_json(path)["annotations"]
        first: dict[int | str, tuple[int, str]] = {}
        for entry in annotations:
            image, caption = entry["image_id"], (int(entry["id"]), " ".join(entry["caption"].split()))
            if type(image) not in (int, str):
                raise TypeError(f"the image_id of caption {caption[0]} is {image!r}")
            first[image] = min(first.get(image, caption), caption)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DatoError(f"{path}: not COCO's captions (annotations with image_id, id, caption): {error!r}") from None
    if len({type(image) for image in first}) > 1:
        raise DatoError(f"{path}: some of its image_ids are numbers and some are text: make all of them numbers")
    if len(first) < count:
        raise DatoError(f"{path} has captions of {len(first)} images, and {count} are asked for: ask for fewer")
    images = sorted(first)
    random.Random(0).shuffle(images)
    return [first[image][1] for image in images[:count]]
