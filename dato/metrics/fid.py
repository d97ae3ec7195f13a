"""FID and KID: how far the distribution of images is from that of real pictures, by InceptionV3's features."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from pytorch_fid.fid_score import IMAGE_EXTENSIONS
from torch import Tensor
from torchmetrics.image.kid import KernelInceptionDistance

from dato.errors import DatoError
from dato.metrics.base import Metric, Setup
from dato.metrics.frechet import Moments, frechet_distance, moments
from dato.metrics.inception import FEATURES, Inception
from dato.utils.images import read_image

FEW = 2 * FEATURES  # of fewer images than features a covariance is singular, of somewhat more it is poor


class Fid(Metric):
    """Fréchet Inception distance (Heusel et al., NeurIPS 2017), pytorch-fid's number for the same pictures.

    With n images it is too high by about c / n, with another c for every set of pictures (Bińkowski et al., ICLR 2018):
    compare only numbers from equally many images, and see `Kid`.

    Raises:
        DatoError: there are no real pictures or statistics to compare with, or no weights.
    """

    name, lower_is_better = "fid", True

    def __init__(self, setup: Setup) -> None:
        self._path, self._setup = _real(self.name, setup), setup
        self._given = None if pictures_in(self._path) else _statistics(self._path)
        self._inception = setup.inception_model

    @cached_property
    def real(self) -> Moments:
        """Mean (2048,) and covariance (2048, 2048) of the real pictures, measured when the first summary is made."""
        if self._given is not None:
            return self._given
        features = self._setup.real_features
        if len(features) < 2:
            raise DatoError(f"{self._path}: the metric 'fid' needs at least 2 real pictures, better thousands")
        return moments(features)

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`: (n, 2048)."""
        return self._inception.features(images)

    def summary(self, measured: Tensor) -> float:
        """See `Metric`. Warns where there are so few images that bias rules the number."""
        if len(measured) < 2:
            raise DatoError("the metric 'fid' needs at least 2 images, better thousands: give --images")
        if len(measured) < FEW:
            warnings.warn(
                f"FID of {len(measured)} images is biased upwards (fewer than {FEW}): compare it only with FIDs of as "
                "many images, or use KID, which has no bias",
                stacklevel=2,
            )
        return -frechet_distance(measured, self.real)


class Kid(Metric):
    """Kernel Inception distance (Bińkowski et al., ICLR 2018), without bias; torchmetrics' estimate, times 1000.

    Raises:
        DatoError: there is no folder of real pictures, or no weights.
    """

    name, lower_is_better = "kid", True
    SUBSETS, SUBSET = 100, 1000  # the paper's

    def __init__(self, setup: Setup) -> None:
        self._path, self._setup = _real(self.name, setup), setup
        if not pictures_in(self._path):
            raise DatoError(f"{self._path}: the metric 'kid' compares with pictures, no statistics: give a folder")
        self._inception = setup.inception_model

    @cached_property
    def real(self) -> Tensor:
        """(m, 2048) features of the real pictures, measured when the first summary is made."""
        return self._setup.real_features

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`: (n, 2048)."""
        return self._inception.features(images)

    def summary(self, measured: Tensor) -> float:
        """See `Metric`; the same subsets for everybody."""
        size = min(self.SUBSET, len(measured), len(self.real))
        if size < 2:
            raise DatoError("the metric 'kid' needs at least 2 images and 2 real pictures")
        if not measured.isfinite().all():
            return math.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it holds all features; we know
            distance = KernelInceptionDistance(torch.nn.Identity(), subsets=self.SUBSETS, subset_size=size)
        distance.update(self.real, real=True)
        distance.update(measured, real=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return -1000 * distance.compute()[0].item()


def folder_features(folder: Path, inception: Inception) -> Tensor:
    """(n, 2048) features of a folder's pictures in the order of their names; none of its subfolders.

    Raises:
        DatoError: there are no pictures, or one cannot be read.
    """
    return torch.cat([inception.features(batch) for batch in _batches(pictures_in(folder), inception.BATCH)])


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder as pytorch-fid finds them; none if it is no folder. Raises DatoError if it has none."""
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.iterdir() if path.suffix.lstrip(".") in IMAGE_EXTENSIONS)
    if not paths:
        raise DatoError(f"{folder}: no pictures there ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    return paths


def _batches(paths: Iterable[Path], size: int) -> Iterable[Tensor]:
    """Neighbours of one size together, so that pictures of many sizes can be in one folder."""
    waiting: list[Tensor] = []
    for path in paths:
        image = read_image(path)
        if waiting and (len(waiting) == size or waiting[0].shape != image.shape):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(image)
    if waiting:
        yield torch.stack(waiting)


def _real(name: str, setup: Setup) -> Path:
    if setup.real is None:
        raise DatoError(f"the metric '{name}' compares with real pictures: give --real FOLDER (or, for fid, an .npz)")
    path = Path(setup.real)
    if not path.exists():
        raise DatoError(f"{path}: no such folder or file of real pictures")
    return path


def _statistics(path: Path) -> Moments:
    try:
        with np.load(path, allow_pickle=False) as found:
            mean, covariance = found["mu"], found["sigma"]
        if mean.shape != (FEATURES,) or covariance.shape != (FEATURES, FEATURES):
            raise ValueError(f"mu {mean.shape}, sigma {covariance.shape}")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DatoError(
            f"{path}: no statistics of pytorch-fid (an .npz with mu ({FEATURES},) and sigma): {error}"
        ) from None
    return mean, covariance
