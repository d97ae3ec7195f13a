"""An image store: a folder of many methods' images and measurements, to which later runs add."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dato.errors import DatoError
from dato.evaluation.methods import Method
from dato.utils.files import dumps, read_json, read_text, write_atomic
from dato.utils.images import read_image


@dataclass(frozen=True)
class Batch:
    """What one method gave for one batch of n prompts.

    Attributes:
        measured: Metric -> (n,) or (n, F), see `dato.metrics.base.Metric.measure`. Empty if there are no images.
        latency_ms: Milliseconds per image, end to end.
        unet_ms: Milliseconds per image of the UNet's calls.
        stock_ms: Stock's `latency_ms` in the same turn.
        peak_bytes: The most memory that generating one image held beyond what was held before. None: not measured.
        failure: What is wrong with the images, or why there are none. None: nothing.
        pictures: n PNG files.
    """

    measured: dict[str, Tensor] = field(default_factory=dict)
    latency_ms: float = 0.0
    unet_ms: float = 0.0
    stock_ms: float = 0.0
    peak_bytes: int | None = None
    failure: str | None = None
    pictures: tuple[bytes, ...] = ()


class ImageStore:
    """The folder: `settings.json`, `prompts.txt`, and for each method a folder of images and of measurements.

    A method's folder is found by the method's name and content, so another schedule of the same name is another method.

    Args:
        folder: The folder. It is made if it does not exist.
        settings: What must not change between two runs, as JSON values.
        prompts: One image is stored for each. A later run may bring more, or fewer.
        stock: The unchanged pipeline, with which all methods are compared.
        methods: The methods. Each has its own name.

    Attributes:
        prompts: As above.
        stock: As above.
        methods: Name -> method, stock first.

    Raises:
        DatoError: if the folder holds images of other settings or prompts, or cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        prompts: Sequence[str],
        stock: Method,
        methods: Sequence[Method],
    ) -> None:
        if any(method.name == stock.name for method in methods):
            raise DatoError(
                f"a strategy cannot be called {stock.name!r}, the name of the unchanged pipeline: rename it"
            )
        self.folder, self.prompts, self.stock = folder, list(prompts), stock
        self.methods = {method.name: method for method in (stock, *methods)}
        settings = json.loads(dumps(settings))  # as it will be read back
        settings_file, prompts_file = folder / "settings.json", folder / "prompts.txt"
        text = "".join(f"{prompt}\n" for prompt in prompts)
        if settings_file.exists():
            _check_settings(folder, read_json(settings_file), settings)
            old = read_text(prompts_file, newlines=False) if prompts_file.exists() else ""
            if not (old.startswith(text) or text.startswith(old)):
                raise DatoError(f"{folder} holds images of other prompts: choose another folder")
            text = max(old, text, key=len)
        write_atomic(settings_file, dumps(settings) + "\n")
        write_atomic(prompts_file, text)

    def spans(self, size: int) -> list[tuple[int, int]]:
        """Return the ranges of prompts, (start, stop), of batches of this size."""
        count = len(self.prompts)
        return [(start, min(start + size, count)) for start in range(0, count, size)]

    def path(self, method: str, index: int) -> Path:
        """Return the file of a method's image of a prompt."""
        return self._folder_of(method) / f"{index:05}.png"

    def images(self, method: str, count: int) -> Tensor:
        """Return a method's first images (n, 3, H, W), at most `count`, as they are on the disk."""
        return torch.stack([read_image(self.path(method, index)) for index in range(min(count, len(self.prompts)))])

    def has(self, method: str, start: int, stop: int, metrics: Sequence[str]) -> bool:
        """Return whether these prompts' images are there, with measurements by these metrics."""
        path = self._measurements(method, start, stop)
        if not path.exists():
            return False
        with _opened(path) as file:
            names = set(file.keys())
        return set(metrics) <= names or not names

    def put(self, method: str, start: int, stop: int, batch: Batch) -> None:
        """Store a batch. The measurements are written last, and only they make it count."""
        for index, picture in enumerate(batch.pictures, start=start):
            write_atomic(self.path(method, index), picture)
        notes = {
            "latency_ms": batch.latency_ms,
            "unet_ms": batch.unet_ms,
            "stock_ms": batch.stock_ms,
            "peak_bytes": batch.peak_bytes,
            "failure": batch.failure,
        }
        tensors = {name: values.contiguous() for name, values in batch.measured.items()}
        write_atomic(self._measurements(method, start, stop), save(tensors, {"notes": json.dumps(notes)}))

    def get(self, method: str, start: int, stop: int) -> Batch:
        """Return a stored batch without its pictures. Raise DatoError if its file is damaged."""
        with _opened(self._measurements(method, start, stop)) as file:
            notes = json.loads(file.metadata()["notes"])
            measured = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return Batch(measured, **notes)

    def _folder_of(self, name: str) -> Path:
        method = self.methods[name]
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        # Do not change what is hashed: folders made by earlier versions must be found.
        if method is self.stock:
            content = ""
        elif method.version is None:
            content = method.schedule.to_json()
        else:
            content = method.version
        return self.folder / f"{slug}-{hashlib.sha256(f'{name} {content}'.encode()).hexdigest()[:8]}"

    def _measurements(self, method: str, start: int, stop: int) -> Path:
        return self._folder_of(method) / f"{start:05}-{stop:05}.safetensors"


def _check_settings(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise DatoError if the settings of a folder are others than those that are wanted now."""
    differing = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if differing:
        name = differing[0]
        raise DatoError(
            f"{folder} holds images of other settings: {', '.join(differing)} ({name} was {old.get(name)!r} "
            f"and is {new.get(name)!r}): choose another folder"
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DatoError(f"{path} is damaged ({error}): remove it, and it is made again") from None
