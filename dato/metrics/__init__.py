"""Quality metrics: each judges images, by themselves or beside the stock pipeline's images from the same noise.

`METRICS` names them all, and `load_metric` makes one. A new metric is a class in a file of its own (see
`dato.metrics.base.Metric`) and an entry here: its label, its digits and its options come from the class.
Importing this package is cheap. A metric imports torch and its models when it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.metrics.base import Metric, Option, Setup
from dato.metrics.clip import ClipScore, FrechetDistance, PickScore
from dato.metrics.fid import Fid, Kid
from dato.metrics.fidelity import Lpips, Psnr, Ssim
from dato.metrics.image_reward import ImageReward

__all__ = [
    "METRICS",
    "OPTIONS",
    "Metric",
    "Option",
    "Setup",
    "label_of",
    "load_metric",
    "measured_with",
    "setup_for",
    "shown",
    "text_of",
]

METRICS: dict[str, type[Metric]] = {
    metric.name: metric for metric in (Psnr, Ssim, ClipScore, ImageReward, PickScore, Fid, Kid, FrechetDistance, Lpips)
}
# What the metrics can be given, by name.
OPTIONS: dict[str, Option] = {option.name: option for metric in METRICS.values() for option in metric.options}


def load_metric(name: str, setup: Setup) -> Metric:
    """Make the metric of that name.

    Raises:
        DatoError: if there is no such metric, `setup` has an unknown option, or a file is missing or wrong.
    """
    if name not in METRICS:
        raise DatoError(f"unknown quality metric {name!r}; known are {', '.join(METRICS)}")
    for option in setup.options:
        if option not in OPTIONS:
            raise DatoError(f"unknown option {option!r} of the quality metrics; known are {', '.join(OPTIONS)}")
    return METRICS[name](setup)


def setup_for(model: str, options: Mapping[str, Any] | None = None, device: Any = "cpu") -> Setup:
    """Return the setup of the metrics that judge a model's images.

    Args:
        model: The model's name. The embedded model has a CLIP of its own, other models take a published one.
        options: Values of `OPTIONS`. What is left out has its default.
        device: Where the metrics run.
    """
    published = {name: option.default for name, option in OPTIONS.items() if option.embedded_default is not None}
    return Setup(device=device, **({} if model == EMBEDDED else published) | dict(options or {}))


def measured_with(setup: Setup) -> dict[str, str | None]:
    """Return the options on which measurements of images depend, as text, to be kept with the measurements.

    What is embedded in dato is called by the embedded model's name, because its folder differs between machines.
    """
    values = {}
    for name, option in OPTIONS.items():
        if option.is_measured_with:
            value = setup.get(option)
            is_embedded = option.embedded_default is not None and value == option.embedded_default
            values[name] = EMBEDDED if is_embedded else None if value is None else str(value)
    return values


def label_of(metric: str) -> str:
    """Return what papers call a metric, with its unit: "PSNR (dB)". Return an unknown name as it is."""
    return METRICS[metric].label if metric in METRICS else metric


def shown(metric: str | type[Metric] | Metric, value: float) -> float:
    """Return a value with the sign of the field, in which a distance is positive. The inverse is the same function.

    Inside dato higher is always better, so a distance is negative. A value of an unknown metric stays as it is.
    """
    kind = METRICS.get(metric) if isinstance(metric, str) else metric
    return -value if kind is not None and kind.lower_is_better else value


def text_of(metric: str, value: float) -> str:
    """Return a value as a table shows it: with the sign of the field and the metric's number of digits."""
    digits = METRICS[metric].digits if metric in METRICS else Metric.digits
    return f"{shown(metric, value):.{digits}f}"
