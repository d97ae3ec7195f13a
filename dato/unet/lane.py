"""A lane: what is kept of one of the calls that a generation makes at each step. `dato.unet.generation` says why."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dato.unet.cache import Cache, version_of


class Lane:
    """One of the calls that a generation makes at each step.

    Args:
        cache: What past calls of this lane computed.

    Attributes:
        index: The index of its last call; -1 before the first one.
        farthest: How far its latents have turned from one call to the next, at most.
        leaps: How many of its last turns were too far.
        pruning: The state of token pruning; None before the first call.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache, self.index = cache, -1
        self.farthest = 0.0
        self.leaps = 0
        self.pruning: Any = None
        self._kind: tuple | None = None
        self._text: tuple[_Known, ...] | None = None
        self._sample: Tensor | None = None

    def enter(self, index: int, sample: Tensor, text: tuple[Tensor | None, ...]) -> None:
        """Begin a call."""
        self.index, self._kind, self._sample = index, _kind(sample), sample.detach()
        self._text = tuple(_Known(tensor) for tensor in text)

    def fits(self, sample: Tensor) -> bool:
        """Return whether a call has the batch, size, dtype and device of the lane's last call."""
        return self._kind == _kind(sample)

    def reads(self, text: tuple[Tensor | None, ...]) -> bool:
        """Return whether a call has the text of the lane's last call."""
        known = self._text
        if known is None or len(known) != len(text):
            return False
        return all(one.equals(tensor) for one, tensor in zip(known, text, strict=True))

    def distance(self, sample: Tensor) -> float:
        """Return the mean square difference of a call's latents from those of the lane's last call."""
        return float((sample.detach().float() - self._sample.float()).square().mean())

    def turn(self, sample: Tensor) -> float:
        """Return how far a call's latents have turned from those of the lane's last call: 1 minus the cosine.

        Values that are the same do not count: inpainting has channels that never change.
        """
        now, before = sample.detach().float(), self._sample.float()
        changed = now != before
        now, before = now * changed, before * changed
        return float(1 - (now * before).sum() / (now.norm() * before.norm()).clamp_min(1e-12)) if changed.any() else 0.0

    def forget(self) -> None:
        """Forget what past calls computed."""
        self.cache.clear()
        self.pruning = None

    def clear(self) -> None:
        """Free what the lane keeps."""
        self.forget()
        self.index, self.farthest, self.leaps = -1, 0.0, 0
        self._kind = self._text = self._sample = None


class _Known:
    """A tensor as it was at a call, or None."""

    def __init__(self, tensor: Tensor | None) -> None:
        self._tensor = tensor
        self._version = None if tensor is None else version_of(tensor)

    def equals(self, tensor: Tensor | None) -> bool:
        """Return whether another tensor has the same values. If it is the same memory, no value is read."""
        known = self._tensor
        if known is None or tensor is None:
            return known is tensor
        if known is tensor:
            return self._version == version_of(tensor)
        if known.shape != tensor.shape or known.device != tensor.device:
            return False
        if known.data_ptr() == tensor.data_ptr() and known.stride() == tensor.stride():
            return self._version == version_of(tensor)
        return torch.equal(known, tensor)


def _kind(sample: Tensor) -> tuple:
    return sample.shape, sample.dtype, sample.device
