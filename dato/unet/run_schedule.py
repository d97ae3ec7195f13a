"""Which schedule a run gets.

It is a given one, resampled if the run has another number of calls; or whole calls that all prune, as many as the run
has; or one that a rule makes (`dato.unet.speedup_rule`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from numbers import Real
from typing import Any, Protocol

from dato.errors import DatoError
from dato.pruning import Pruning
from dato.schedule import Schedule

UNKNOWN_LENGTH = 1000  # calls; more than any run makes
_STACK = 10  # of a warning, from here to the code that calls the UNet


class RunSchedule(Protocol):
    """Gives the schedule of each run of a patched UNet.

    Attributes:
        by_timestep: Whether the entries are for the sampler's timesteps, if these are not known beforehand. Else they
            are for calls.
    """

    by_timestep: bool

    @property
    def length(self) -> int:
        """The number of calls after which a run is over, if its timesteps are not known."""

    def current(self, pipe: Any) -> Schedule:
        """Return the schedule of the last run; before the first run, the one that a run is expected to have."""

    def of_run(
        self, pipe: Any, times: Sequence[float] | None, first: int, size: tuple[int, int], *, quiet: bool = False
    ) -> Schedule:
        """Return the schedule of a run that begins.

        Args:
            pipe: The pipeline that runs; None if it is not known.
            times: The sampler's timesteps, one for each call; None if they are not known.
            first: The call that the run begins with. It is above 0 in img2img.
            size: (H, W) of the latents.
            quiet: Whether not to warn that a given schedule is resampled.

        Returns:
            A schedule with a call for each timestep, of which those before `first` do not run. It has `length` calls
            if the timesteps are not known.
        """


class GivenSchedule:
    """One schedule for all runs.

    Args:
        schedule: The schedule, for the UNet's number of rungs.
    """

    by_timestep = False

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._fitted = {len(schedule): schedule}  # number of calls -> schedule

    @property
    def length(self) -> int:
        return len(self._schedule)

    def current(self, pipe: Any) -> Schedule:
        return self._schedule

    def of_run(
        self, pipe: Any, times: Sequence[float] | None, first: int, size: tuple[int, int], *, quiet: bool = False
    ) -> Schedule:
        """Return the schedule, resampled to the run's number of calls."""
        total = len(self._schedule) if times is None else len(times)
        if total not in self._fitted:
            if len(set(self._schedule.entries)) > 1 and not quiet:
                warnings.warn(
                    f"the schedule has {len(self._schedule)} calls and this run has {total}, so it is resampled; "
                    "a schedule that was searched for this number of steps would do better",
                    stacklevel=_STACK,
                )
            self._fitted[total] = self._schedule.resampled(total)
        return self._fitted[total]


class WholeCalls:
    """Whole calls that prune, as many as each run has. The number of calls need not be known beforehand.

    Args:
        ratios: One ratio for all calls; or one for each timestep of the sampler, or one for each call. Calls at the
            same timestep share an entry, as in DaTo's code. So 50 entries serve 50 PLMS steps, which make 51 calls: the
            second and the third are at the same timestep. A run of another length gets the entries resampled.
        pruning: The settings of pruning.
        rungs: The number of the UNet's rungs.

    Raises:
        DatoError: if a ratio is not valid, or there is none.
    """

    by_timestep = True

    def __init__(self, ratios: float | Iterable[float], pruning: Pruning, rungs: int) -> None:
        if isinstance(ratios, Real):
            ratios = [ratios]
        if not isinstance(ratios, Iterable) or isinstance(ratios, (str, bytes, dict)):
            raise DatoError(f"`prune_ratio` must be a number, or a list with one for each step, not {ratios!r}")
        entries = list(ratios)
        if not entries:
            raise DatoError("`prune_ratio` is an empty list; give one ratio for all steps, or one for each")
        self._entries = self._last = _whole(entries, pruning, rungs)

    @property
    def length(self) -> int:
        return UNKNOWN_LENGTH if len(self._entries) == 1 else len(self._entries)

    def current(self, pipe: Any) -> Schedule:
        """Return the schedule of the last run; before the first one, a schedule with a call for each entry."""
        return self._last

    def of_run(
        self, pipe: Any, times: Sequence[float] | None, first: int, size: tuple[int, int], *, quiet: bool = False
    ) -> Schedule:
        """Return whole calls, one for each timestep."""
        self._last = _whole(self._ratios(times), self._entries.pruning, self._entries.rungs)
        return self._last

    def _ratios(self, times: Sequence[float] | None) -> Sequence[float]:
        """Return the ratio of each call of a run."""
        entries, total = self._entries.ratios, self.length if times is None else len(times)
        if len(set(entries)) == 1:
            return entries[:1] * total
        if len(entries) == total:
            return entries
        number = list(accumulate((a != b for a, b in pairwise(times)), initial=0))  # of each call's timestep
        if len(entries) == number[-1] + 1:
            return [entries[i] for i in number]
        warnings.warn(
            f"`prune_ratio` has {len(entries)} entries and this run has {total} calls, so they are resampled",
            stacklevel=_STACK,
        )
        return self._entries.resampled(total).ratios


def _whole(ratios: Sequence[float], pruning: Pruning, rungs: int) -> Schedule:
    """Return whole calls with these ratios."""
    return replace(Schedule.full(len(ratios), rungs=rungs), ratios=ratios, pruning=pruning)
