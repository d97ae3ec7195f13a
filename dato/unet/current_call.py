"""Find out which call of a generation is running, by the timestep that the sampler gives to the UNet.

Samplers walk through `scheduler.timesteps`, one tensor that is made anew for every generation, and give one element of
it to each call. That element is a view, and where it begins in the tensor's storage is the index of the call. This is
exact for samplers that use a timestep twice (PLMS, Heun), for img2img, which starts midway, and for pipelines that
take turns. It does not read the value, because the host would have to wait for the GPU. Forecasts need the values,
which are read once for each generation, all together. If the element is a copy, as when offloading moves it to another
device, its value is looked up among the scheduler's timesteps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Position(NamedTuple):
    """The position of one UNet call in its generation.

    Attributes:
        index: The index in the sampler's timesteps, from 0.
        total: The number of the sampler's timesteps; None if it is not known.
        fresh: Whether nothing of earlier calls may be used, because a generation begins or the shapes have changed.
        time: The timestep.
        times: All timesteps of the sampler; None if they are not known.
    """

    index: int
    total: int | None
    fresh: bool
    time: float
    times: tuple[float, ...] | None


class CallCounter:
    """Follows the calls of one UNet through its generations."""

    def __init__(self) -> None:
        self._timestep: Tensor | float | None = None
        self._listed: Tensor | None = None  # keeps its storage alive, so that no other takes its address
        self._kind: tuple | None = None
        self._index = -1
        self._repeated = False
        self._times: tuple[float, ...] | None = None
        self._time = 0.0

    def reset(self) -> None:
        """Let the next call begin a generation."""
        self._timestep, self._listed, self._kind, self._times = None, None, None, None
        self._index, self._repeated = -1, False

    def next(
        self,
        timestep: Tensor | float,
        sample: Tensor | None = None,
        timesteps: Tensor | None = None,
        length: int = 0,
    ) -> Position:
        """Return the position of the next call.

        Args:
            timestep: What the sampler gave to the UNet.
            sample: The UNet's input; a change of its shape, dtype or device makes the call fresh. None: as before.
            timesteps: The scheduler's timesteps, if the pipeline is known.
            length: The number of calls after which a generation is over, if its timesteps are not known.
        """
        listed = None
        location = _locate(timestep, timesteps) or self._look_up(timestep, timesteps)
        if location is None:
            # The timestep is a number or a tensor of its own. Timesteps fall within a generation; if they do not, a new
            # generation begins. If a generation was cut short and the next one begins at a lower timestep, this cannot
            # tell them apart. Loops that do so call `reset`.
            time = _value(timestep)
            begun = not self._falls(timestep, time) or self._index + 1 >= length
            index, total = (0 if begun else self._index + 1), None
            self._times = None
        else:
            index, listed = location
            total = len(listed)
            same = _same_storage(listed, self._listed)
            if self._times is None or not same:
                self._times = _values(listed)
            time = self._times[index]
            # Some pipelines call the UNet more than once at a step, for tiles or for other kinds of guidance. Then it
            # is not known which cache belongs to which call, so none is used until the timesteps change.
            self._repeated = same and (self._repeated or index == self._index)
            begun = self._repeated or index <= self._index or not same
        kind = self._kind if sample is None else (sample.shape, sample.dtype, sample.device)
        fresh = begun or kind != self._kind
        self._timestep, self._listed, self._kind, self._index, self._time = timestep, listed, kind, index, time
        return Position(index, total, fresh, time, self._times)

    def _look_up(self, timestep: Tensor | float, timesteps: Tensor | None) -> tuple[int, Tensor] | None:
        """Return the index of a timestep's value among the scheduler's: after the last call, else the first one."""
        if timesteps is None:
            return None
        same = self._times is not None and _same_storage(timesteps, self._listed)
        times, time = self._times if same else _values(timesteps), _value(timestep)
        for start in (self._index + 1 if same else 0, 0):
            if time in times[start:]:
                return times.index(time, start), timesteps
        return None

    def _falls(self, timestep: Tensor | float, time: float) -> bool:
        if self._timestep is None or isinstance(timestep, Tensor) != isinstance(self._timestep, Tensor):
            return False
        return time < self._time


def _locate(timestep: Tensor | float, timesteps: Tensor | None) -> tuple[int, Tensor] | None:
    """Return the index and the list of timesteps that a timestep is a view into; None if it is no view."""
    if not isinstance(timestep, Tensor) or any(timestep.stride()):
        return None
    if timesteps is not None and _same_storage(timestep, timesteps):
        return timestep.storage_offset() - timesteps.storage_offset(), timesteps
    total = timestep.untyped_storage().nbytes() // timestep.element_size()
    if total <= 1:
        return None
    return timestep.storage_offset(), timestep.detach().as_strided((total,), (1,), 0)


def _same_storage(a: Tensor | float, b: Tensor | float | None) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    return a.device == b.device and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _values(timesteps: Tensor) -> tuple[float, ...]:
    return tuple(float(time) for time in timesteps.tolist())


def _value(timestep: Tensor | float) -> float:
    return float(timestep.flatten()[0]) if torch.is_tensor(timestep) else float(timestep)
