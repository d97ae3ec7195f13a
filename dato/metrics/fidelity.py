"""Fidelity: how near images are to those that stock makes from the same noise (torchmetrics' functions)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchvision.models import AlexNet_Weights

from dato.metrics.base import MeanOverImages, Setup, needs_weights

BATCH = 16  # images on the device at a time


class Psnr(MeanOverImages):
    """Peak signal-to-noise ratio in dB; images that are equal count as 100 dB."""

    name = "psnr"
    CEILING = 100.0

    def __init__(self, setup: Setup) -> None:
        self._device = setup.device

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`."""
        psnr = partial(peak_signal_noise_ratio, data_range=1.0, dim=(1, 2, 3), reduction="none")
        return _in_batches(psnr, images, references, self._device).clamp(max=self.CEILING)


class Ssim(MeanOverImages):
    """Structural similarity (Wang et al., 2004), at most 1."""

    name = "ssim"
    SMALLEST = 16  # pixels; its window has 11

    def __init__(self, setup: Setup) -> None:
        self._device = setup.device

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`; smaller images are enlarged."""

        def ssim(*pair: Tensor) -> Tensor:
            values = structural_similarity_index_measure(
                *(_enlarged(x, self.SMALLEST) for x in pair), data_range=1.0, reduction="none"
            )
            return values.reshape(-1)  # of one image it gives a number

        return _in_batches(ssim, images, references, self._device)


class Lpips(MeanOverImages):
    """Learned perceptual distance by AlexNet's features (Zhang et al., CVPR 2018), 0 for equal images.

    Raises:
        DatoError: AlexNet's weights are not in torch's cache and cannot be fetched.
    """

    name, lower_is_better = "lpips", True
    SMALLEST = 64  # pixels; AlexNet's strides leave nothing of images much smaller

    def __init__(self, setup: Setup) -> None:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        def load(url: str, **_: Any) -> Mapping[str, Tensor]:
            return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)

        # torchvision would unpickle whatever is in the file.
        safely = mock.patch("torchvision.models._api.load_state_dict_from_url", load)
        with needs_weights(self.name, AlexNet_Weights.IMAGENET1K_V1.url), safely:
            network = LearnedPerceptualImagePatchSimilarity("alex").net
        self._network, self._device = network.to(setup.device), setup.device

    @torch.no_grad()
    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`; smaller images are enlarged."""
        return -_in_batches(self._distance, images, references, self._device)

    def _distance(self, images: Tensor, references: Tensor) -> Tensor:
        images, references = (_enlarged(x, self.SMALLEST) for x in (images, references))
        return self._network(images, references, normalize=True).flatten()


def _enlarged(images: Tensor, smallest: int) -> Tensor:
    """Images (n, 3, H, W) whose shorter side has at least `smallest` pixels."""
    scale = smallest / min(images.shape[-2:])
    return images if scale <= 1 else F.interpolate(images, scale_factor=scale, mode="nearest")


def _in_batches(
    measure: Callable[[Tensor, Tensor], Tensor], images: Tensor, references: Tensor, device: str | torch.device
) -> Tensor:
    """(n,) what `measure` says of images and references (n, 3, H, W), a few at a time, on a device."""
    pairs = zip(images.split(BATCH), references.split(BATCH), strict=True)
    return torch.cat([torch.zeros(0), *(measure(a.to(device), b.to(device)).float().cpu() for a, b in pairs)])
