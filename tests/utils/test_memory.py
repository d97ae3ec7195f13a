"""Peak memory of known allocations; also on a GPU, if there is one."""

import gc
import weakref

import pytest
import torch

import dato
from dato.utils import memory
from dato.utils.memory import peak_memory, survive_out_of_memory

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
MB = 2**20


def block(megabytes, device):
    return torch.zeros(megabytes * MB, dtype=torch.uint8, device=device)


def near(megabytes):
    return pytest.approx(megabytes * MB, abs=MB / 2)


@pytest.mark.parametrize("device", DEVICES)
def test_a_temporary_is_seen(device):
    with peak_memory(device) as peak:
        block(64, device).add_(1)
    assert peak.bytes == near(64)


@pytest.mark.parametrize("device", DEVICES)
def test_only_what_is_held_at_once_adds_up(device):
    with peak_memory(device) as peak:
        first = block(24, device)
        del first
        second = block(16, device)
        third = block(16, device)
        del second, third
    assert peak.bytes == near(32)


@pytest.mark.parametrize("device", DEVICES)
def test_what_was_there_before_does_not_count(device):
    before = block(64, device)
    with peak_memory(device) as peak:
        before + 1  # a second one, as large
    assert peak.bytes == near(64)
    with peak_memory(device) as peak:
        before.add_(1)
    assert peak.bytes == near(0)


@pytest.mark.parametrize("device", DEVICES)
def test_each_block_begins_anew(device):
    with peak_memory(device):
        kept = block(32, device)
    with peak_memory(device) as peak:
        block(8, device)
        del kept
        block(4, device)
    assert peak.bytes == near(8)


@pytest.mark.parametrize("device", DEVICES)
def test_what_an_operation_needs_within_is_seen(device):
    x = block(8, device)
    with peak_memory(device) as peak:
        torch.nonzero(x == 0).sum()  # indices of 8 bytes for each element
    assert peak.bytes >= 8 * 8 * MB


@pytest.mark.parametrize("device", DEVICES)
def test_it_is_told_also_when_the_block_raises(device):
    with pytest.raises(KeyError), peak_memory(device) as peak:
        block(16, device)
        raise KeyError
    assert peak.bytes == near(16)


def test_another_device_is_an_error():
    with pytest.raises(dato.DatoError, match="not on meta"), peak_memory("meta"):
        pass


def test_a_shallow_call_holds_less_than_a_whole_one(pipe):
    x, text = torch.randn(2, 4, 32, 32), torch.randn(2, 16, 128)
    peaks = []
    with torch.no_grad(), dato.patched(pipe.unet, dato.Schedule((12, 1, 12))):
        for timestep in (999, 998, 997):
            with peak_memory("cpu") as peak:
                pipe.unet(x, timestep, text)
            peaks.append(peak.bytes)
    assert peaks[1] < peaks[2]


def test_who_survives_running_out_of_memory_holds_nothing_of_it():
    held = []

    def work():
        big = block(1, "cpu")
        held.append(weakref.ref(big))
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    with survive_out_of_memory("cpu"):
        work()
    assert held[0]() is None
    for error in (MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory.")):
        with survive_out_of_memory("cpu"):
            raise error


def test_other_errors_are_not_survived():
    for error in (RuntimeError("a bug"), ValueError("out of memory")):
        with pytest.raises(type(error), match=str(error)), survive_out_of_memory("cpu"):
            raise error


def test_what_was_recorded_is_freed_at_once(monkeypatch):
    """A generation's records take hundreds of megabytes, and an evaluation makes dozens in a row."""
    made, original = [], memory.profile

    def profile(**settings):
        made.append(original(**settings))
        return made[-1]

    monkeypatch.setattr(memory, "profile", profile)
    gc.disable()  # as if Python did not look for cycles for long
    try:
        with peak_memory("cpu"):
            records = weakref.ref(made[0].profiler)
        assert records() is None
    finally:
        gc.enable()
