"""Peak memory: how much more than at its start a stretch of work holds in tensors at once."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

from dato.errors import DatoError


@dataclass
class Peak:
    """Filled in when the block is over.

    Attributes:
        bytes: The most that was allocated at any moment within the block, less what was allocated at its start.
    """

    bytes: int = 0


@contextlib.contextmanager
def peak_memory(device: torch.device | str) -> Iterator[Peak]:
    """Measure the peak of tensor memory within a `with` block.

    On a GPU it is what PyTorch's allocator handed out, to all threads; what CUDA and its libraries take beside it is
    not in it. Measuring costs nothing there, and resets the peak that `torch.cuda.max_memory_allocated` tells.

    On a CPU PyTorch keeps no such count, so the profiler records every allocation of this thread: keep the block short
    (one generation), for it holds a record of every operation too, some 15 MB for each UNet call, and do not time
    within. Inner buffers of oneDNN and MKL are not in it, and memory that is older than the block and freed in it
    does not lower the peak.

    Args:
        device: Which device's memory.

    Raises:
        DatoError: if the device is neither a CPU nor a CUDA GPU.
    """
    device, peak = torch.device(device), Peak()
    if device.type == "cuda":
        torch.cuda.init()  # there are no statistics before
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        try:
            yield peak
        finally:
            peak.bytes = torch.cuda.max_memory_allocated(device) - start
    elif device.type == "cpu":
        recorder = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        try:
            with _no_standard_error(), recorder:
                yield peak
        finally:
            peak.bytes = _highest(recorder)
    else:
        raise DatoError(f"peak memory is measured on a CPU or a CUDA GPU, not on {device.type}")


@contextlib.contextmanager
def _no_standard_error() -> Iterator[None]:
    """Drop what is written to standard error: the profiler's C++ code logs there, and nothing turns that off."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _highest(recorder: profile) -> int:
    events = [event for event in recorder.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    # An allocation is a positive number of bytes, a deallocation a negative one.
    return max(accumulate((event.nbytes() for event in events), initial=0))
