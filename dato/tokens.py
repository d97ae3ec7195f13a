"""Token pruning by similarity: choose tokens, leave them out of a layer, fill them in again afterwards.

Source: Zhang et al., "Training-Free and Hardware-Friendly Acceleration for Diffusion Models via Similarity-based
Token Pruning" (SiTo, AAAI 2025), and DaTo's temporal base score. B is the batch, N = h * w the number of tokens
on an (h, w) grid, C the channels, M the number of base tokens, K the number of pruned ones.
"""

from __future__ import annotations

import math
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


def normalise(x: Tensor) -> Tensor:
    """Tokens (B, N, C) at length 1, in float32."""
    # What enters a block is a transposed view of an image; norms along its stride would be slow.
    return F.normalize(x.contiguous().float(), dim=-1)


def similarity_score(x: Tensor) -> Tensor:
    """SimScore_i = sum_j cos(x_i, x_j), SiTo's equation for base tokens: (B, N, C) -> (B, N) in float32.

    The sum of cosines is the product with the sum of the normalised tokens, so no N x N matrix is needed.
    """
    return _row_sums(normalise(x))


def is_noisy(pruning: Pruning) -> bool:
    """Whether the base score takes noise."""
    return pruning.score not in ("I", "III", "V")


def base_score(
    x: Tensor,
    pruning: Pruning,
    noise: Tensor | None = None,
    difference: Tensor | None = None,
    unit: Tensor | None = None,
) -> Tensor:
    """The score by which base tokens are chosen, for tokens x (B, N, C): (B, N) in float32.

    Args:
        x: Hidden states of the tokens.
        pruning: Says which score (SiTo's, DaTo's, or a row of SiTo's table 3) and its weights.
        noise: (B, N), drawn from N(0, 1), for scores that take it (`is_noisy`).
        difference: (B, N), DaTo's D with its sign: how much the last two predictions differ at each token. None while
            there are no two predictions: DaTo's score is then noise alone.
        unit: `normalise(x)`, where that is known.
    """
    if pruning.score == "I":
        return torch.zeros(x.shape[:2], device=x.device)  # the first of equals is the top-left one
    if pruning.score in ("II", "IV"):
        return noise
    if pruning.score == "dato":
        score = pruning.noise_alpha * noise
        return score if difference is None else score + pruning.diff_gamma * difference.float()
    score = _row_sums(normalise(x) if unit is None else unit)
    if pruning.score in ("V", "III"):
        return score
    return pruning.sim_beta * score + pruning.noise_alpha * noise


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
    similarity: str = "global",
    merge: bool = False,
    align_cfg: bool = False,
    last: Tensor | None = None,
    unit: Tensor | None = None,
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
        similarity: A token is compared with all base tokens ("global", the papers), in the dtype of x, or with those
            of its own patch and the eight around it ("local").
        merge: See `TokenSelection.merge`.
        align_cfg: The second half of the batch uses the first half's base tokens.
        last: (B, N) timesteps, falling as a sampler's do, at which each token was last computed; infinity: never. The
            tokens with the highest become base tokens and are kept.
        unit: `normalise(x)`, where that is known.

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
    unit = normalise(x) if unit is None else unit
    base, others = _base_tokens(_row_sums(unit) if score is None else score, grid, patch, m, last)
    if align_cfg and b % 2 == 0:
        base, others = (half[: b // 2].repeat(2, 1) for half in (base, others))

    unit = unit.to(x.dtype)
    if similarity == "global":
        best, nearest = _most_similar(_take(unit, others), _take(unit, base))
        nearest = base.gather(1, nearest)
    else:
        best, nearest = (of_all.gather(1, others) for of_all in _most_similar_around(unit, grid, patch, base))
    if last is None:
        pick = best.topk(num_prune, dim=1, sorted=False).indices
    else:
        pick = _order(-last.gather(1, others), best)[:, :num_prune]
    target = torch.zeros(b, n, dtype=torch.long, device=x.device)  # of each pruned token the one it is recovered from
    target = target.scatter(1, others.gather(1, pick), nearest.gather(1, pick))

    pruned = torch.zeros(b, n, dtype=torch.uint8, device=x.device).scatter(1, others.gather(1, pick), 1)
    kept, pruned = pruned.argsort(dim=1, stable=True).split((n - num_prune, num_prune), dim=1)
    if recover_from == "kept":
        target = kept.gather(1, _most_similar(_take(unit, pruned), _take(unit, kept))[1])
    else:
        target = target.gather(1, pruned)
    position = torch.zeros(b, n, dtype=torch.long, device=x.device)
    position = position.scatter(1, kept, torch.arange(n - num_prune, device=x.device).expand(b, -1))
    source = position.scatter(1, pruned, position.gather(1, target))
    return TokenSelection(base, pruned, kept, source, merge)


def _row_sums(unit: Tensor) -> Tensor:
    """Row sums of the cosine matrix of normalised tokens (B, N, C), without the matrix: (B, N)."""
    return torch.bmm(unit, unit.sum(dim=1)[..., None]).squeeze(2)


def _most_similar(tokens: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """For each of (B, n, C) the highest product with one of (B, m, C), and which it is: (B, n) and (B, n).

    In pieces of as many tokens as there are candidates, so that n x m products are never there at once.
    """
    across = candidates.transpose(1, 2)
    pieces = [torch.bmm(piece, across).max(dim=2) for piece in tokens.split(max(candidates.shape[1], 1), dim=1)]
    if len(pieces) == 1:
        return pieces[0].values, pieces[0].indices
    return torch.cat([p.values for p in pieces], dim=1), torch.cat([p.indices for p in pieces], dim=1)


def _most_similar_around(
    unit: Tensor, grid: tuple[int, int], patch: tuple[int, int], base: Tensor
) -> tuple[Tensor, Tensor]:
    """For each token the highest product with a base token of its own or an adjacent patch, and that token's index.

    Tokens that no whole patch holds count to the patch nearest to them. One product of sy * sx by 9 for each patch.

    Returns:
        (B, N) and (B, N).
    """
    b, _, c = unit.shape
    (h, w), (sy, sx) = grid, patch
    rows, cols = h // sy, w // sx
    tall, wide = math.ceil(h / sy), math.ceil(w / sx)

    def around(count: int, whole: int) -> Tensor:
        near = torch.arange(count, device=unit.device)[:, None] + torch.arange(-1, 2, device=unit.device)
        return near.clamp(0, whole - 1)

    near = (around(tall, rows)[:, None, :, None] * cols + around(wide, cols)[None, :, None, :]).view(-1)
    near = base[:, near]  # (B, tall * wide * 9) token indices
    x = F.pad(unit.view(b, h, w, c), (0, 0, 0, wide * sx - w, 0, tall * sy - h))
    x = x.view(b, tall, sy, wide, sx, c).transpose(2, 3).reshape(b * tall * wide, sy * sx, c)
    best, which = torch.bmm(x, _take(unit, near).view(b * tall * wide, 9, c).transpose(1, 2)).max(dim=2)
    nearest = near.view(b * tall * wide, 9).gather(1, which)

    def in_order(of_patches: Tensor) -> Tensor:
        whole = of_patches.view(b, tall, wide, sy, sx).transpose(2, 3).reshape(b, tall * sy, wide * sx)
        return whole[:, :h, :w].reshape(b, h * w)

    return in_order(best), in_order(nearest)


def _base_tokens(
    score: Tensor, grid: tuple[int, int], patch: tuple[int, int] | None, m: int, last: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Base tokens (B, M) and all others (B, N - M)."""
    b, n = score.shape
    if patch is None:
        best = score.topk(m, dim=1).indices if last is None else _order(last, score)[:, :m]
        taken = torch.zeros(b, n, dtype=torch.uint8, device=score.device).scatter(1, best, 1)
        others, base = taken.argsort(dim=1, stable=True).split((n - m, m), dim=1)
        return base, others
    (h, w), (sy, sx), size = grid, patch, patch[0] * patch[1]
    rows, cols = h // sy, w // sx  # what does not fill a patch has no base token
    table = torch.arange(n, device=score.device).view(h, w)
    index = table[: rows * sy, : cols * sx].reshape(rows, sy, cols, sx).transpose(1, 2).reshape(m, size)
    score = score[:, index]  # (B, M, sy * sx)
    if last is not None:
        turn = last[:, index]
        score = score.masked_fill(turn < turn.amax(dim=2, keepdim=True), -torch.inf)
    index = index.expand(b, -1, -1)
    best = score.argmax(dim=2, keepdim=True)
    rest = torch.arange(size - 1, device=score.device)
    rest = rest + (rest >= best)  # (B, M, sy * sx - 1): a patch's other places
    others = index.gather(2, rest).view(b, -1)
    if others.shape[1] + m < n:
        beside = torch.cat([table[: rows * sy, cols * sx :].reshape(-1), table[rows * sy :].reshape(-1)])
        others = torch.cat([others, beside.expand(b, -1)], dim=1)
    return index.gather(2, best).squeeze(2), others


def _order(first: Tensor, then: Tensor) -> Tensor:
    """Indices of each row by falling `first`, equals by falling `then`: (B, n), (B, n) -> (B, n)."""
    order = then.argsort(dim=1, descending=True, stable=True)
    return order.gather(1, first.gather(1, order).argsort(dim=1, descending=True, stable=True))


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, k) of x (B, n, C): (B, k, C), as one copy of rows."""
    b, n, c = x.shape
    flat = index + n * torch.arange(b, device=x.device)[:, None]
    return x.reshape(b * n, c).index_select(0, flat.reshape(-1)).view(b, -1, c)
