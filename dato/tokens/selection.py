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


@dataclass(eq=False)
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

    def __post_init__(self) -> None:
        # Computed once, for every layer shortens and restores.
        self._shorten = _rows(self.kept, self.source.shape[1])
        self._restore = _rows(self.source, self.kept.shape[1])

    def shorten(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N - K, C): the kept tokens, in their order."""
        short = _take_rows(x, self._shorten)
        if not self.merge or not self.pruned.shape[1]:
            return short
        target = self.source.gather(1, self.pruned)[..., None].expand(-1, -1, x.shape[2])
        return short.scatter_reduce(1, target, _take(x, self.pruned), "mean", include_self=True)

    def restore(self, y: Tensor) -> Tensor:
        """(B, N - K, C) -> (B, N, C): kept tokens in their places, pruned ones a copy of their source."""
        return _take_rows(y, self._restore)


def similarity_score(x: Tensor) -> Tensor:
    """SimScore_i = sum_j cos(x_i, x_j), SiTo's equation for base tokens: (B, N, C) -> (B, N) in float32.

    The sum of cosines is the product with the sum of the normalised tokens, so no N x N matrix is needed.
    """
    scale = _scale(x)
    if x.dtype in (torch.float16, torch.bfloat16):
        # A matrix product would be rounded to half precision, where neighbours' scores are equal; a sum need not be.
        mean = (x * scale[..., None].to(x.dtype)).mean(dim=1, keepdim=True, dtype=torch.float32)
        score = (x * mean.to(x.dtype)).sum(dim=2, dtype=torch.float32) * x.shape[1]
    else:
        total = torch.bmm(scale[:, None], x)  # (B, 1, C)
        score = torch.bmm(x, total.transpose(1, 2)).squeeze(2)
    return (score * scale).float()


def is_noisy(pruning: Pruning) -> bool:
    """Whether the base score takes noise."""
    return pruning.score not in ("I", "III", "V")


def base_score(
    x: Tensor,
    pruning: Pruning,
    noise: Tensor | None = None,
    difference: Tensor | None = None,
) -> Tensor:
    """The score by which base tokens are chosen, for tokens x (B, N, C): (B, N) in float32.

    Args:
        x: Hidden states of the tokens.
        pruning: Says which score (SiTo's, DaTo's, or a row of SiTo's table 3) and its weights.
        noise: (B, N), drawn from N(0, 1), for scores that take it (`is_noisy`).
        difference: (B, N), DaTo's D with its sign: how much the last two predictions differ at each token. None while
            there are no two predictions: DaTo's score is then noise alone.
    """
    if pruning.score == "I":
        return torch.zeros(x.shape[:2], device=x.device)  # the first of equals is the top-left one
    if pruning.score in ("II", "IV"):
        return noise
    if pruning.score == "dato":
        score = pruning.noise_alpha * noise
        return score if difference is None else score + pruning.diff_gamma * difference.float()
    score = similarity_score(x)
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
    align_cfg: bool | int = False,
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
        similarity: A token is compared with all base tokens ("global", the papers), in the dtype of x, or with those
            of its own patch and the eight around it ("local").
        merge: See `TokenSelection.merge`.
        align_cfg: The second half of the batch uses the first half's base tokens; 3: the batch has three parts, as
            where an image guides too (InstructPix2Pix).
        last: (B, N) timesteps, falling as a sampler's do, at which each token was last computed; infinity: never. The
            tokens with the highest become base tokens and are kept.

    Raises:
        DatoError: if shapes do not fit or K is above N - M; the message names the bound.

    Example:
        >>> x = torch.eye(8).repeat_interleave(2, dim=1).view(1, 16, 8)  # a 4 x 4 grid
        >>> selection = select_tokens(x, (4, 4), 6)
        >>> selection.base.shape, selection.pruned.shape  # one base token for each patch of 2 x 2
        (torch.Size([1, 4]), torch.Size([1, 6]))
        >>> short = selection.shorten(x)
        >>> short.shape, selection.restore(short).shape
        (torch.Size([1, 10, 8]), torch.Size([1, 16, 8]))
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
    base, others = _base_tokens(similarity_score(x) if score is None else score, grid, patch, m, last)
    parts = 2 if align_cfg is True else int(align_cfg)
    if parts and b % parts == 0:
        base, others = (each[: b // parts].repeat(parts, 1) for each in (base, others))

    if similarity == "global":
        best, nearest = _most_similar(x, others, base)
    else:
        best, nearest = (of_all.gather(1, others) for of_all in _most_similar_around(x, grid, patch, base))
    if last is None:
        pick = best.topk(num_prune, dim=1, sorted=False).indices
    else:
        pick = _order(-last.gather(1, others), best)[:, :num_prune]
    picked = others.gather(1, pick)
    target = torch.zeros(b, n, dtype=torch.long, device=x.device)  # of each pruned token the one it is recovered from
    target = target.scatter(1, picked, nearest.gather(1, pick))

    kept, pruned = _partition(picked, n)
    target = _most_similar(x, pruned, kept)[1] if recover_from == "kept" else target.gather(1, pruned)
    position = torch.zeros(b, n, dtype=torch.long, device=x.device)
    position = position.scatter(1, kept, torch.arange(n - num_prune, device=x.device).expand(b, -1))
    source = position.scatter(1, pruned, position.gather(1, target))
    return TokenSelection(base, pruned, kept, source, merge)


def _scale(x: Tensor) -> Tensor:
    """1 / |x_i| of each token of (B, N, C): (B, N), at least float32. With it no normalised copy of x is needed."""
    norm = torch.linalg.vector_norm(x, dim=2, dtype=torch.promote_types(x.dtype, torch.float32))
    return norm.clamp_min(1e-6).reciprocal()


def _most_similar(x: Tensor, tokens: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """For each of `tokens` (B, n) its highest cosine to one of `candidates` (B, m), and which: (B, n) and (B, n)."""
    scale = _scale(x)
    across = (_take(x, candidates) * scale.gather(1, candidates)[..., None].to(x.dtype)).transpose(1, 2)
    # In pieces of a quarter of all tokens: n x m products are never there at once.
    pieces = [torch.bmm(_take(x, piece), across).max(dim=2) for piece in tokens.split(max(x.shape[1] // 4, 1), dim=1)]
    best, nearest = (torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True))
    return best * scale.gather(1, tokens), candidates.gather(1, nearest)


def _most_similar_around(
    x: Tensor, grid: tuple[int, int], patch: tuple[int, int], base: Tensor
) -> tuple[Tensor, Tensor]:
    """For each token its highest cosine to a base token of its own or an adjacent patch, and that token's index.

    Tokens that no whole patch holds count to the patch nearest to them. One product of sy * sx by 9 for each patch.

    Returns:
        (B, N) and (B, N).
    """
    b, _, c = x.shape
    (h, w), (sy, sx) = grid, patch
    rows, cols = h // sy, w // sx
    tall, wide = math.ceil(h / sy), math.ceil(w / sx)
    scale = _scale(x)

    def around(count: int, whole: int) -> Tensor:
        own = torch.arange(count, device=x.device).clamp_max(whole - 1)
        return (own[:, None] + torch.arange(-1, 2, device=x.device)).clamp(0, whole - 1)

    near = (around(tall, rows)[:, None, :, None] * cols + around(wide, cols)[None, :, None, :]).view(tall, wide * 9)
    bases = _take(x, base) * scale.gather(1, base)[..., None].to(x.dtype)  # (B, M, C)
    whole = x.view(b, h, w, c)
    if (h, w) != (tall * sy, wide * sx):  # padding by nothing would be a copy
        whole = F.pad(whole, (0, 0, 0, wide * sx - w, 0, tall * sy - h))
    whole = whole.view(b, tall, sy, wide, sx, c)
    best, which = [], []
    for line in range(0, tall, step := math.ceil(tall / 4)):  # in pieces, as above
        piece = whole[:, line : line + step].transpose(2, 3).reshape(-1, sy * sx, c)
        beside = bases.index_select(1, near[line : line + step].reshape(-1)).view(-1, 9, c)
        found = torch.bmm(piece, beside.transpose(1, 2)).max(dim=2)
        best.append(found.values.view(b, -1, wide, sy, sx))
        which.append(found.indices.view(b, -1, wide, sy, sx))
    number = torch.cat(which, dim=1)  # 0 to 8, of (B, tall, wide, sy, sx)
    number = near.view(1, tall, wide, 9).expand(b, -1, -1, -1).gather(3, number.flatten(3)).view_as(number)

    def in_order(of_patches: Tensor) -> Tensor:
        return of_patches.transpose(2, 3).reshape(b, tall * sy, wide * sx)[:, :h, :w].reshape(b, h * w)

    return in_order(torch.cat(best, dim=1)) * scale, base.gather(1, in_order(number))


def _base_tokens(
    score: Tensor, grid: tuple[int, int], patch: tuple[int, int] | None, m: int, last: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Base tokens (B, M) and all others (B, N - M)."""
    b, n = score.shape
    if patch is None:
        best = score.topk(m, dim=1).indices if last is None else _order(last, score)[:, :m]
        others, base = _partition(best, n)
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


def _partition(index: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The indices below n that are not in `index` (B, k), and those that are, both ascending; nothing waits."""
    b, k = index.shape
    taken = torch.zeros(b, n, dtype=torch.uint8, device=index.device).scatter(1, index, 1)
    others, chosen = taken.argsort(dim=1, stable=True).split((n - k, k), dim=1)
    return others, chosen


def _order(first: Tensor, then: Tensor) -> Tensor:
    """Indices of each row by falling `first`, equals by falling `then`: (B, n), (B, n) -> (B, n)."""
    order = then.argsort(dim=1, descending=True, stable=True)
    return order.gather(1, first.gather(1, order).argsort(dim=1, descending=True, stable=True))


def _rows(index: Tensor, n: int) -> Tensor:
    """Tokens `index` (B, k) of images of n tokens each, counted through the whole batch: (B * k,)."""
    return (index + n * torch.arange(len(index), device=index.device)[:, None]).view(-1)


def _take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (B * k,) of x (B, n, C): (B, k, C). On a CPU this is ten times as fast as a gather."""
    return x.reshape(-1, x.shape[2]).index_select(0, rows).view(len(x), -1, x.shape[2])


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens `index` (B, k) of x (B, n, C): (B, k, C)."""
    return _take_rows(x, _rows(index, x.shape[1]))
