"""Which call of a generation is this? Read off the timestep that the sampler hands to the UNet.

Samplers walk through `scheduler.timesteps`, one tensor made anew for every generation, and hand over one element of
it at each call. That element is a view: where it begins in the tensor's storage is the index of the call. This is
exact for samplers that use a timestep twice (PLMS, Heun), for img2img, which starts midway, and for pipelines that
take turns; and it needs no look at the value, for which a GPU would have to stop. The values, which forecasts need,
are read once a generation, all at once. Where something on the way copies the element, as offloading to another device
does, it is looked up among the scheduler's by its value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """One UNet call of a generation.

    Attributes:
        index: Position in the sampler's timesteps, from 0.
        total: How many timesteps the sampler has; None if it cannot be known.
        fresh: Whether nothing of earlier calls may be used: a new generation, or other shapes.
        time: The timestep.
        times: All timesteps of the sampler; None if they cannot be known.
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
        """The next call begins a generation."""
        self._timestep, self._listed, self._kind, self._times = None, None, None, None
        self._index, self._repeated = -1, False

    def next(
        self,
        timestep: Tensor | float,
        sample: Tensor | None = None,
        timesteps: Tensor | None = None,
        length: int = 0,
    ) -> Call:
        """Place one call.

        Args:
            timestep: What the sampler handed to the UNet.
            sample: The UNet's input; a change of its shape, dtype or device makes the call fresh. None: as before.
            timesteps: The scheduler's own, where the pipeline is known.
            length: After so many calls a generation is over, where its timesteps are not known.
        """
        listed = None
        place = _place(timestep, timesteps) or self._found(timestep, timesteps)
        if place is None:
            # A bare number or a tensor of its own. Time runs downwards within a generation; anything else is taken
            # for a new one. A generation that was cut short and one that begins below where it stopped cannot be told
            # apart here: `reset` is for loops that do that.
            time = _value(timestep)
            begun = not self._falls(timestep, time) or self._index + 1 >= length
            index, total = (0 if begun else self._index + 1), None
            self._times = None
        else:
            index, listed = place
            total = len(listed)
            same = _same_storage(listed, self._listed)
            if self._times is None or not same:
                self._times = _values(listed)
            time = self._times[index]
            # Some pipelines call the UNet more than once at a step, for tiles or for guidance of other kinds. Which
            # cache belongs to which call is then unknown, so none is used until the timesteps are others.
            self._repeated = same and (self._repeated or index == self._index)
            begun = self._repeated or index <= self._index or not same
        kind = self._kind if sample is None else (sample.shape, sample.dtype, sample.device)
        fresh = begun or kind != self._kind
        self._timestep, self._listed, self._kind, self._index, self._time = timestep, listed, kind, index, time
        return Call(index, total, fresh, time, self._times)

    def _found(self, timestep: Tensor | float, timesteps: Tensor | None) -> tuple[int, Tensor] | None:
        """Where a timestep's value stands among the scheduler's: after the last call if it is there, else first."""
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


def _place(timestep: Tensor | float, timesteps: Tensor | None) -> tuple[int, Tensor] | None:
    """Where a timestep stands in which list, if it is a view of one element of a list of timesteps, else None."""
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
