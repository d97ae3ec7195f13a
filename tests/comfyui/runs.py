"""Run schedules in the stand-in of ComfyUI, and read what they did."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import stand_in
from torch import Tensor

from dato import Schedule
from dato.comfyui import wrappers
from dato.comfyui.apply import with_settings
from dato.comfyui.run import Run
from dato.comfyui.settings import Settings

STEPS = len(stand_in.SIGMAS) - 1
FULL = Schedule.full(STEPS, rungs=stand_in.RUNGS)


def uniform(depth: int, order: int = 0, interval: int = 3, calls: int = STEPS) -> Schedule:
    """Every third call whole, the others at a depth."""
    return Schedule.uniform(calls, interval, depth, order, rungs=stand_in.RUNGS)


def scheduled(model: stand_in.Patcher, schedule: Schedule, **settings: Any) -> stand_in.Patcher:
    """A copy of the model with a schedule."""
    return with_settings(model, Settings(name="test", schedule=schedule, **settings))[0]


def sample(model: stand_in.Patcher, noise: Tensor | None = None, sampler: Any = None, **guider: Any) -> Tensor:
    """Generate latents."""
    y = guider.pop("y", None)
    made = stand_in.Guider(model, **guider)
    made.y = y
    return made.sample(stand_in.noise() if noise is None else noise, sampler or stand_in.sampler())


@contextlib.contextmanager
def runs(monkeypatch: Any) -> Iterator[list[Run]]:
    """Collect the generations in a `with` block."""
    found: list[Run] = []
    begin = wrappers.begin
    with monkeypatch.context() as patch:
        patch.setattr(wrappers, "begin", lambda *given: found.append(begin(*given)) or found[-1])
        yield found


@contextlib.contextmanager
def own_ladder(monkeypatch: Any) -> Iterator[None]:
    """Let our loop run whole calls, too, in a `with` block."""
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_run_whole", lambda self, forward, cache, a, k, given: self._run(6, cache, given))
        yield


def depths(run: Run) -> list[int]:
    """The depths that the calls of a generation have run at."""
    return [depth for _, depth in sorted(run.depths.items())]
