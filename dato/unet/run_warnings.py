"""What a patched UNet warns of while it runs. Each warning comes once for each patch."""

from __future__ import annotations

import warnings
from typing import Any

from dato.schedule import Schedule
from dato.unet.counted import CountedGeneration
from dato.unet.foreign import name_of
from dato.unet.run_schedule import UNKNOWN_LENGTH

_STACK = 10  # of a warning, from here to the code that calls the UNet
_HINT = "if it was not broken off, give a schedule for the run's number of calls, as `schedule.resampled(calls)`"


class RunWarnings:
    """The warnings of one patch."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def of_forward(self, forward: Any) -> None:
        """Warn that the UNet has another forward than its class."""
        name = name_of(forward)
        self._once(
            name, f"this UNet has another forward ({name}); it runs in whole calls, and other calls run without it"
        )

    def of_argument(self, name: str) -> None:
        """Warn that calls run whole because of an argument that the ladder does not know."""
        self._once(f"argument {name}", f"dato does not know the UNet's argument `{name}`; calls with it run whole")

    def of_long_run(self, schedule: Schedule) -> None:
        """Warn that a run makes more calls than its schedule has."""
        calls = len(schedule)
        self._once(
            "length", f"this run makes more calls than the schedule's {calls}, and the others run whole; {_HINT}"
        )

    def of_short_run(self, ended: CountedGeneration) -> None:
        """Warn if a run was shorter than its schedule. A single call is no run: timesteps may rise with every call."""
        schedule, last = ended.schedule, ended.entry + 1
        if schedule is None or ended.index == 0 or not last < len(schedule) < UNKNOWN_LENGTH:
            return
        calls = "step" if ended.by_timestep else "call"
        what = f"the last run ended after {calls} {last}, and the schedule has {len(schedule)} {calls}s"
        self._once("length", f"{what}; {_HINT}")

    def _once(self, of: str, message: str) -> None:
        if of not in self._given:
            self._given.add(of)
            warnings.warn(message, stacklevel=_STACK)
