"""The quality metrics by name."""

from __future__ import annotations

from dato.errors import DatoError
from dato.metrics.base import Metric, Setup
from dato.metrics.clip import ClipScore, FrechetDistance, PickScore
from dato.metrics.fid import Fid, Kid
from dato.metrics.fidelity import Lpips, Psnr, Ssim
from dato.metrics.image_reward import ImageReward

METRICS: dict[str, type[Metric]] = {
    metric.name: metric for metric in (Psnr, Ssim, ClipScore, ImageReward, PickScore, Fid, Kid, FrechetDistance, Lpips)
}


def load_metric(name: str, setup: Setup) -> Metric:
    """Make the metric of that name. Raises DatoError if there is none, or it lacks something."""
    if name not in METRICS:
        raise DatoError(f"unknown quality metric {name!r}; known are {', '.join(METRICS)}")
    return METRICS[name](setup)


def shown(metric: Metric | type[Metric], value: float) -> float:
    """A value as the field writes it: a distance positive."""
    return -value if metric.lower_is_better else value
