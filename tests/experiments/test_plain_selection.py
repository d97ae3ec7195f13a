"""SiTo's steps with the matrix of all similarities choose the same tokens as those without it."""

import pytest
import torch

import dato
from dato.experiments.plain_selection import plain_select_tokens
from dato.tokens.selection import select_tokens

GRIDS = [((8, 8), (2, 2)), ((7, 9), (2, 2)), ((6, 10), (3, 2)), ((5, 4), (1, 2)), ((9, 9), (4, 4)), ((16, 16), (2, 2))]


@pytest.mark.parametrize("recover_from", ["base", "kept"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("grid", "patch"), GRIDS)
def test_both_choose_the_same_tokens(grid, patch, share, recover_from):
    (h, w), (sy, sx) = grid, patch
    k = int(share * (h * w - (h // sy) * (w // sx)))
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(3, h * w, 12, generator=generator)
        score = torch.randn(3, h * w, generator=generator) if seed % 2 else None
        options = {"patch": patch, "score": score, "recover_from": recover_from}
        plain, ours = plain_select_tokens(x, grid, k, **options), select_tokens(x, grid, k, **options)
        for name in ("base", "pruned", "kept", "source"):
            assert torch.equal(getattr(plain, name), getattr(ours, name)), name
        y = torch.randn(3, h * w - k, 2)
        assert torch.equal(plain.shorten(x), ours.shorten(x)) and torch.equal(plain.restore(y), ours.restore(y))


def test_more_than_the_bound_is_an_error():
    with pytest.raises(dato.DatoError, match="16 are base tokens"):
        plain_select_tokens(torch.randn(1, 64, 4), (8, 8), 49)
