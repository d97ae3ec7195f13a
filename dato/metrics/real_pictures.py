"""Real pictures to compare with: a folder of them, or the statistics of their features that pytorch-fid saved."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from pytorch_fid.fid_score import IMAGE_EXTENSIONS
from torch import Tensor

from dato.errors import DatoError
from dato.metrics.frechet import Moments
from dato.metrics.inception import FEATURES, Inception
from dato.utils.files import has_suffix
from dato.utils.images import read_image


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures of a folder, sorted. Return an empty list if it is no folder.

    They have pytorch-fid's suffixes, in small letters or in capitals. Subfolders are not read.

    Raises:
        DatoError: if the folder has no pictures.
    """
    if not folder.is_dir():
        return []
    suffixes = sorted(f".{name}" for name in IMAGE_EXTENSIONS)
    paths = sorted(path for path in folder.iterdir() if has_suffix(path, *suffixes))
    if not paths:
        raise DatoError(f"{folder}: no pictures there ({', '.join(suffixes)}); subfolders are not read")
    return paths


def folder_features(folder: Path, inception: Inception) -> Tensor:
    """Return (n, 2048) features of a folder's pictures in the order of their names. Subfolders are not read.

    Raises:
        DatoError: if there are no pictures, or one cannot be read.
    """
    return torch.cat([inception.features(batch) for batch in _batches(pictures_in(folder), inception.BATCH)])


def read_moments(path: Path) -> Moments:
    """Return mean (2048,) and covariance (2048, 2048) from an .npz of pytorch-fid. Raise DatoError if it is none."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = arrays["mu"], arrays["sigma"]
        if mean.shape != (FEATURES,) or covariance.shape != (FEATURES, FEATURES):
            raise ValueError(f"mu {mean.shape}, sigma {covariance.shape}")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DatoError(
            f"{path}: no statistics of pytorch-fid (an .npz with mu ({FEATURES},) and sigma): {error}"
        ) from None
    return mean, covariance


def _batches(paths: Iterable[Path], size: int) -> Iterable[Tensor]:
    """Yield batches (n, 3, H, W). A batch ends where the size of the pictures changes."""
    waiting: list[Tensor] = []
    for path in paths:
        image = read_image(path)
        if waiting and (len(waiting) == size or waiting[0].shape != image.shape):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(image)
    if waiting:
        yield torch.stack(waiting)
