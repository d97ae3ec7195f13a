"""FID and KID: how far the images' distribution is from that of real pictures, by InceptionV3's features."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dato.errors import DatoError
from dato.metrics.base import Metric, Option, Setup

if TYPE_CHECKING:
    from torch import Tensor

    from dato.metrics.frechet import Moments
    from dato.metrics.inception import Inception

# A covariance of fewer images than the 2048 features is singular. Of somewhat more images it is poor.
FEW = 2 * 2048
INCEPTION = Option(
    "inception",
    "Weights of pytorch-fid's InceptionV3 for 'fid' and 'kid'.",
    shown_default="in torch's cache, or fetched",
)
REAL = Option(
    "real",
    "Real pictures to compare with: a folder; for 'fid' also an .npz of pytorch-fid.",
    is_measured_with=False,
)


def inception_model(setup: Setup) -> Inception:
    """Return the InceptionV3 of a setup, loaded once for all metrics."""
    from dato.metrics.inception import Inception

    return setup.shared("inception", lambda: Inception(setup.get(INCEPTION), device=setup.device))


class Fid(Metric):
    """Fréchet Inception distance (Heusel et al., NeurIPS 2017), the same number as pytorch-fid's.

    With n images it is too high by about c / n, where c depends on the pictures (Bińkowski et al., ICLR 2018). Compare
    only numbers from equally many images, or use `Kid`.

    Raises:
        DatoError: if there are no real pictures or statistics to compare with, or no weights.
    """

    name, label, lower_is_better = "fid", "FID", True
    options = (INCEPTION, REAL)

    def __init__(self, setup: Setup) -> None:
        from dato.metrics.real_pictures import read_moments

        self._path, self._setup = _real_path(self.name, setup), setup
        self._moments = None if _has_pictures(self.name, self._path) else read_moments(self._path)
        self._inception = inception_model(setup)

    @cached_property
    def real(self) -> Moments:
        """Mean (2048,) and covariance (2048, 2048) of the real pictures, measured for the first summary."""
        from dato.metrics.frechet import moments

        if self._moments is not None:
            return self._moments
        return moments(_real_features(self._path, self._setup))

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`: (n, 2048)."""
        return self._inception.features(images)

    def summary(self, measured: Tensor) -> float:
        """See `Metric`. Warn if there are so few images that the bias is large."""
        from dato.metrics.frechet import frechet_distance

        if len(measured) < 2:
            raise DatoError("the metric 'fid' needs at least 2 images, better thousands")
        if len(measured) < FEW:
            warnings.warn(
                f"FID of {len(measured)} images is biased upwards (fewer than {FEW}): compare it only with FIDs of as "
                "many images, or use KID, which has no bias",
                stacklevel=2,
            )
        return -frechet_distance(measured, self.real)


class Kid(Metric):
    """Kernel Inception distance (Bińkowski et al., ICLR 2018), which has no bias. torchmetrics' estimate, times 1000.

    Raises:
        DatoError: if there is no folder of real pictures, or no weights.
    """

    name, label, digits, lower_is_better = "kid", "KID x 1000", 3, True
    options = (INCEPTION, REAL)
    SUBSETS, SUBSET = 100, 1000  # the paper's

    def __init__(self, setup: Setup) -> None:
        self._path, self._setup = _real_path(self.name, setup), setup
        if not _has_pictures(self.name, self._path):
            raise DatoError(f"{self._path}: the metric 'kid' compares with pictures, not statistics: give a folder")
        self._inception = inception_model(setup)

    @cached_property
    def real(self) -> Tensor:
        """(m, 2048) features of the real pictures, measured for the first summary."""
        return _real_features(self._path, self._setup)

    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """See `Metric`: (n, 2048)."""
        return self._inception.features(images)

    def summary(self, measured: Tensor) -> float:
        """See `Metric`. The subsets are the same in every summary."""
        import torch
        from torchmetrics.image.kid import KernelInceptionDistance

        size = min(self.SUBSET, len(measured), len(self.real))
        if size < 2:
            raise DatoError("the metric 'kid' needs at least 2 images, better thousands")
        if not measured.isfinite().all():
            return math.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchmetrics warns that all features are in memory
            distance = KernelInceptionDistance(torch.nn.Identity(), subsets=self.SUBSETS, subset_size=size)
        distance.update(self.real, real=True)
        distance.update(measured, real=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return -1000 * distance.compute()[0].item()


def _real_path(name: str, setup: Setup) -> Path:
    given = setup.get(REAL)
    if given is None:
        raise DatoError(
            f"the metric '{name}' compares with real pictures: give a folder as `real` (or, for fid, an .npz)"
        )
    path = Path(given)
    if not path.exists():
        raise DatoError(f"{path}: no such folder or file of real pictures")
    return path


def _has_pictures(name: str, path: Path) -> bool:
    """Return whether it is a folder of pictures. Raise DatoError if it is one and has fewer than two."""
    from dato.metrics.real_pictures import pictures_in

    pictures = pictures_in(path)
    if len(pictures) == 1:
        raise DatoError(f"{path}: the metric '{name}' needs at least 2 real pictures, better thousands")
    return bool(pictures)


def _real_features(folder: Path, setup: Setup) -> Tensor:
    """Return (n, 2048) features of the real pictures, measured once for all metrics of the setup."""
    from dato.metrics.real_pictures import folder_features

    return setup.shared("real features", lambda: folder_features(folder, inception_model(setup)))
