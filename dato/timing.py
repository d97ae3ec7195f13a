"""Latency: CUDA events on a GPU, `time.perf_counter` elsewhere; medians after a warm-up."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn


class Stopwatch:
    """Measures stretches of work on one device, in milliseconds.

    On a GPU a stretch lies between two CUDA events, so that starting and stopping does not make the GPU wait; the
    readings are there after `read`.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._marks: list[tuple] = []
        self._start: object = None

    def start(self) -> None:
        """A stretch begins."""
        self._start = self._mark()

    def stop(self) -> None:
        """The stretch ends."""
        self._marks.append((self._start, self._mark()))

    def read(self) -> list[float]:
        """Milliseconds of each stretch since the last reading."""
        marks, self._marks = self._marks, []
        if not self._cuda:
            return [1000 * (end - begin) for begin, end in marks]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in marks]

    def _mark(self) -> object:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@contextlib.contextmanager
def forward_times(module: nn.Module) -> Iterator[Stopwatch]:
    """Time every forward of a module (the UNet) within the block; works on patched and stock ones alike."""
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


def measure(run: Callable[[], object], device: torch.device | str, *, repeats: int = 5, warmup: int = 1) -> float:
    """Median milliseconds of `run()` over `repeats` runs, after `warmup` runs that do not count."""
    watch = Stopwatch(device)
    for _ in range(warmup):
        run()
    for _ in range(repeats):
        watch.start()
        run()
        watch.stop()
    return statistics.median(watch.read())


def hardware(device: torch.device | str) -> str:
    """The name of what computes: the GPU's, or the processor's and its number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = "CPU"
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"
