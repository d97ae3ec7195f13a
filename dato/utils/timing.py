"""Measure latency: by CUDA events on a GPU, by `time.perf_counter` elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
from torch import nn


class Stopwatch:
    """Measure stretches of work on one device, in milliseconds.

    On a GPU a stretch is the time between two CUDA events. Starting and stopping does not wait for the GPU. `read`
    waits for it.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._cuda = self._device.type == "cuda"
        self._marks: list[tuple] = []
        self._start: object = None

    def start(self) -> None:
        """Begin a stretch."""
        self._start = self._mark()

    def stop(self) -> None:
        """End the stretch."""
        self._marks.append((self._start, self._mark()))

    def read(self) -> list[float]:
        """Return the milliseconds of each stretch since the last reading."""
        self._wait()
        marks, self._marks = self._marks, []
        return [self._between(*mark) for mark in marks]

    def span(self) -> float:
        """Return the milliseconds from the start of the first stretch that is not read to the end of the last."""
        self._wait()
        return self._between(self._marks[0][0], self._marks[-1][1])

    def _wait(self) -> None:
        """Wait until the GPU has done the work of all stretches. The last event is the last one to be reached."""
        if self._cuda and self._marks:
            self._marks[-1][1].synchronize()

    def _between(self, begin: object, end: object) -> float:
        return begin.elapsed_time(end) if self._cuda else 1000 * (end - begin)

    def _mark(self) -> object:
        if not self._cuda:
            return time.perf_counter()
        with torch.cuda.device(self._device):  # this GPU need not be the current one
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return event


@contextlib.contextmanager
def forward_times(module: nn.Module) -> Iterator[Stopwatch]:
    """Time every forward of a module (the UNet, patched or not) within the block."""
    watch = Stopwatch(next(module.parameters()).device)
    handles = [
        module.register_forward_pre_hook(lambda *_: watch.start()),
        module.register_forward_hook(lambda *_: watch.stop()),
    ]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()
