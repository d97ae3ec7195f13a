"""Token pruning by similarity: choose tokens, leave them out of a layer, fill them in again afterwards.

Source: Zhang et al., "Training-Free and Hardware-Friendly Acceleration for Diffusion Models via Similarity-based
Token Pruning" (SiTo, AAAI 2025), and DaTo's temporal base score. B is the batch, N = h * w the number of tokens
on an (h, w) grid, C the channels, M the number of base tokens, K the number of pruned ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dato.errors import DatoError
from dato.pruning import Pruning


@dataclass(frozen=True, eq=False)
class TokenSelection:
    """Which tokens are pruned, and where each token finds its value afterwards.

    Attributes:
        base: (B, M) indices of the base tokens, ascending within a row of patches.
        pruned: (B, K) ascending indices of the pruned tokens.
        kept: (B, N - K) ascending indices of the others.
        source: (B, N) for each token the position in the shortened sequence that holds its value: its own, or,
            for a pruned token, that of the token it is recovered from.
        merge: Average pruned tokens into the token that they are recovered from, instead of dropping them.
    """

    base: Tensor
    pruned: Tensor
    kept: Tensor
    source: Tensor
    merge: bool = False

    def shorten(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N - K, C): the kept tokens, in their order."""
        short = _take(x, self.kept)
        if not self.merge or not self.pruned.shape[1]:
            return short
        target = self.source.gather(1, self.pruned)[..., None].expand(-1, -1, x.shape[2])
        return short.scatter_reduce(1, target, _take(x, self.pruned), "mean", include_self=True)

    def restore(self, y: Tensor) -> Tensor:
        """(B, N - K, C) -> (B, N, C): kept tokens in their places, pruned ones a copy of their source."""
        return _take(y, self.source)


def similarity_score(x: Tensor) -> Tensor:
    """SimScore_i = sum_j cos(x_i, x_j), SiTo's equation for base tokens: (B, N, C) -> (B, N) in float32.

    The sum of cosines is the product with the sum of the normalised tokens, so no N x N matrix is needed.
    """
    unit = F.normalize(x.float(), dim=-1)
    return torch.einsum("bnc,bc->bn", unit, unit.sum(dim=1))


def base_score(
    x: Tensor, pruning: Pruning, generator: torch.Generator | None = None, difference: Tensor | None = None
) -> Tensor:
    """The score by which base tokens are chosen, for tokens x (B, N, C): (B, N) in float32.

    Args:
        x: Hidden states of the tokens.
        pruning: Says which score (SiTo's, DaTo's, or a row of SiTo's table 3) and its weights.
        generator: Source of the noise, on x's device.
        difference: (B, N), DaTo's D: how much the last two predictions differ at each token. None while there are
            no two predictions: DaTo's score is then noise alone.
    """

    def noise() -> Tensor:
        return torch.randn(x.shape[:2], generator=generator, device=x.device, dtype=torch.float32)

    if pruning.score in ("sito", "VI"):
        return pruning.sim_beta * similarity_score(x) + pruning.noise_alpha * noise()
    if pruning.score in ("V", "III"):
        return similarity_score(x)
    if pruning.score in ("II", "IV"):
        return noise()
    if pruning.score == "I":
        return torch.zeros(x.shape[:2], device=x.device)  # the first of equals is the top-left one
    score = pruning.noise_alpha * noise()
    if difference is not None:
        # A tensor sign, so that a GPU need not wait for the host.
        sign = torch.randint(0, 2, (1,), generator=generator, device=x.device) * 2.0 - 1.0
        score = score + sign * pruning.diff_gamma * difference.float()
    return score


def base_patch(pruning: Pruning) -> tuple[int, int] | None:
    """The patch of which each gives one base token; None where they may lie anywhere (table 3, II and III)."""
    return None if pruning.score in ("II", "III") else pruning.patch


def num_base_tokens(grid: tuple[int, int], patch: tuple[int, int] | None) -> int:
    """M: one base token for each whole patch of the grid, or a quarter of all tokens where `patch` is None."""
    h, w = grid
    m = h * w // 4 if patch is None else (h // patch[0]) * (w // patch[1])
    if m < 1:
        raise DatoError(f"token pruning: no patch of {patch or (2, 2)} fits a grid of {h} x {w} tokens")
    return m


def select_tokens(
    x: Tensor,
    grid: tuple[int, int],
    num_prune: int,
    *,
    patch: tuple[int, int] | None = (2, 2),
    score: Tensor | None = None,
    recover_from: str = "base",
    merge: bool = False,
    align_cfg: bool = False,
    last: Tensor | None = None,
) -> TokenSelection:
    """Choose base tokens, and the `num_prune` other tokens that are most similar to one of them (SiTo, section 3).

    With `last`, tokens take turns (ours): each choice goes by it first, and by score or similarity among equals.

    Args:
        x: (B, N, C) hidden states.
        grid: (h, w) with h * w = N.
        num_prune: K, the same for the whole batch; at most N - M.
        patch: (sy, sx); the token with the highest score of each whole patch is a base token. None: the quarter of
            all tokens with the highest scores, wherever they are.
        score: (B, N) base score; None: SimScore.
        recover_from: Whose value a pruned token gets: "kept", its most similar kept token's (the authors' code);
            "base" (the paper) and "past" (which needs it beside the past), its most similar base token's.
        merge: See `TokenSelection.merge`.
        align_cfg: The second half of the batch uses the first half's base tokens.
        last: (B, N) timesteps, falling as a sampler's do, at which each token was last computed; infinity: never. The
            tokens with the highest become base tokens and are kept.

    Raises:
        DatoError: if shapes do not fit or K is above N - M; the message names the bound.
    """
    b, n, _ = x.shape
    h, w = grid
    if h * w != n:
        raise DatoError(f"token pruning: a grid of {h} x {w} has {h * w} tokens, but x has {n}")
    m = num_base_tokens(grid, patch)
    if not 0 <= num_prune <= n - m:
        raise DatoError(
            f"token pruning: cannot prune {num_prune} of {n} tokens: {m} are base tokens, so at most {n - m} "
            f"(a ratio of {(n - m) / n:.4g}) can go; lower the ratio or use larger patches"
        )
    unit = F.normalize(x, dim=-1)
    base = _base_tokens(similarity_score(x) if score is None else score, grid, patch, m, last)
    if align_cfg and b % 2 == 0:
        base = base[: b // 2].repeat(2, 1)

    others = _complement(base, n)
    similarity, nearest = torch.bmm(_take(unit, others), _take(unit, base).transpose(1, 2)).max(dim=2)
    if last is None:
        pick = similarity.topk(num_prune, dim=1, sorted=False).indices
    else:
        pick = _order(-last.gather(1, others), similarity)[:, :num_prune]
    pick = pick.sort(dim=1).values
    pruned = others.gather(1, pick)
    kept = _complement(pruned, n)
    if recover_from != "kept":
        target = base.gather(1, nearest.gather(1, pick))
    else:
        near = torch.bmm(_take(unit, pruned), _take(unit, kept).transpose(1, 2)).argmax(dim=2)
        target = kept.gather(1, near)

    position = torch.zeros(b, n, dtype=torch.long, device=x.device)
    position.scatter_(1, kept, torch.arange(n - num_prune, device=x.device).expand(b, -1))
    source = position.scatter(1, pruned, position.gather(1, target))
    return TokenSelection(base, pruned, kept, source, merge)


def _base_tokens(
    score: Tensor, grid: tuple[int, int], patch: tuple[int, int] | None, m: int, last: Tensor | None
) -> Tensor:
    if patch is None:
        best = score.topk(m, dim=1).indices if last is None else _order(last, score)[:, :m]
        return best.sort(dim=1).values
    (h, w), (sy, sx) = grid, patch
    rows, cols = h // sy, w // sx  # what does not fill a patch has no base token
    index = torch.arange(h * w, device=score.device).view(h, w)
    index = index[: rows * sy, : cols * sx].reshape(rows, sy, cols, sx).transpose(1, 2).reshape(m, sy * sx)
    score = score[:, index]  # (B, M, sy * sx)
    if last is not None:
        turn = last[:, index]
        score = score.masked_fill(turn < turn.amax(dim=2, keepdim=True), -torch.inf)
    best = score.argmax(dim=2)
    return index.expand(len(score), -1, -1).gather(2, best[..., None]).squeeze(2)


def _order(first: Tensor, then: Tensor) -> Tensor:
    """Indices of each row by falling `first`, equals by falling `then`: (B, n), (B, n) -> (B, n)."""
    order = then.argsort(dim=1, descending=True, stable=True)
    return order.gather(1, first.gather(1, order).argsort(dim=1, descending=True, stable=True))


def _complement(index: Tensor, n: int) -> Tensor:
    """The ascending indices below n that are not in `index` (B, k): (B, n - k); no device synchronisation."""
    taken = torch.zeros(len(index), n, dtype=torch.uint8, device=index.device).scatter_(1, index, 1)
    return taken.argsort(dim=1, stable=True)[:, : n - index.shape[1]]


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, k) of x (B, n, C): (B, k, C), as one copy of rows."""
    b, n, c = x.shape
    flat = index + n * torch.arange(b, device=x.device)[:, None]
    return x.reshape(b * n, c).index_select(0, flat.reshape(-1)).view(b, -1, c)
