"""Samples: a method's first images side by side, as one small picture file."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from dato.utils.images import picture

MAX_HEIGHT = 256  # pixels of a sample; higher images are made smaller
LOSSLESS_BELOW = 128  # pixels of height


def sample_of(images: Tensor, count: int = 4) -> bytes:
    """Return the first `count` of images (n, 3, H, W) in [0, 1] side by side, as a WebP file."""
    sample = picture(torch.cat(list(images[:count].clamp(0, 1)), dim=2))
    if sample.height > MAX_HEIGHT:
        width = sample.width * MAX_HEIGHT // sample.height
        sample = sample.resize((width, MAX_HEIGHT), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    sample.save(data, "webp", lossless=sample.height < LOSSLESS_BELOW, quality=90)
    return data.getvalue()
