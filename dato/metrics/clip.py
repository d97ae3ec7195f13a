"""Metrics by models in CLIP's form: CLIP score, PickScore, and a Fréchet distance of CLIP features."""

from __future__ import annotations

from collections.abc import Sequence

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dato.errors import DatoError
from dato.metrics.base import MeanOverImages, Metric, Setup
from dato.metrics.clip_model import Clip
from dato.metrics.frechet import frechet_distance


class ClipScore(MeanOverImages):
    """100 max(0, cos(image, prompt)) (Hessel et al., EMNLP 2021)."""

    name = "clip-score"

    def __init__(self, setup: Setup) -> None:
        self._clip = setup.clip_model

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`."""
        return self._clip.score(images, prompts).cpu()


class PickScore(MeanOverImages):
    """What people would choose, by a CLIP trained on their choices (Kirstain et al., NeurIPS 2023).

    The cosine times the model's own scale, as published. Any such model that transformers' CLIP class loads will do.
    """

    name = "pick-score"
    PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # PickScore's own, where its checkpoint has none

    def __init__(self, setup: Setup) -> None:
        self._clip = Clip(setup.pick_score, device=setup.device, processor=self.PROCESSOR)

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`."""
        return (self._clip.cosine(images, prompts) * self._clip.scale).cpu()


class FrechetDistance(Metric):
    """The Fréchet distance between CLIP features of the images and of real pictures (pytorch-fid's function).

    CLIP features are of unit length, so the distance is scaled by 100 to be readable. With few images it is biased
    upwards, the more the fewer: compare only numbers from equally many images.

    Raises:
        DatoError: there are no such statistics.
    """

    name, lower_is_better = "frechet", True

    def __init__(self, setup: Setup) -> None:
        if setup.statistics is None:
            raise DatoError("the quality metric 'frechet' needs statistics of real pictures: give --statistics FILE")
        try:
            real = load_file(setup.statistics)
            self._real = real["mean"].double().numpy(), real["covariance"].double().numpy()
        except (OSError, SafetensorError, KeyError) as error:
            raise DatoError(
                f"{setup.statistics}: no statistics of real pictures (safetensors with mean, covariance): {error}"
            ) from None
        self._clip = setup.clip_model
        known, own = self._real[0].shape, (self._clip.model.config.projection_dim,)
        if known != own or self._real[1].shape != own * 2:
            raise DatoError(
                f"{setup.statistics} is of {known[0] if known else 0} features and {setup.clip} has {own[0]}: give "
                "--statistics of this CLIP's features, or leave out 'frechet'"
            )

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`: (n, F) CLIP features."""
        return self._clip.image_features(images).cpu()

    def summary(self, measured: Tensor) -> float:
        """See `Metric`."""
        if len(measured) < 2:
            raise DatoError("the quality metric 'frechet' needs at least 2 images, better hundreds: give --images")
        return -100 * frechet_distance(measured, self._real)
