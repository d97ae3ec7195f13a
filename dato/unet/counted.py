"""A generation whose timesteps are not known beforehand: its calls are counted.

Samplers of CompVis' code make their list of timesteps for themselves, and no pipeline holds it. The UNet only gets one
timestep at each call, for each image of the batch. So this is how calls are told apart:

- The first call is the first one after the patch, or one whose timestep is higher than that of the call before.
- A call at a lower timestep is the next call.
- A call at the same timestep with another text, batch or size is another call of the same step: guidance in two calls.
  So is one that has the same text as another call of the first step: a tile.
- Any other call at the same timestep is the next call: the sampler uses the timestep twice, as PLMS and Heun do.

A run that was broken off may be followed by one that begins at a lower timestep. Then the first call of the new run
looks like the next one of the old run. It is noticed by the timestep, which makes a leap, or by the latents, which have
not come from those before. Such a call forgets what was cached, so it runs whole. If this guess is wrong, a call too
many runs whole. Samplers that draw new noise at each step make a leap at each step. So after two leaps in a row, a
third one counts as nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dato.unet.current_call import value_of
from dato.unet.generation import Generation
from dato.unet.lane import Lane

_LEAP = 2.5  # times the widest distance of timesteps so far, and one more
_FAR = 0.5  # 1 minus the cosine of the latents before and after a leap, at least
_FARTHER = 2.0  # the same, times the farthest turn of the run so far
_IN_A_ROW = 2  # leaps


class CountedGeneration(Generation):
    """A generation whose timesteps are not known.

    Attributes:
        step: How many timesteps there were before this one.
        by_timestep: Whether the entries of the schedule are for timesteps, not for calls.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self.step = 0
        self.by_timestep = False
        self._widest = 0.0  # distance of two timesteps

    @property
    def entry(self) -> int:
        """The index of the schedule's entry for the running call. It may be beyond the last one."""
        return self.step if self.by_timestep else self.index

    def goes_on(self, timestep: Tensor | float, length: int) -> bool:
        """Return whether a timestep is of this generation: it is not above the one before."""
        return self.index < 0 or value_of(timestep) <= self.time

    def enter(
        self,
        timestep: Tensor | float,
        sample: Tensor,
        text: tuple[Tensor | None, ...],
        new_lane: Callable[[], Lane],
    ) -> Lane:
        """Begin a call, and return its lane. See `Generation.enter`."""
        time, first = value_of(timestep), self.index < 0
        moves = first or time < self.time
        index = self.index + 1 if moves or self._repeats(sample, text) else self.index
        if moves and not first:
            distance = self.time - time
            if self._widest and distance > _LEAP * self._widest + 1:
                self._forget()
            self._widest = max(self._widest, distance)
            self.step += 1
        self._calls_at_step = 1 if index != self.index else self._calls_at_step + 1
        self.index, self.time = index, time
        lane = self._lane(index, sample, text, new_lane)
        if lane.index >= 0 and not lane.cache.empty and _leaps(lane, sample):
            lane.forget()
        lane.enter(index, sample, text)
        return lane

    def _repeats(self, sample: Tensor, text: tuple[Tensor | None, ...]) -> bool:
        """Return whether a call at the timestep of the call before is the next one, and not another of this step."""
        if self.index == 0:
            return False
        fitting = [lane for lane in self.lanes if lane.fits(sample) and lane.reads(text)]
        waiting = [lane for lane in fitting if lane.index != self.index]
        # A lane that waits for its call may be left over from a run that was broken off at its first step.
        return len(waiting) < len(fitting) and all(lane.turn(sample) > _FAR for lane in waiting)

    def _forget(self) -> None:
        for lane in self.lanes:
            lane.forget()


def _leaps(lane: Lane, sample: Tensor) -> bool:
    """Return whether latents have not come from those of the lane's last call, and remember how far they turned."""
    turn = lane.turn(sample)
    far = turn > max(_FAR, _FARTHER * lane.farthest)
    lane.leaps = lane.leaps + 1 if far else 0
    if 0 < lane.leaps <= _IN_A_ROW:
        return True
    lane.farthest = max(turn, lane.farthest)
    return False
