"""The results of stock, the unchanged pipeline. Every other result is compared with them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dato.point import Point


@dataclass(frozen=True)
class Stock:
    """Stock's results.

    Attributes:
        point: Stock as a point, the baseline.
        images: (n, 3, H, W) float32 in [0, 1], one for each prompt: the references of fidelity metrics.
        sample: The first images side by side, as a picture file.
    """

    point: Point
    images: Tensor
    sample: bytes
