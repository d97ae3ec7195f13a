"""SiTo's choice of tokens with the matrix of all similarities, as the paper describes it.

`dato.tokens` is timed and tested against it. Source: Zhang et al., SiTo (AAAI 2025), section 3. It costs O(N^2 C)
operations and O(N^2) memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dato.errors import DatoError
from dato.tokens.selection import TokenSelection, num_base_tokens


def plain_select_tokens(
    x: Tensor,
    grid: tuple[int, int],
    num_prune: int,
    *,
    patch: tuple[int, int] = (2, 2),
    score: Tensor | None = None,
    recover_from: str = "base",
) -> TokenSelection:
    """Return the tokens that `dato.tokens.select_tokens` chooses, except for ties. The arguments are the same.

    Args:
        x: (B, N, C) hidden states.
        grid: (h, w) with h * w = N.
        num_prune: K, at most N minus the number of base tokens.
        patch: (sy, sx).
        score: (B, N) base score. None: SimScore.
        recover_from: "base" or "kept".

    Raises:
        DatoError: if num_prune is larger than that.
    """
    b, n, _ = x.shape
    (h, w), (sy, sx) = grid, patch
    m = num_base_tokens(grid, patch)
    if num_prune > n - m:
        raise DatoError(f"token pruning: cannot prune {num_prune} of {n} tokens: {m} are base tokens")
    unit = F.normalize(x, dim=-1)
    similarity = unit @ unit.transpose(1, 2)  # (B, N, N)
    if score is None:
        score = similarity.sum(dim=2, dtype=torch.float32)

    # The token with the highest score of each whole patch is a base token.
    rows, columns = h // sy, w // sx
    patches = score.view(b, h, w)[:, : rows * sy, : columns * sx].unflatten(1, (rows, sy)).unflatten(3, (columns, sx))
    best = patches.transpose(2, 3).flatten(3).argmax(dim=3)  # (B, rows, columns), within the patch
    top = sy * torch.arange(rows, device=x.device)[:, None]
    left = sx * torch.arange(columns, device=x.device)
    base = ((top + best // sx) * w + left + best % sx).flatten(1)
    is_base = torch.zeros(b, n, dtype=torch.bool, device=x.device).scatter_(1, base, True)

    # Of the other tokens the K that are most similar to a base token are pruned.
    highest, nearest = similarity.gather(2, base[:, None].expand(-1, n, -1)).max(dim=2)
    nearest = base.gather(1, nearest)
    pruned = highest.masked_fill(is_base, -torch.inf).topk(num_prune, dim=1).indices.sort(dim=1).values
    is_pruned = torch.zeros_like(is_base).scatter_(1, pruned, True)
    kept = is_pruned.int().argsort(dim=1, stable=True)[:, : n - num_prune]

    # The source of a kept token is its own position among the kept ones, that of a pruned token the position of the
    # token that it is recovered from.
    if recover_from == "kept":
        nearest = similarity.masked_fill(is_pruned[:, None], -torch.inf).argmax(dim=2)
    position = (~is_pruned).cumsum(dim=1) - 1
    source = position.gather(1, nearest.where(is_pruned, torch.arange(n, device=x.device)))
    return TokenSelection(base, pruned, kept, source)
