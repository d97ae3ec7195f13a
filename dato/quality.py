"""Quality metrics: images, prompts and reference images in, one number out, higher is better.

Every metric is an entry of `METRICS`, a class that is made from a `Setup`. ImageReward and Inception-FID are to
be two more entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from dato import emoji_sd
from dato.clip import Clip
from dato.errors import DatoError


class QualityMetric(Protocol):
    """One way to judge images.

    Attributes:
        name: What reports call it.
        lower_is_better: Whether the field's own number has the other sign; reports then show it with that sign.

    One that is a mean over images is a `MeanOverImages`.
    """

    name: str
    lower_is_better: bool

    def __init__(self, setup: Setup) -> None: ...

    def __call__(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> float:
        """Judge images (n, 3, H, W) in [0, 1], made for `prompts`, beside stock's `references` of the same shape."""
        ...


@dataclass(frozen=True)
class Setup:
    """What metrics are made from.

    Attributes:
        clip_id: A CLIP checkpoint: folder or hub id.
        statistics: A safetensors file with `mean` (F,) and `covariance` (F, F) of real pictures' CLIP features.
        device: Where the metrics' models run.
    """

    clip_id: str | Path = emoji_sd.CLIP
    statistics: str | Path | None = emoji_sd.STATISTICS
    device: str | torch.device = "cpu"

    @cached_property
    def clip(self) -> Clip:
        """The CLIP model, loaded when it is first needed and only once."""
        return Clip(self.clip_id, device=self.device)


class MeanOverImages:
    """A metric that judges each image by itself."""

    def per_image(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """(n,) the values for images, prompts and references as in `QualityMetric`."""
        raise TypeError(f"{type(self).__name__} must say how it judges an image")

    def __call__(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> float:
        """See `QualityMetric`."""
        return self.per_image(images, prompts, references).mean().item()


class ClipScore(MeanOverImages):
    """Mean of 100 max(0, cos(image, prompt)) (Hessel et al., EMNLP 2021)."""

    name, lower_is_better = "clip-score", False

    def __init__(self, setup: Setup) -> None:
        self._clip = setup.clip

    def per_image(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `MeanOverImages`."""
        return self._clip.score(images, prompts)


class Psnr(MeanOverImages):
    """Fidelity to stock's images in dB, the mean over images; images that are equal count as 100 dB."""

    name, lower_is_better = "psnr", False
    CEILING = 100.0

    def __init__(self, setup: Setup) -> None:
        pass

    def per_image(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `MeanOverImages`."""
        values = peak_signal_noise_ratio(images, references, data_range=1.0, dim=(1, 2, 3), reduction="none")
        return values.clamp(max=self.CEILING)


class Ssim(MeanOverImages):
    """Fidelity to stock's images: structural similarity (Wang et al., 2004), the mean over images, at most 1."""

    name, lower_is_better = "ssim", False

    def __init__(self, setup: Setup) -> None:
        pass

    def per_image(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `MeanOverImages`."""
        return structural_similarity_index_measure(images, references, data_range=1.0, reduction="none")


class FrechetDistance:
    """Minus the Fréchet distance between CLIP features of the images and of real pictures (pytorch-fid's function).

    CLIP features are of unit length, so the distance is scaled by 100 to be readable. With few images it is biased
    upwards, the more the fewer: compare only numbers from equally many images.
    """

    name, lower_is_better = "frechet", True

    def __init__(self, setup: Setup) -> None:
        if setup.statistics is None:
            raise DatoError("the quality metric 'frechet' needs statistics of real pictures: give --statistics FILE")
        try:
            real = load_file(setup.statistics)
            self._mean, self._covariance = real["mean"].double().numpy(), real["covariance"].double().numpy()
        except (OSError, SafetensorError, KeyError) as error:
            raise DatoError(
                f"{setup.statistics}: no statistics of real pictures (safetensors with mean, covariance): {error}"
            ) from None
        self._clip = setup.clip

    def __call__(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> float:
        """See `QualityMetric`."""
        if len(images) < 2:
            raise DatoError("the quality metric 'frechet' needs at least 2 images, better hundreds: give --images")
        features = self._clip.image_features(images).double()
        if not features.isfinite().all():
            return math.nan
        mean, covariance = features.mean(0).cpu().numpy(), torch.cov(features.T).cpu().numpy()
        return -100 * float(calculate_frechet_distance(mean, covariance, self._mean, self._covariance))


METRICS: dict[str, type[QualityMetric]] = {metric.name: metric for metric in (ClipScore, Psnr, Ssim, FrechetDistance)}


def load_metric(name: str, setup: Setup) -> QualityMetric:
    """Make the metric of that name. Raises DatoError if there is none, or it lacks something."""
    if name not in METRICS:
        raise DatoError(f"unknown quality metric {name!r}; known are {', '.join(METRICS)}")
    return METRICS[name](setup)


def shown(metric: QualityMetric | type[QualityMetric], value: float) -> float:
    """A value as the field writes it: a distance positive."""
    return -value if metric.lower_is_better else value
