"""What is kept of a generation from call to call: where it is, its schedule, and a lane for each call of a step.

Most pipelines call the UNet once at a step. Some call it several times: for guidance in two calls, or for tiles. Such
calls must not read each other's features. So each has a *lane*, with a cache of its own. A call gets the lane of the
step before whose batch and text are the same. If several lanes fit, as with tiles of one prompt, it gets the one whose
latents are nearest.

Each thread has generations of its own, and so has each pipeline that shares the UNet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from dato.call import Call
from dato.schedule import Schedule
from dato.unet.current_call import index_in, list_of, same_storage, value_of, values_of
from dato.unet.lane import Lane

MOST_LANES = 16  # calls of a step; further ones run whole and keep nothing
MOST_GENERATIONS = 4  # of one thread at the same time


class Generation:
    """One generation that is running.

    Args:
        listed: The sampler's timesteps; None if they are not known.

    Attributes:
        listed: As given. It keeps the storage alive, so that no other list gets its address.
        times: All timesteps as numbers; None if they are not known.
        index: The index of the last call's step; -1 before the first call.
        time: Its timestep.
        schedule: The schedule; None before the first call.
        calls: Its calls.
        lanes: One for each call of a step.
        owned: Whether the patched pipeline's own sampler gives the timesteps.
        followed: The depth that ControlNets ran for, by the index of the last step that they followed; else empty.
    """

    def __init__(self, listed: Tensor | None, *, owned: bool = False) -> None:
        self.listed, self.owned = listed, owned
        self.times = None if listed is None else values_of(listed)
        self.index, self.time = -1, 0.0
        self.schedule: Schedule | None = None
        self.calls: tuple[Call, ...] = ()
        self.lanes: list[Lane] = []
        self.followed: dict[int, int] = {}
        self._of_kind: type | None = None  # of the timestep
        self._calls_at_step = 0  # so far
        self._calls_at_first_step = 0
        self._first = -1

    @property
    def total(self) -> int | None:
        """The number of the sampler's timesteps; None if they are not known."""
        return None if self.times is None else len(self.times)

    @property
    def entry(self) -> int:
        """The index of the schedule's entry for the running call."""
        return self.index

    def goes_on(self, timestep: Tensor | float, length: int) -> bool:
        """Return whether a timestep is of this generation; if not, it begins another one.

        Args:
            timestep: What the sampler gave to the UNet.
            length: The number of steps after which a generation is over, if its timesteps are not known. If a
                generation was cut short and the next one begins at a lower timestep, the two cannot be told apart.
        """
        if self.index < 0:
            return True
        if self.listed is not None:
            return self.total > 1 and self._index_of(timestep) >= self.index
        time = value_of(timestep)
        if isinstance(timestep, Tensor) != (self._of_kind is Tensor) or time > self.time:
            return False
        return time == self.time or self.index + 1 < length

    def index_of_next(self, timestep: Tensor | float, text: tuple[Tensor | None, ...] | None = None) -> int:
        """Return the index of the step that a timestep belongs to."""
        if self.listed is not None:
            return self._index_of(timestep, text)
        same = self.index >= 0 and value_of(timestep) == self.time
        return self.index if same else self.index + 1

    def _index_of(self, timestep: Tensor | float, text: tuple[Tensor | None, ...] | None = None) -> int:
        index = index_in(timestep, self.listed)
        if index is not None:
            return index
        time, times = value_of(timestep), self.times
        if self.index >= 0 and time == times[self.index]:
            # Either another call of this step, or the second use of a timestep, as in PLMS.
            another = self._calls_at_step < self._calls_at_first_step
            if another or (text is not None and not any(lane.reads(text) for lane in self.lanes[:1])):
                return self.index
            return times.index(time, self.index + 1) if time in times[self.index + 1 :] else self.index
        start = self.index + 1 if time in times[self.index + 1 :] else 0
        return times.index(time, start) if time in times else self.index + 1

    def enter(
        self,
        timestep: Tensor | float,
        sample: Tensor,
        text: tuple[Tensor | None, ...],
        new_lane: Callable[[], Lane],
    ) -> Lane:
        """Begin a call, and return its lane.

        A lane whose cache is empty has its first call, or one whose batch or text is another.

        Args:
            timestep: What the sampler gave to the UNet.
            sample: (B, C, H, W) the UNet's input.
            text: What tells the calls of a step apart: its text (B, tokens, width), and other conditions.
            new_lane: Makes a lane.
        """
        index = self.index_of_next(timestep, text)
        if index != self.index:
            self._calls_at_step = 0
        if self._first < 0:
            self._first = index
        self._calls_at_step += 1
        if index == self._first:
            self._calls_at_first_step = self._calls_at_step
        self.index, self._of_kind = index, Tensor if isinstance(timestep, Tensor) else float
        self.time = value_of(timestep) if self.times is None else self.times[index]
        lane = self._lane(index, sample, text, new_lane)
        lane.enter(index, sample, text)
        return lane

    def _lane(self, index: int, sample: Tensor, text: tuple[Tensor | None, ...], new_lane: Callable[[], Lane]) -> Lane:
        only = len(self.lanes) == 1 and self._calls_at_step == 1
        if only and self.listed is not None:
            # The text may change from step to step on purpose, as where prompts are blended.
            if not self.lanes[0].fits(sample):
                self.lanes[0].clear()
            return self.lanes[0]
        free = [lane for lane in self.lanes if lane.index != index and lane.fits(sample)]
        fitting = [lane for lane in free if lane.reads(text)]
        if len(fitting) > 1:
            return min(fitting, key=lambda lane: lane.distance(sample))
        if fitting:
            return fitting[0]
        if free or only:  # the text or, of a single lane, the batch is another now
            lane = free[0] if free else self.lanes[0]
            lane.clear()
            return lane
        lane = new_lane()
        if len(self.lanes) < MOST_LANES:
            self.lanes.append(lane)
        return lane

    def clear(self) -> None:
        """Free all caches."""
        for lane in self.lanes:
            lane.clear()
        self.lanes.clear()


class Generations:
    """The generations that are running in one UNet. Each thread sees its own.

    Args:
        unlisted: Makes a generation whose timesteps are not known; None: a `Generation`.

    Attributes:
        lock: Is held by a call that changes what all threads share.
    """

    def __init__(self, unlisted: Callable[[], Generation] | None = None) -> None:
        self._unlisted = unlisted
        self._local = threading.local()
        self.lock = threading.RLock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Generations:
        return Generations(self._unlisted)

    def __reduce__(self) -> tuple:
        return Generations, (self._unlisted,)

    @property
    def running(self) -> list[Generation]:
        """Those of this thread, the latest first."""
        if not hasattr(self._local, "running"):
            self._local.running = []
        return self._local.running

    @property
    def latest(self) -> Generation | None:
        """The one of this thread's last call; None if there is none."""
        return next(iter(self.running), None)

    @property
    def inside(self) -> bool:
        """Whether this thread is in a call that runs the UNet's own forward."""
        return getattr(self._local, "inside", False)

    @contextmanager
    def within(self) -> Iterator[None]:
        """Run the UNet's own forward in a `with` block, so that the patch lets it pass."""
        before, self._local.inside = self.inside, True
        try:
            yield
        finally:
            self._local.inside = before

    def at(self, timestep: Tensor | float, timesteps: Tensor | None, length: Callable[[], int]) -> Generation:
        """Return the generation of a call, which may be a new one.

        Args:
            timestep: What the sampler gave to the UNet.
            timesteps: The scheduler's timesteps, if the pipeline is known.
            length: Returns the number of calls of the next schedule, if the timesteps are not known.
        """
        listed, running = list_of(timestep, timesteps), self.running
        for generation in running:
            known = generation.listed
            if (listed is None and known is None) or same_storage(listed, known):
                steps = length() if generation.schedule is None else len(generation.schedule)
                if generation.goes_on(timestep, steps):
                    running.remove(generation)
                    running.insert(0, generation)
                    return generation
                self.drop(generation)
                break
        owned = same_storage(listed, timesteps)
        for generation in list(running):
            if owned and generation.owned:  # the sampler has another list of timesteps now
                self.drop(generation)
        counted = listed is None and self._unlisted is not None
        running.insert(0, self._unlisted() if counted else Generation(listed, owned=owned))
        for generation in running[MOST_GENERATIONS:]:
            self.drop(generation)
        return running[0]

    def drop(self, generation: Generation) -> None:
        """Free a generation: the next call does not continue it."""
        generation.clear()
        if generation in self.running:
            self.running.remove(generation)

    def clear(self) -> None:
        """Free all generations, those of other threads too."""
        for generation in list(self.running):
            generation.clear()
        self._local = threading.local()
