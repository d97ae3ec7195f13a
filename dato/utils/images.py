"""Single images as tensors in [0, 1]: read from files, and made into files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dato.errors import DatoError


def read_image(path: Path) -> Tensor:
    """Read a file as (3, H, W) float32 in [0, 1]. A grey picture gets three equal channels, transparency is dropped.

    Raises:
        DatoError: if the file is not a picture that can be read.
    """
    try:
        with Image.open(path) as picture:
            values = np.array(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise DatoError(f"{path}: cannot be read as a picture ({error})") from None
    return torch.from_numpy(values).permute(2, 0, 1).float() / 255


def check_images(images: Tensor, who: str) -> None:
    """Raise DatoError, which names `who`, unless these are float images (n, 3, H, W) in [0, 1]. NaN passes."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        shape = tuple(images.shape)
        raise DatoError(f"{who} needs float images of shape (n, 3, H, W), not {images.dtype} {shape}")
    if images.numel() and (images.min() < -1e-3 or images.max() > 1 + 1e-3):
        raise DatoError(f"{who} needs images with values in [0, 1]")


def in_8_bits(images: Tensor) -> Tensor:
    """Return images (..., 3, H, W) in [0, 1] as files hold them: uint8, on the CPU."""
    return (images.detach().float().nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def picture(image: Tensor) -> Image.Image:
    """Return an image (3, H, W) in [0, 1] as a picture of 8 bits."""
    return Image.fromarray(in_8_bits(image).permute(1, 2, 0).contiguous().numpy())


def png(image: Tensor, texts: Mapping[str, str] | None = None) -> bytes:
    """Return an image (3, H, W) in [0, 1] as the bytes of a PNG file.

    Args:
        image: The image.
        texts: What the file says of itself, by keyword; as UTF-8 (iTXt).
    """
    said, data = PngInfo(), io.BytesIO()
    for keyword, text in (texts or {}).items():
        said.add_itxt(keyword, text)
    picture(image).save(data, "png", pnginfo=said)
    return data.getvalue()
