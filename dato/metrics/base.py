"""What a quality metric is: a measurement of each image, and one number for all of them, higher is better.

Two steps, because tens of thousands of images do not fit in memory at once: measurements are made in batches, may be
kept on disk, and are summed up at the end.
"""

from __future__ import annotations

import contextlib
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from dato import emoji_sd
from dato.errors import DatoError, first_line

if TYPE_CHECKING:
    from dato.metrics.clip_model import Clip
    from dato.metrics.inception import Inception


@dataclass(frozen=True)
class Setup:
    """What metrics are made from; each is loaded when a metric first needs it, never at import.

    Attributes:
        clip: A CLIP checkpoint in transformers' layout: folder or hub id.
        statistics: A safetensors file with `mean` (F,) and `covariance` (F, F) of real pictures' CLIP features.
        image_reward: ImageReward's checkpoint: hub id, folder, or file.
        image_reward_backend: What runs it: `transformers`, or `package`, its authors' own, where that imports.
        pick_score: A preference model that transformers' CLIP class loads: folder or hub id.
        inception: Weights of pytorch-fid's InceptionV3, a file; None: where pytorch-fid itself keeps and fetches them.
        real: Real pictures for FID and KID: a folder, or for FID an .npz that pytorch-fid made.
        device: Where the metrics' models run.
    """

    clip: str | Path = emoji_sd.CLIP
    statistics: str | Path | None = emoji_sd.STATISTICS
    image_reward: str | Path = "THUDM/ImageReward"
    image_reward_backend: str = "transformers"
    pick_score: str | Path = "yuvalkirstain/PickScore_v1"
    inception: str | Path | None = None
    real: str | Path | None = None
    device: str | torch.device = "cpu"

    @cached_property
    def clip_model(self) -> Clip:
        """The CLIP model, loaded once for all metrics."""
        from dato.metrics.clip_model import Clip

        return Clip(self.clip, device=self.device)

    @cached_property
    def inception_model(self) -> Inception:
        """InceptionV3, loaded once for all metrics."""
        from dato.metrics.inception import Inception

        return Inception(self.inception, device=self.device)

    @cached_property
    def real_features(self) -> Tensor:
        """(n, 2048) InceptionV3's features of the folder of real pictures, measured once for all metrics."""
        from dato.metrics.fid import folder_features

        return folder_features(Path(self.real), self.inception_model)


# What loading a file of weights raises if it is something else, or is cut off.
UNREADABLE = (OSError, RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, KeyError, TypeError, ValueError)


@contextlib.contextmanager
def needs_weights(name: str, url: str) -> Iterator[None]:
    """Within this block torch's hub fetches a file, or finds it in its cache. Raises DatoError if neither works."""
    folder = Path(torch.hub.get_dir(), "checkpoints")
    try:
        yield
    except UNREADABLE as error:
        reason = first_line(error)
        raise DatoError(f"the metric '{name}' needs a file: fetch {url} and put it into {folder} ({reason})") from None


class Metric(ABC):
    """One way to judge images.

    Attributes:
        name: What options and files call it.
        lower_is_better: Whether the field's own number has the other sign; reports then show it with that sign.
    """

    name: ClassVar[str]
    lower_is_better: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, setup: Setup) -> None: ...

    @abstractmethod
    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """Measure each image by itself.

        Args:
            images: (n, 3, H, W) in [0, 1].
            prompts: n, what they were made for.
            references: (n, 3, H, W) in [0, 1], stock's images from the same noise.

        Returns:
            (n,) or (n, F) floats, on the CPU.
        """

    @abstractmethod
    def summary(self, measured: Tensor) -> float:
        """The metric of all images, from their measurements put together along the first axis; higher is better."""

    def precision_error(self, images: Tensor, prompts: Sequence[str]) -> float:
        """By how much measurements of these images differ, at most, from those in float32; 0 where they are that."""
        return 0.0

    def __call__(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> float:
        """Judge images at once; arguments as for `measure`."""
        return self.summary(self.measure(images, prompts, references))


class MeanOverImages(Metric):
    """A metric whose measurement of an image is its value for that image."""

    def summary(self, measured: Tensor) -> float:
        """The mean of (n,) values."""
        return measured.double().mean().item()
