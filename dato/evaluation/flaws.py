"""Flaws: what makes generated images unfit to be judged."""

from __future__ import annotations

from torch import Tensor

from dato.errors import DatoError

OUT_OF_MEMORY = "out of memory"  # the failure of a method that ran out of it
BLACK = 1 / 255  # an image is black if no value reaches this


def flaw(images: Tensor, references: Tensor) -> str | None:
    """Return what is wrong with these images, or None.

    Args:
        images: (n, 3, H, W), nominally in [0, 1].
        references: Stock's images, of the same shape. An image may be black only where its reference is.
    """
    if not images.isfinite().all():
        return "its images are not finite numbers"
    black = images.flatten(1).amax(1) < BLACK
    if (black & (references.flatten(1).amax(1) >= BLACK)).any():
        return "it gives black images"
    return None


def check_stock(images: Tensor) -> None:
    """Raise DatoError if stock's images (n, 3, H, W) are not finite: then nothing can be compared with them."""
    if not images.isfinite().all():
        raise DatoError("stock's images are not finite numbers: use the `dtype` float32 or bfloat16")
