"""Take tokens by index, fast: the small tensor operations that selection, similarity and recovery share.

B is the batch, N the number of tokens of an image, C the channels. Nothing here makes the host wait for a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return the tokens `index` (B, k) of x (B, N, C): (B, k, C)."""
    return take_rows(x, flat_rows(index, x.shape[1]))


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return the rows (B * k,) of x (B, N, C): (B, k, C). On a CPU this is ten times as fast as a gather."""
    return x.reshape(-1, x.shape[2]).index_select(0, rows).view(len(x), -1, x.shape[2])


def flat_rows(index: Tensor, n: int) -> Tensor:
    """Return `index` (B, k), which counts within an image of n tokens, counted through the whole batch: (B * k,)."""
    return (index + n * torch.arange(len(index), device=index.device)[:, None]).view(-1)


def partition(index: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the indices below n that are not in `index` (B, k), and those that are, both ascending."""
    b, k = index.shape
    taken = torch.zeros(b, n, dtype=torch.uint8, device=index.device).scatter(1, index, 1)
    others, chosen = taken.argsort(dim=1, stable=True).split((n - k, k), dim=1)
    return others, chosen


def order_by(first: Tensor, then: Tensor) -> Tensor:
    """Return the indices of each row by falling `first`, equals by falling `then`: (B, n), (B, n) -> (B, n)."""
    order = then.argsort(dim=1, descending=True, stable=True)
    return order.gather(1, first.gather(1, order).argsort(dim=1, descending=True, stable=True))
