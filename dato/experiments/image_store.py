"""A folder of many methods' images and measurements, to which later visits add."""

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
from dato.experiments.method_families import Contender
from dato.schedule import Schedule
from dato.utils.files import dumps, read_json, read_text, write_atomic
from dato.utils.images import read_image

STOCK = "stock"


@dataclass(frozen=True)
class Batch:
    """What one method gave for one batch of n prompts.

    Attributes:
        measured: Metric -> (n,) or (n, F), see `dato.metrics.base.Metric.measure`; empty if there are no images.
        latency_ms: Milliseconds per image, end to end.
        unet_ms: Milliseconds per image, of the UNet's calls.
        stock_ms: Stock's `latency_ms` in the same turn.
        peak_bytes: The most memory that one image held beyond what was there before; None: it was not measured.
        failure: What is wrong with the images, or why there are none; None: nothing.
        pictures: n PNG files.
    """

    measured: dict[str, Tensor] = field(default_factory=dict)
    latency_ms: float = 0.0
    unet_ms: float = 0.0
    stock_ms: float = 0.0
    peak_bytes: int | None = None
    failure: str | None = None
    pictures: tuple[bytes, ...] = ()


class Gallery:
    """The folder: `settings.json`, `prompts.txt`, and for each method a folder of images and of measurements.

    A method's folder is found by its name and by what it is, so that another schedule of the same name is another one.

    Args:
        folder: Where it is.
        settings: What must not change between two visits.
        prompts: One image each. Later visits may bring more, or fewer.
        methods: By name; stock (None) comes by itself.

    Attributes:
        prompts: As above.
        methods: As above, stock first.

    Raises:
        DatoError: if the folder holds images of other settings or prompts, or cannot be written to.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], prompts: Sequence[str], methods: Mapping[str, Contender]
    ) -> None:
        if STOCK in methods:
            raise DatoError(f"a strategy cannot be called {STOCK!r}, for that is what all are compared with: rename it")
        self.folder, self.prompts = folder, list(prompts)
        self.methods: dict[str, Contender | None] = {STOCK: None, **methods}
        listed, before = folder / "prompts.txt", folder / "settings.json"
        settings = json.loads(dumps(settings))  # as it will be read
        text = "".join(f"{prompt}\n" for prompt in prompts)
        if before.exists():
            known = read_json(before)
            differing = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
            if differing:
                name = differing[0]
                raise DatoError(
                    f"{folder} holds images of other settings: {', '.join(differing)} ({name} was {known.get(name)!r} "
                    f"and is {settings.get(name)!r}): give another --out"
                )
            old = read_text(listed) if listed.exists() else ""
            if not (old.startswith(text) or text.startswith(old)):
                raise DatoError(f"{folder} holds images of other prompts: give another --out")
            text = max(old, text, key=len)
        write_atomic(before, dumps(settings) + "\n")
        write_atomic(listed, text)

    def spans(self, size: int) -> list[tuple[int, int]]:
        """The prompts in batches, from and to."""
        count = len(self.prompts)
        return [(start, min(start + size, count)) for start in range(0, count, size)]

    def path(self, method: str, index: int) -> Path:
        """The image of a prompt."""
        return self._of(method) / f"{index:05}.png"

    def images(self, method: str, count: int) -> Tensor:
        """The first images (n, 3, H, W), at most `count`, as they are on the disk."""
        return torch.stack([read_image(self.path(method, index)) for index in range(min(count, len(self.prompts)))])

    def has(self, method: str, start: int, stop: int, metrics: Sequence[str]) -> bool:
        """Whether these prompts' images are there, with these measurements."""
        path = self._measurements(method, start, stop)
        if not path.exists():
            return False
        with _opened(path) as file:
            names = set(file.keys())
        return set(metrics) <= names or not names

    def put(self, method: str, start: int, stop: int, batch: Batch) -> None:
        """Keep the images of these prompts; the measurements come last, and make the batch count."""
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
        """What was kept of a batch, without its pictures. Raises DatoError if its file is damaged."""
        with _opened(self._measurements(method, start, stop)) as file:
            notes = json.loads(file.metadata()["notes"])
            measured = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return Batch(measured, **notes)

    def _of(self, method: str) -> Path:
        slug = re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")
        contender = self.methods[method]
        content = contender.to_json() if isinstance(contender, Schedule) else getattr(contender, "version", "")
        return self.folder / f"{slug}-{hashlib.sha256(f'{method} {content}'.encode()).hexdigest()[:8]}"

    def _measurements(self, method: str, start: int, stop: int) -> Path:
        return self._of(method) / f"{start:05}-{stop:05}.safetensors"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DatoError(f"{path} is damaged ({error}): remove it, and it is made again") from None
