"""What a quality metric is: a measurement of each image, then one number for all of them. Higher is better.

There are two steps because tens of thousands of images do not fit in memory at once. Images are measured in batches,
the measurements may be kept on disk, and the summary is made at the end.
"""

from __future__ import annotations

import contextlib
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from dato.errors import DatoError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """Something that a metric is made from: a model, a file of weights, a folder of pictures.

    Attributes:
        name: The keyword of `Setup`. The command line calls it --name, with hyphens.
        help: What the command line's help says of it.
        default: The value if none is given.
        embedded_default: The value if none is given and the images are the embedded model's. None: `default`.
        shown_default: What the help shows as the default. None: `default`, if there is one.
        is_path: Whether the value is a file, a folder or a hub id.
        is_measured_with: Whether measurements of images depend on it. If not, only the summary does.
    """

    name: str
    help: str
    default: Any = None
    embedded_default: Any = None
    shown_default: str | None = None
    is_path: bool = True
    is_measured_with: bool = True


@dataclass(frozen=True, init=False)
class Setup:
    """What metrics are made from. It is plain data: a metric loads its models when it is made.

    Attributes:
        options: Values of `dato.metrics.OPTIONS` by name. What is left out has its default for the embedded model.
        device: Where the metrics' models run.

    Example:
        >>> Setup(real="pictures", device="cuda").options
        {'real': 'pictures'}
    """

    options: Mapping[str, Any]
    device: str | torch.device
    _shared: dict[str, Any] = field(repr=False, compare=False)

    def __init__(self, *, device: str | torch.device = "cpu", **options: Any) -> None:
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "device", device)
        object.__setattr__(self, "_shared", {})

    def on(self, device: str | torch.device) -> Setup:
        """Return the same setup for another device."""
        return Setup(device=device, **self.options)

    def get(self, option: Option) -> Any:
        """Return the value of an option."""
        default = option.default if option.embedded_default is None else option.embedded_default
        return self.options.get(option.name, default)

    def shared(self, key: str, make: Callable[[], T]) -> T:
        """Return what `make` makes. Call it once for each key, so that several metrics share a model."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]


# What loading weights raises if the file is cut off or is something else.
UNREADABLE = (OSError, RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, KeyError, TypeError, ValueError)


@contextlib.contextmanager
def needs_weights(name: str, url: str) -> Iterator[None]:
    """Turn errors within the block into advice to fetch a file.

    Within the block torch's hub downloads the file, or finds it in its cache.

    Args:
        name: The metric's name.
        url: The file's address.

    Raises:
        DatoError: if the block raises an error of loading.
    """
    import torch

    try:
        yield
    except UNREADABLE as error:
        folder, reason = Path(torch.hub.get_dir(), "checkpoints"), first_line(error)
        raise DatoError(f"the metric '{name}' needs a file: fetch {url} and put it into {folder} ({reason})") from None


class Metric(ABC):
    """One way to judge images.

    Attributes:
        name: What options and files call it.
        label: What papers call it, with its unit.
        digits: How many digits a table shows after the point.
        lower_is_better: Whether the field's number is a distance. Inside dato it is negated, so higher is better.
            Reports show the field's sign.
        against_stock: Whether it compares an image with the stock pipeline's image from the same noise. The value of
            stock itself then says nothing.
        options: What it is made from.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    digits: ClassVar[int] = 2
    lower_is_better: ClassVar[bool] = False
    against_stock: ClassVar[bool] = False
    options: ClassVar[tuple[Option, ...]] = ()

    @abstractmethod
    def __init__(self, setup: Setup) -> None:
        """Load what the metric needs. Raise DatoError if something is missing or wrong."""

    @abstractmethod
    def measure(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """Measure each image by itself.

        Args:
            images: (n, 3, H, W) in [0, 1].
            prompts: n, the prompt of each image.
            references: (n, 3, H, W) in [0, 1], the stock pipeline's images from the same noise.

        Returns:
            (n,) or (n, F) floats, on the CPU.
        """

    @abstractmethod
    def summary(self, measured: Tensor) -> float:
        """Return the metric of all images. Higher is better.

        Args:
            measured: (n,) or (n, F), what `measure` returned, joined along the first axis.
        """

    def precision_error(self, images: Tensor, prompts: Sequence[str]) -> float:
        """Return the largest difference between measurements of these images and those in float32. 0 in float32."""
        return 0.0

    def __call__(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> float:
        """Judge images at once. The arguments are those of `measure`."""
        return self.summary(self.measure(images, prompts, references))


class MeanOverImages(Metric):
    """A metric that gives each image a value and takes the mean."""

    def summary(self, measured: Tensor) -> float:
        """Return the mean of (n,) values."""
        return measured.double().mean().item()
