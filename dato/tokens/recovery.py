"""A pruned token continued along its own past, instead of being given its base token's output.

A layer's outputs move almost on a line from one call to the next, so what the layer made of a token a call or two ago
tells more about that token than its neighbour does. An old line tells less: it is followed no further than it is long.
Similarity alone picks nearly the same tokens at every call, whose pasts grow old; so with this recovery the tokens take
turns (`select_tokens(last=...)`). Guidance amplifies what its two halves choose differently: with base scores that are
mostly noise, `Pruning.align_cfg` belongs to it.

That a token takes its own last output is the idea of ToCa (Zou et al., "Accelerating Diffusion Transformers with
Token-wise Feature Caching", ICLR 2025); the line, its reach, the base token beyond it and the turns are ours.
B images, N tokens of which K are pruned, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dato.tokens.selection import TokenSelection
from dato.utils.half_precision import finite


class TokenPast:
    """What one layer put out where it computed each token last and second to last, and at which timesteps.

    Everything stays on the device, and nothing makes it wait.
    """

    def __init__(self) -> None:
        self.clear()

    @property
    def last(self) -> Tensor | None:
        """t1 (B, N): the timestep at which each token was last computed, infinity for never; None before any call."""
        return None if self._times is None else self._times[1]

    def clear(self) -> None:
        """A new generation begins: nothing was computed yet."""
        # v0, v1 (B, N, C) and t0, t1 (B, N) in float32; a time of infinity: never computed.
        self._values: tuple[Tensor, Tensor] | None = None
        self._times: tuple[Tensor, Tensor] | None = None

    def copy_state(self) -> None:
        """See `TokenPruner.copy_state`."""
        if self._values is not None:
            self._values = self._values[0].clone(), self._values[1].clone()
            self._times = self._times[0].clone(), self._times[1].clone()

    def restore(self, output: Tensor, selection: TokenSelection | None, time: float | Tensor) -> Tensor:
        """Fill up a layer's output, and take note of the tokens that it computed.

        A pruned token gets v1 + k (v1 - v0) with k = (time - t1) / (t1 - t0), from the last two different timesteps at
        which it was computed, where there are two and k is at most 1; else what `TokenSelection.restore` gives it.

        Args:
            output: (B, N - K, C) of the kept tokens; (B, N, C) where nothing is pruned.
            selection: Of this call; None where nothing is pruned.
            time: The call's timestep; a tensor () keeps a compiled call the same for all timesteps.

        Returns:
            (B, N, C) in the dtype of `output`.
        """
        full = output if selection is None else selection.restore(output)
        if self._values is None:
            never = torch.full(full.shape[:2], torch.inf, device=full.device)
            self._values, self._times = (full.detach(), full.detach()), (never, never)
        (v0, v1), (t0, t1) = self._values, self._times
        computed = torch.ones_like(t1, dtype=torch.bool)
        restored = full
        if selection is not None:
            computed = torch.zeros_like(computed).scatter_(1, selection.kept, True)
            k = (time - t1) / (t1 - t0)
            fresh = ~computed & t0.isfinite() & (k.abs() <= 1)
            # lerp sums half precision in float32, and gives v1 itself where k = 0.
            line = finite(torch.lerp(v0, v1, (1 + k).to(v1.dtype)[..., None]))
            restored = torch.where(fresh[..., None], line, full)
        moved = computed & (t1 != time)  # of two values at one timestep the later counts
        self._values = torch.where(moved[..., None], v1, v0), torch.where(computed[..., None], full.detach(), v1)
        self._times = torch.where(moved, t1, t0), t1.masked_fill(computed, time)
        return restored
