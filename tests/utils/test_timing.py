"""The stopwatch: the clock on a CPU, and CUDA's events on a GPU, which stand-ins replace here."""

import contextlib

import pytest
import torch

from dato.utils.timing import Stopwatch, forward_times


class Gpu:
    """Work that is queued, and done when somebody waits for it. Notes what happens, in its order."""

    def __init__(self):
        self.queued, self.clock, self.told = [], 0.0, []

    def work(self, milliseconds):
        """Queue work, as a kernel."""
        self.told.append("work")
        self.queued.append(milliseconds)

    def event(self, enable_timing=False):
        assert enable_timing  # else CUDA measures nothing
        return Event(self)

    def until(self, event):
        """Do what is queued, up to an event."""
        while event.reached is None:
            first = self.queued.pop(0)
            if isinstance(first, Event):
                first.reached = self.clock
            else:
                self.clock += first


class Event:
    """Stands in for `torch.cuda.Event`."""

    def __init__(self, gpu):
        self.gpu, self.reached = gpu, None

    def record(self):
        self.gpu.told.append("record")
        self.gpu.queued.append(self)

    def synchronize(self):
        self.gpu.told.append("synchronize")
        self.gpu.until(self)

    def elapsed_time(self, end):
        if self.reached is None or end.reached is None:
            raise RuntimeError("both events must be completed before calculating elapsed time")  # as CUDA does
        return end.reached - self.reached


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose events are stand-ins; the second of two."""
    gpu = Gpu()

    @contextlib.contextmanager
    def device(given):
        assert given == torch.device("cuda:1")
        gpu.told.append("enter")
        yield
        gpu.told.append("leave")

    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "device", device)
    return gpu


RECORDED = ["enter", "record", "leave"]  # on its own GPU


def test_a_stretch_on_a_gpu_is_what_lies_between_two_events(gpu):
    watch = Stopwatch("cuda:1")
    gpu.work(100.0)  # not of the stretch
    watch.start()
    gpu.work(7.0)
    watch.stop()
    gpu.work(50.0)
    assert gpu.told == ["work", *RECORDED, "work", *RECORDED, "work"]  # nobody has waited
    assert watch.read() == [7.0]
    assert gpu.told[9:] == ["synchronize"] and gpu.queued == [50.0]  # waited for once, and for no more than it measures
    assert watch.read() == [] and gpu.told.count("synchronize") == 1


def test_several_stretches_are_waited_for_once(gpu):
    watch = Stopwatch("cuda:1")
    for milliseconds in (3.0, 5.0, 11.0):
        watch.start()
        gpu.work(milliseconds)
        watch.stop()
        gpu.work(1.0)
    assert watch.read() == [3.0, 5.0, 11.0]
    assert gpu.told.count("synchronize") == 1 and gpu.told.count("record") == 6


def test_a_span_on_a_gpu_goes_from_the_first_start_to_the_last_stop(gpu):
    watch = Stopwatch("cuda:1")
    gpu.work(2.0)
    for milliseconds in (3.0, 5.0, 11.0):
        watch.start()
        gpu.work(milliseconds)
        watch.stop()
        gpu.work(1.0)
    assert watch.span() == 3.0 + 1.0 + 5.0 + 1.0 + 11.0
    assert gpu.told.count("synchronize") == 1
    assert watch.read() == [3.0, 5.0, 11.0]


def test_on_a_cpu_it_is_the_clock_and_cuda_is_left_alone(gpu, monkeypatch):
    ticks = iter([10.0, 10.25, 11.0, 11.5, 20.0, 20.001])
    monkeypatch.setattr("dato.utils.timing.time.perf_counter", lambda: next(ticks))
    watch = Stopwatch("cpu")
    for _ in range(2):
        watch.start()
        watch.stop()
    assert watch.span() == 1500.0 and watch.read() == [250.0, 500.0] and watch.read() == []
    watch.start()
    watch.stop()
    assert watch.read() == [pytest.approx(1.0)] and gpu.told == []


def test_forwards_of_a_module_are_timed_while_it_is_watched():
    layer = torch.nn.Linear(2, 2)
    with forward_times(layer) as times:
        layer(torch.ones(1, 2))
        layer(torch.ones(1, 2))
    layer(torch.ones(1, 2))
    assert len(times.read()) == 2 and not layer._forward_hooks and not layer._forward_pre_hooks
