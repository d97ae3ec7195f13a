"""Recover a pruned token from its own past, instead of from its base token.

A layer's outputs move almost on a line from one call to the next. So a token's output one or two calls ago is a better
estimate than its neighbour's output now. An old line is a worse estimate, so it is continued by at most its own length.

Similarity alone prunes nearly the same tokens at every call, so their past outputs become too old. With this recovery
the tokens therefore take turns (`select_tokens(last=...)`). Guidance amplifies every difference between what its two
halves choose. With base scores that are mostly noise, set `Pruning.align_cfg`.

The idea that a token reuses its own last output is from ToCa (Zou et al., "Accelerating Diffusion Transformers with
Token-wise Feature Caching", ICLR 2025). The line, its limit, the base token beyond the limit and the turns are ours.
B is the batch, N the number of tokens, K the number of pruned ones, C the channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dato.tokens.selection import TokenSelection
from dato.utils.half_precision import finite


class TokenPast:
    """One layer's last two computed outputs for each token, and their timesteps.

    Everything stays on the device, and nothing makes the host wait for it.
    """

    def __init__(self) -> None:
        self.clear()

    @property
    def last(self) -> Tensor | None:
        """(B, N): `turn` of the call at which each token was last computed; infinity: never. None before any call."""
        return self._turns

    @property
    def state(self) -> tuple:
        """What is remembered."""
        return self._values, self._times, self._turns

    @state.setter
    def state(self, state: tuple) -> None:
        self._values, self._times, self._turns = state

    def clear(self) -> None:
        """Forget everything, because a new generation begins."""
        # v0, v1 (B, N, C) and t0, t1 (B, N) in float32; a time of infinity: never computed.
        self._values: tuple[Tensor, Tensor] | None = None
        self._times: tuple[Tensor, Tensor] | None = None
        self._turns: Tensor | None = None  # (B, N)

    def copy_state(self) -> None:
        """Copy the state, see `TokenPruner.copy_state`."""
        if self._values is not None:
            self._values = self._values[0].clone(), self._values[1].clone()
            self._times = self._times[0].clone(), self._times[1].clone()
            self._turns = self._turns.clone()

    def restore(
        self, output: Tensor, selection: TokenSelection | None, time: float | Tensor, turn: float | Tensor
    ) -> Tensor:
        """Fill up a layer's output, and remember the tokens that the layer computed.

        A pruned token gets v1 + k (v1 - v0) with k = (time - t1) / (t1 - t0). (t0, v0) and (t1, v1) are the last two
        different timesteps at which it was computed, and its values there. If there are no two, or |k| is above 1, it
        gets what `TokenSelection.restore` gives.

        Args:
            output: (B, N - K, C) of the kept tokens; (B, N, C) if nothing is pruned.
            selection: The call's selection; None if nothing is pruned.
            time: The call's timestep. As a tensor () it keeps a compiled call the same for all timesteps.
            turn: A number that falls from timestep to timestep, even where a sampler's timesteps rise.

        Returns:
            (B, N, C) in the dtype of `output`.
        """
        full = output if selection is None else selection.restore(output)
        if self._values is None:
            never = torch.full(full.shape[:2], torch.inf, device=full.device)
            self._values, self._times, self._turns = (full.detach(), full.detach()), (never, never), never
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
        self._turns = self._turns.masked_fill(computed, turn)
        return restored
