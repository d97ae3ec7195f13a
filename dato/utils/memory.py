"""Memory: measure the peak that tensors take during a block, and go on after running out of memory."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dato.errors import DatoError


@dataclass
class Peak:
    """The result of `peak_memory`, filled in at the end of the block.

    Attributes:
        bytes: The largest number of bytes that were allocated within the block, minus those at its start.
    """

    bytes: int = 0


def weights_bytes(modules: Iterable[nn.Module]) -> int:
    """Return the bytes of all parameters and buffers of these modules. What modules share counts once."""
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())


@contextlib.contextmanager
def peak_memory(device: torch.device | str) -> Iterator[Peak]:
    """Measure the peak of tensor memory within a `with` block.

    On a GPU this is the count of PyTorch's allocator, of all threads. Memory that CUDA and its libraries take is not
    in it. Measuring is free, and resets the peak that `torch.cuda.max_memory_allocated` returns.

    On a CPU PyTorch keeps no count, so the profiler records every allocation of this thread. It also records every
    operation, about 15 MB for each UNet call, so keep the block short (one generation) and do not time it. Inner
    buffers of oneDNN and MKL are not in it. Memory that is older than the block and freed in it does not lower the
    peak.

    Args:
        device: The device whose memory is measured.

    Raises:
        DatoError: if the device is neither a CPU nor a CUDA GPU.
    """
    device, peak = torch.device(device), Peak()
    if device.type == "cuda":
        torch.cuda.init()  # CUDA has no statistics before it is initialised
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
            recorder.profiler = None  # of all its records; it is in a cycle, which Python may keep for long
    else:
        raise DatoError(f"peak memory is measured on a CPU or a CUDA GPU, not on {device.type}")


@contextlib.contextmanager
def _no_standard_error() -> Iterator[None]:
    """Drop what is written to standard error. The profiler's C++ code logs there, and has no setting to stop it."""
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


@contextlib.contextmanager
def survive_out_of_memory(device: torch.device | str) -> Iterator[None]:
    """Leave a `with` block early if memory runs out in it, free what it held, and go on after it.

    Other exceptions pass.

    Args:
        device: The device that the block computes on.

    Example:
        >>> with survive_out_of_memory("cpu"):
        ...     raise MemoryError
        >>> print("went on")
        went on
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # CUDA's OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        # The traceback holds the block's frames, and those hold its tensors.
        traceback.clear_frames(error.__traceback__)
    else:
        return
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    # PyTorch's CPU allocator and cuDNN raise a plain RuntimeError.
    signs = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in signs)
