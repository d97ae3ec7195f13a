"""Which schedule a run gets: a given one, resampled if the run has another number of calls, or one that a rule makes.

The rule is in `dato.unet.speedup_rule`.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

from dato.schedule import Schedule


class RunSchedule(Protocol):
    """Gives the schedule of each run of a patched UNet."""

    @property
    def length(self) -> int:
        """The number of calls after which a run is over, if its timesteps are not known."""

    def current(self, pipe: Any) -> Schedule:
        """Return the schedule of the last run; before the first run, the one that a run is expected to have."""

    def of_run(
        self, pipe: Any, total: int | None, first: int, size: tuple[int, int], *, quiet: bool = False
    ) -> Schedule:
        """Return the schedule of a run that begins.

        Args:
            pipe: The pipeline that runs; None if it is not known.
            total: The number of the sampler's timesteps; None if they are not known.
            first: The call that the run begins with. It is above 0 in img2img.
            size: (H, W) of the latents.
            quiet: Whether not to warn that a given schedule is resampled.

        Returns:
            A schedule of `total` calls, of which those before `first` do not run. It has `length` calls if `total` is
            None.
        """


class GivenSchedule:
    """One schedule for all runs.

    Args:
        schedule: The schedule, for the UNet's number of rungs.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._fitted = {len(schedule): schedule}  # number of calls -> schedule

    @property
    def length(self) -> int:
        return len(self._schedule)

    def current(self, pipe: Any) -> Schedule:
        return self._schedule

    def of_run(
        self, pipe: Any, total: int | None, first: int, size: tuple[int, int], *, quiet: bool = False
    ) -> Schedule:
        """Return the schedule, resampled to `total` calls."""
        total = total or len(self._schedule)
        if total not in self._fitted:
            if len(set(self._schedule.entries)) > 1 and not quiet:
                warnings.warn(
                    f"the schedule has {len(self._schedule)} calls and this run has {total}, so it is resampled; "
                    "a schedule that was searched for this number of steps would do better",
                    stacklevel=10,
                )
            self._fitted[total] = self._schedule.resampled(total)
        return self._fitted[total]
