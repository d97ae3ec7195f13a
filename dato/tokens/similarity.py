"""Cosine similarities between tokens, without the N x N matrix of all pairs.

B is the batch, N = h * w the number of tokens on an (h, w) grid, C the channels, M the number of base tokens.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dato.tokens.indexing import take


def similarity_score(x: Tensor) -> Tensor:
    """Return SimScore_i = sum_j cos(x_i, x_j), SiTo's equation for base tokens: (B, N, C) -> (B, N) in float32.

    The sum of cosines is the product with the sum of the normalised tokens, so no N x N matrix is needed.
    """
    scale = _inverse_norms(x)
    if x.dtype in (torch.float16, torch.bfloat16):
        # A matrix product would be rounded to half precision, where neighbours' scores are equal. A sum is not.
        mean = (x * scale[..., None].to(x.dtype)).mean(dim=1, keepdim=True, dtype=torch.float32)
        score = (x * mean.to(x.dtype)).sum(dim=2, dtype=torch.float32) * x.shape[1]
    else:
        total = torch.bmm(scale[:, None], x)  # (B, 1, C)
        score = torch.bmm(x, total.transpose(1, 2)).squeeze(2)
    return (score * scale).float()


def most_similar(x: Tensor, tokens: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each of `tokens`, its highest cosine to one of `candidates`, and that candidate's index.

    Args:
        x: (B, N, C) hidden states.
        tokens: (B, n) indices.
        candidates: (B, m) indices.

    Returns:
        (B, n) cosines and (B, n) indices.
    """
    scale = _inverse_norms(x)
    normalised = (take(x, candidates) * scale.gather(1, candidates)[..., None].to(x.dtype)).transpose(1, 2)
    # In pieces of a quarter of all tokens, so that the n x m products never exist at once.
    pieces = tokens.split(max(x.shape[1] // 4, 1), dim=1)
    maxima = [torch.bmm(take(x, piece), normalised).max(dim=2) for piece in pieces]
    best, nearest = (torch.cat(parts, dim=1) for parts in zip(*maxima, strict=True))
    return best * scale.gather(1, tokens), candidates.gather(1, nearest)


def most_similar_nearby(
    x: Tensor, grid: tuple[int, int], patch: tuple[int, int], base: Tensor
) -> tuple[Tensor, Tensor]:
    """Return, for each token, its highest cosine to a base token of its own patch or the eight around it, and which.

    A token that lies in no whole patch counts to the patch nearest to it. The work is one product of sy * sx by 9 for
    each patch, so it is linear in N.

    Args:
        x: (B, N, C) hidden states.
        grid: (h, w).
        patch: (sy, sx).
        base: (B, M) indices of the base tokens, patch by patch.

    Returns:
        (B, N) cosines and (B, N) indices.
    """
    b, _, c = x.shape
    (h, w), (sy, sx) = grid, patch
    tall, wide = math.ceil(h / sy), math.ceil(w / sx)  # patches, those that the grid does not fill too
    scale = _inverse_norms(x)
    neighbours = _neighbours(grid, patch, x.device)
    bases = take(x, base) * scale.gather(1, base)[..., None].to(x.dtype)  # (B, M, C)
    image = x.view(b, h, w, c)
    if (h, w) != (tall * sy, wide * sx):  # padding by nothing would be a copy
        image = F.pad(image, (0, 0, 0, wide * sx - w, 0, tall * sy - h))
    image = image.view(b, tall, sy, wide, sx, c)
    best, which = [], []
    for row in range(0, tall, step := math.ceil(tall / 4)):  # in pieces, as above
        tokens = image[:, row : row + step].transpose(2, 3).reshape(-1, sy * sx, c)
        nearby = bases.index_select(1, neighbours[row : row + step].reshape(-1)).view(-1, 9, c)
        maxima = torch.bmm(tokens, nearby.transpose(1, 2)).max(dim=2)
        best.append(maxima.values.view(b, -1, wide, sy, sx))
        which.append(maxima.indices.view(b, -1, wide, sy, sx))
    ninth = torch.cat(which, dim=1)  # 0 to 8, of (B, tall, wide, sy, sx)
    number = neighbours.view(1, tall, wide, 9).expand(b, -1, -1, -1).gather(3, ninth.flatten(3)).view_as(ninth)

    def in_order(by_patch: Tensor) -> Tensor:
        return by_patch.transpose(2, 3).reshape(b, tall * sy, wide * sx)[:, :h, :w].reshape(b, h * w)

    return in_order(torch.cat(best, dim=1)) * scale, base.gather(1, in_order(number))


def _neighbours(grid: tuple[int, int], patch: tuple[int, int], device: torch.device) -> Tensor:
    """Return the numbers of the nine patches in and around each patch: (tall, wide * 9). At edges they repeat."""
    (h, w), (sy, sx) = grid, patch
    rows, cols = h // sy, w // sx

    def around(count: int, whole: int) -> Tensor:
        nearest = torch.arange(count, device=device).clamp_max(whole - 1)
        return (nearest[:, None] + torch.arange(-1, 2, device=device)).clamp(0, whole - 1)

    tall, wide = math.ceil(h / sy), math.ceil(w / sx)
    across = around(wide, cols)[None, :, None, :]
    return (around(tall, rows)[:, None, :, None] * cols + across).view(tall, wide * 9)


def _inverse_norms(x: Tensor) -> Tensor:
    """Return 1 / |x_i| of each token of (B, N, C): (B, N), at least float32. It avoids a normalised copy of x."""
    norm = torch.linalg.vector_norm(x, dim=2, dtype=torch.promote_types(x.dtype, torch.float32))
    return norm.clamp_min(1e-6).reciprocal()
