"""Metrics by models in CLIP's form: CLIP score, PickScore, and a Fréchet distance of CLIP features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dato import emoji_sd
from dato.errors import DatoError
from dato.metrics.base import MeanOverImages, Metric, Option, Setup

if TYPE_CHECKING:
    from torch import Tensor

    from dato.metrics.clip_model import Clip
    from dato.metrics.frechet import Moments

CLIP = Option(
    "clip",
    "CLIP checkpoint (folder or hub id) for the CLIP score and features.",
    default="openai/clip-vit-base-patch16",
    embedded_default=emoji_sd.CLIP,
    shown_default="the embedded one; openai/clip-vit-base-patch16 for other models",
)
STATISTICS = Option(
    "statistics",
    "Statistics of real pictures' CLIP features for 'frechet': safetensors with mean and covariance.",
    embedded_default=emoji_sd.STATISTICS,
    shown_default="the embedded ones, for the embedded model",
    is_measured_with=False,
)
PICK_SCORE = Option(
    "pick_score", "A preference model in CLIP's form: hub id or folder.", default="yuvalkirstain/PickScore_v1"
)


def clip_model(setup: Setup) -> Clip:
    """Return the CLIP model of a setup, loaded once for all metrics."""
    from dato.metrics.clip_model import Clip

    return setup.shared("clip", lambda: Clip(setup.get(CLIP), device=setup.device))


class ClipScore(MeanOverImages):
    """100 max(0, cos(image, prompt)) (Hessel et al., EMNLP 2021)."""

    name, label = "clip-score", "CLIP score"
    options = (CLIP,)

    def __init__(self, setup: Setup) -> None:
        self._clip = clip_model(setup)

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`."""
        return self._clip.score(images, prompts).cpu()


class PickScore(MeanOverImages):
    """The score of a CLIP model that was trained on people's choices between images (Kirstain et al., NeurIPS 2023).

    It is the cosine times the model's own scale, as published. Any model that transformers' CLIP class loads can be
    given.
    """

    name, label = "pick-score", "PickScore"
    options = (PICK_SCORE,)
    PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # PickScore's own, for a checkpoint that has none

    def __init__(self, setup: Setup) -> None:
        from dato.metrics.clip_model import Clip

        self._clip = Clip(setup.get(PICK_SCORE), device=setup.device, processor=self.PROCESSOR)

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`."""
        return (self._clip.cosine(images, prompts) * self._clip.scale).cpu()


class FrechetDistance(Metric):
    """The Fréchet distance between CLIP features of the images and of real pictures (pytorch-fid's function).

    CLIP features have unit length. The distance is scaled by 100 to be readable. It is biased upwards, and more so with
    fewer images. Compare only numbers from equally many images.

    Raises:
        DatoError: if there are no such statistics, or they are of another CLIP.
    """

    name, label, lower_is_better = "frechet", "Fréchet distance", True
    options = (CLIP, STATISTICS)

    def __init__(self, setup: Setup) -> None:
        path = setup.get(STATISTICS)
        if path is None:
            raise DatoError(
                "the quality metric 'frechet' needs statistics of real pictures: give a file as `statistics`"
            )
        self._real = _read_statistics(path)
        self._clip = clip_model(setup)
        given, expected = self._real[0].shape, (self._clip.model.config.projection_dim,)
        if given != expected or self._real[1].shape != expected * 2:
            raise DatoError(
                f"{path} is of {given[0] if given else 0} features and {setup.get(CLIP)} has {expected[0]}: give "
                "statistics of this CLIP's features, or leave out 'frechet'"
            )

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`: (n, F) CLIP features."""
        return self._clip.image_features(images).cpu()

    def summary(self, measured: Tensor) -> float:
        """See `Metric`."""
        from dato.metrics.frechet import frechet_distance

        if len(measured) < 2:
            raise DatoError("the quality metric 'frechet' needs at least 2 images, better hundreds")
        return -100 * frechet_distance(measured, self._real)


def _read_statistics(path: str) -> Moments:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        statistics = load_file(path)
        return statistics["mean"].double().numpy(), statistics["covariance"].double().numpy()
    except (OSError, SafetensorError, KeyError) as error:
        raise DatoError(
            f"{path}: no statistics of real pictures (safetensors with mean, covariance): {error}"
        ) from None
