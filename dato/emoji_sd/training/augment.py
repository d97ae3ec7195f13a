"""Random changes to pictures for the training of CLIP. The generator is on the CPU, so all devices draw the same."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator, device: torch.device) -> Tensor:
    """Return uniform random numbers in [low, high)."""
    return (torch.rand(shape, generator=generator) * (high - low) + low).to(device)


def jitter(cutouts: Tensor, generator: Generator) -> Tensor:
    """Shift cut-outs (B, 4, H, W) in [0, 1] by up to 10%, and scale them by 0.8 to 1.15."""
    count, device = len(cutouts), cutouts.device
    scale = uniform((count,), 0.8, 1.15, generator, device)
    shift = uniform((count, 2), -0.2, 0.2, generator, device)  # in affine_grid's units a picture is 2 wide
    matrix = torch.zeros(count, 2, 3, device=device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 / scale
    matrix[:, :, 2] = shift
    grid = F.affine_grid(matrix, list(cutouts.shape), align_corners=False)
    alpha = cutouts[:, 3:]
    # Multiply by alpha first. Otherwise the colours of transparent pixels would change the edge.
    moved = F.grid_sample(torch.cat((cutouts[:, :3] * alpha, alpha), 1), grid, align_corners=False)
    return torch.cat((moved[:, :3] / moved[:, 3:].clamp(min=1e-4), moved[:, 3:]), 1).clamp(0, 1)


def noise(images: Tensor, generator: Generator, most: float = 0.03) -> Tensor:
    """Add white noise. Its standard deviation is drawn for each picture, from 0 to `most`."""
    amount = uniform((len(images), 1, 1, 1), 0, most, generator, images.device)
    return (images + amount * torch.randn(images.shape, generator=generator).to(images)).clamp(0, 1)


def degrade(images: Tensor, generator: Generator) -> Tensor:
    """Change pictures as a weak image generator does: blur, low-frequency noise, and slightly wrong colours."""
    count, device = len(images), images.device
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, uniform((count, 1, 1, 1), 0, 1, generator, device))
    coarse = torch.randn((count, 3, 8, 8), generator=generator).to(device)
    coarse = F.interpolate(coarse, images.shape[-2:], mode="bicubic")
    images = images + coarse * uniform((count, 1, 1, 1), 0, 0.08, generator, device)
    return (images + uniform((count, 3, 1, 1), -0.05, 0.05, generator, device)).clamp(0, 1)
