"""Fidelity: how near images are to the stock pipeline's images from the same noise (torchmetrics' functions)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from dato.metrics.base import MeanOverImages, Setup, needs_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BATCH = 16  # images on the device at a time


class Psnr(MeanOverImages):
    """Peak signal-to-noise ratio in dB. Equal images count as 100 dB."""

    name, label, against_stock = "psnr", "PSNR (dB)", True
    CEILING = 100.0

    def __init__(self, setup: Setup) -> None:
        self._device = setup.device

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`."""
        from torchmetrics.functional.image import peak_signal_noise_ratio

        psnr = partial(peak_signal_noise_ratio, data_range=1.0, dim=(1, 2, 3), reduction="none")
        return _in_batches(psnr, images, references, self._device).clamp(max=self.CEILING)


class Ssim(MeanOverImages):
    """Structural similarity (Wang et al., 2004), at most 1."""

    name, label, digits, against_stock = "ssim", "SSIM", 4, True
    SMALLEST = 16  # pixels; the window has 11

    def __init__(self, setup: Setup) -> None:
        self._device = setup.device

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`. Smaller images are enlarged."""
        from torchmetrics.functional.image import structural_similarity_index_measure

        def ssim(*pair: Tensor) -> Tensor:
            values = structural_similarity_index_measure(
                *(_enlarged(x, self.SMALLEST) for x in pair), data_range=1.0, reduction="none"
            )
            return values.reshape(-1)  # torchmetrics gives a scalar for one image

        return _in_batches(ssim, images, references, self._device)


class Lpips(MeanOverImages):
    """Learned perceptual distance by AlexNet's features (Zhang et al., CVPR 2018), 0 for equal images.

    Raises:
        DatoError: if AlexNet's weights are not in torch's cache and cannot be downloaded.
    """

    name, label, digits, lower_is_better, against_stock = "lpips", "LPIPS", 4, True, True
    SMALLEST = 64  # pixels; AlexNet's strides leave nothing of much smaller images

    def __init__(self, setup: Setup) -> None:
        import torch
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import AlexNet_Weights

        url = AlexNet_Weights.IMAGENET1K_V1.url
        with needs_weights(self.name, url):
            # torchvision runs any code that is pickled in the file. This refuses a file that holds more than weights.
            torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
            network = LearnedPerceptualImagePatchSimilarity("alex").net
        self._network, self._device = network.to(setup.device), setup.device

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`. Smaller images are enlarged."""
        import torch

        with torch.no_grad():
            return -_in_batches(self._distance, images, references, self._device)

    def _distance(self, images: Tensor, references: Tensor) -> Tensor:
        images, references = (_enlarged(x, self.SMALLEST) for x in (images, references))
        return self._network(images, references, normalize=True).flatten()


def _enlarged(images: Tensor, smallest: int) -> Tensor:
    """Return images (n, 3, H, W), enlarged if their shorter side has fewer than `smallest` pixels."""
    from torch.nn.functional import interpolate

    scale = smallest / min(images.shape[-2:])
    return images if scale <= 1 else interpolate(images, scale_factor=scale, mode="nearest")


def _in_batches(
    measure: Callable[[Tensor, Tensor], Tensor], images: Tensor, references: Tensor, device: str | torch.device
) -> Tensor:
    """Return (n,) values of images and references (n, 3, H, W), measured in batches on a device."""
    import torch

    pairs = zip(images.split(BATCH), references.split(BATCH), strict=True)
    return torch.cat([torch.zeros(0), *(measure(a.to(device), b.to(device)).float().cpu() for a, b in pairs)])
