"""Find out which call of a generation is running, by the timestep that the sampler gives to the UNet.

Samplers walk through `scheduler.timesteps`, one tensor that is made anew for every generation, and give one element of
it to each call. That element is a view, and where it begins in the tensor's storage is the index of the call. This is
exact for samplers that use a timestep twice (PLMS, Heun), for img2img, which starts midway, and for pipelines that
take turns. It does not read the value, because the host would have to wait for the GPU. Forecasts need the values,
which are read once for each generation, all together. If the element is a copy, as when offloading moves it to another
device, its value is looked up among the scheduler's timesteps. If it is a number and no scheduler is known, timesteps
that fall belong to one generation.
"""

from __future__ import annotations

import torch
from torch import Tensor


def list_of(timestep: Tensor | float, timesteps: Tensor | None) -> Tensor | None:
    """Return the list of timesteps that a timestep comes from; None if it is not known.

    Args:
        timestep: What the sampler gave to the UNet.
        timesteps: The scheduler's timesteps, if the pipeline is known.
    """
    if is_view(timestep):
        if timesteps is not None and same_storage(timestep, timesteps):
            return timesteps
        total = timestep.untyped_storage().nbytes() // timestep.element_size()
        if total > 1:
            return timestep.detach().as_strided((total,), (1,), 0)
    if timesteps is not None and value_of(timestep) in values_of(timesteps):
        return timesteps
    return None


def index_in(timestep: Tensor | float, listed: Tensor) -> int | None:
    """Return the index of a timestep in the list that it is a view into; None if it is no view."""
    if is_view(timestep) and same_storage(timestep, listed):
        return timestep.storage_offset() - listed.storage_offset()
    return None


def of_each_image(timestep: Tensor | float) -> bool:
    """Return whether the images of a batch have different timesteps, as in validation losses."""
    if not isinstance(timestep, Tensor) or timestep.numel() < 2 or not any(timestep.stride()):
        return False
    return len(set(timestep.flatten().tolist())) > 1


def is_view(timestep: Tensor | float) -> bool:
    """Return whether a timestep is one element, perhaps one that was expanded to a batch."""
    return isinstance(timestep, Tensor) and not any(timestep.stride())


def same_storage(a: Tensor | float | None, b: Tensor | float | None) -> bool:
    """Return whether both are tensors in the same memory."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    return a.device == b.device and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def values_of(timesteps: Tensor) -> tuple[float, ...]:
    """Return all timesteps as numbers."""
    return tuple(float(time) for time in timesteps.tolist())


def value_of(timestep: Tensor | float) -> float:
    """Return a timestep as a number."""
    return float(timestep.flatten()[0]) if torch.is_tensor(timestep) else float(timestep)
