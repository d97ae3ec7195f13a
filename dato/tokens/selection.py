"""Choose the tokens that a layer leaves out, and fill them in again afterwards.

Source: Zhang et al., "Training-Free and Hardware-Friendly Acceleration for Diffusion Models via Similarity-based
Token Pruning" (SiTo, AAAI 2025), section 3. B is the batch, N = h * w the number of tokens on an (h, w) grid, C the
channels, M the number of base tokens, K the number of pruned ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dato.errors import DatoError
from dato.tokens.indexing import flat_rows, order_by, partition, take, take_rows
from dato.tokens.similarity import most_similar, most_similar_nearby, similarity_score


@dataclass(eq=False)
class TokenSelection:
    """Which tokens are pruned, and where each token finds its value afterwards.

    Attributes:
        base: (B, M) indices of the base tokens, ascending within a row of patches.
        pruned: (B, K) ascending indices of the pruned tokens.
        kept: (B, N - K) ascending indices of the others.
        source: (B, N) the position in the shortened sequence that holds each token's value: its own position, or,
            for a pruned token, the position of the token that it is recovered from.
        merge: Average pruned tokens into the token that they are recovered from, instead of dropping them.
    """

    base: Tensor
    pruned: Tensor
    kept: Tensor
    source: Tensor
    merge: bool = False

    def __post_init__(self) -> None:
        # Computed once, because every layer shortens and restores.
        self._kept_rows = flat_rows(self.kept, self.source.shape[1])
        self._source_rows = flat_rows(self.source, self.kept.shape[1])

    def shorten(self, x: Tensor) -> Tensor:
        """Return the kept tokens in their order: (B, N, C) -> (B, N - K, C)."""
        short = take_rows(x, self._kept_rows)
        if not self.merge or not self.pruned.shape[1]:
            return short
        target = self.source.gather(1, self.pruned)[..., None].expand(-1, -1, x.shape[2])
        return short.scatter_reduce(1, target, take(x, self.pruned), "mean", include_self=True)

    def restore(self, y: Tensor) -> Tensor:
        """Return every token, pruned ones as a copy of their source: (B, N - K, C) -> (B, N, C)."""
        return take_rows(y, self._source_rows)


def num_base_tokens(grid: tuple[int, int], patch: tuple[int, int] | None) -> int:
    """Return M: one base token for each whole patch of the grid, or a quarter of all tokens if `patch` is None.

    Raises:
        DatoError: if there would be none.
    """
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

    With `last`, tokens take turns (ours): each choice compares `last` first, and score or similarity among equals.

    Args:
        x: (B, N, C) hidden states.
        grid: (h, w) with h * w = N.
        num_prune: K, the same for the whole batch; at most N - M.
        patch: (sy, sx); the token with the highest score of each whole patch is a base token. None: the quarter of
            all tokens with the highest scores, wherever they are.
        score: (B, N) base score; None: SimScore.
        recover_from: Whose value a pruned token gets. "kept": that of its most similar kept token (the authors'
            code). "base" (the paper) and "past": that of its most similar base token. "past" uses it for tokens
            whose own past is too old.
        similarity: Which base tokens a token is compared with. "global" (the papers): all, in the dtype of x.
            "local": those of its own patch and the eight around it.
        merge: See `TokenSelection.merge`.
        align_cfg: The second half of the batch uses the first half's base tokens. 3: the batch has three parts, as
            with an image that guides too (InstructPix2Pix).
        last: (B, N) when each token was last computed, in numbers that fall from call to call; infinity: never. The
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
    m = _check_shapes(n, grid, num_prune, patch)
    base, others = _base_tokens(similarity_score(x) if score is None else score, grid, patch, m, last)
    parts = 2 if align_cfg is True else int(align_cfg)
    if parts and b % parts == 0:
        base, others = (index[: b // parts].repeat(parts, 1) for index in (base, others))

    if similarity == "global":
        best, nearest = most_similar(x, others, base)
    else:
        best, nearest = (of_all.gather(1, others) for of_all in most_similar_nearby(x, grid, patch, base))
    if last is None:
        pick = best.topk(num_prune, dim=1, sorted=False).indices
    else:
        pick = order_by(-last.gather(1, others), best)[:, :num_prune]
    picked = others.gather(1, pick)
    kept, pruned = partition(picked, n)
    if recover_from == "kept":
        target = most_similar(x, pruned, kept)[1]
    else:
        by_token = torch.zeros(b, n, dtype=torch.long, device=x.device).scatter(1, picked, nearest.gather(1, pick))
        target = by_token.gather(1, pruned)
    return TokenSelection(base, pruned, kept, _sources(kept, pruned, target), merge)


def _check_shapes(n: int, grid: tuple[int, int], num_prune: int, patch: tuple[int, int] | None) -> int:
    """Return the number of base tokens. Raise DatoError if the grid does not fit, or too many are to be pruned."""
    h, w = grid
    if h * w != n:
        raise DatoError(f"token pruning: a grid of {h} x {w} has {h * w} tokens, but x has {n}")
    m = num_base_tokens(grid, patch)
    if not 0 <= num_prune <= n - m:
        raise DatoError(
            f"token pruning: cannot prune {num_prune} of {n} tokens: {m} are base tokens, so at most {n - m} "
            f"(a ratio of {(n - m) / n:.4g}) can go; lower the ratio or use larger patches"
        )
    return m


def _sources(kept: Tensor, pruned: Tensor, target: Tensor) -> Tensor:
    """Return `TokenSelection.source` (B, N), where a pruned token is recovered from the kept token `target` (B, K)."""
    b, k = pruned.shape
    remaining = kept.shape[1]
    position = torch.zeros(b, remaining + k, dtype=torch.long, device=kept.device)
    position = position.scatter(1, kept, torch.arange(remaining, device=kept.device).expand(b, -1))
    return position.scatter(1, pruned, position.gather(1, target))


def _base_tokens(
    score: Tensor, grid: tuple[int, int], patch: tuple[int, int] | None, m: int, last: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the base tokens (B, M) and all others (B, N - M)."""
    b, n = score.shape
    if patch is None:
        best = score.topk(m, dim=1).indices if last is None else order_by(last, score)[:, :m]
        others, base = partition(best, n)
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
    rest = rest + (rest >= best)  # (B, M, sy * sx - 1): the other tokens of each patch
    others = index.gather(2, rest).view(b, -1)
    if others.shape[1] + m < n:
        beside = torch.cat([table[: rows * sy, cols * sx :].reshape(-1), table[rows * sy :].reshape(-1)])
        others = torch.cat([others, beside.expand(b, -1)], dim=1)
    return index.gather(2, best).squeeze(2), others
