"""Token selection, compared with a slow version of the paper's steps, over many shapes."""

import math

import pytest
import torch
from devices import randn
from hypothesis import given, settings
from hypothesis import strategies as st

import dato
from dato.tokens.selection import num_base_tokens, select_tokens
from dato.tokens.similarity import similarity_score

FEW = settings(max_examples=60, deadline=None)


def cosines(x):
    """(n, n) matrix of cosine similarities, token by token."""
    n, x = len(x), x.cpu()
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            norm = x[i].norm() * x[j].norm()
            matrix[i, j] = x[i] @ x[j] / norm if norm > 0 else 0.0
    return matrix


def plain_base_tokens(score, grid, patch):
    """One image: the highest score of each whole patch, the first of equals, patches row by row."""
    (h, w), (sy, sx), score = grid, patch, score.cpu()
    base = []
    for top in range(0, h - sy + 1, sy):
        for left in range(0, w - sx + 1, sx):
            tokens = [(top + y) * w + left + x for y in range(sy) for x in range(sx)]
            base.append(max(tokens, key=lambda t: (score[t].item(), -t)))
    return base


@st.composite
def cases(draw, most_batch=4):
    """Random shapes (grids that patches fill and do not), a K up to the bound, distinct or repeated tokens."""
    sy, sx = draw(st.sampled_from([(2, 2), (1, 2), (2, 1), (3, 2), (4, 4)]))
    h, w = draw(st.integers(sy, 9)), draw(st.integers(sx, 9))
    batch, channels = draw(st.integers(1, most_batch)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    x = randn(batch, h * w, channels, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):  # ties: few different tokens, and zeros
        x = x.round().clamp(-1, 1)
    bound = h * w - (h // sy) * (w // sx)
    k = draw(st.one_of(st.just(0), st.just(bound), st.integers(0, bound)))
    score = randn(batch, h * w, generator=generator).round(decimals=draw(st.sampled_from([0, 6])))
    return x, (h, w), (sy, sx), k, score


@FEW
@given(cases())
def test_similarity_score_is_the_row_sum_of_the_cosine_matrix(case):
    x = case[0]
    expected = torch.stack([cosines(image).sum(1) for image in x]).float()
    assert torch.allclose(similarity_score(x).cpu(), expected, atol=1e-4)


@FEW
@given(cases(), st.sampled_from(["base", "kept"]))
def test_selection_follows_the_papers_steps(case, recover_from):
    x, grid, patch, k, score = case
    n = x.shape[1]
    selection = select_tokens(x, grid, k, patch=patch, score=score, recover_from=recover_from)
    for b in range(len(x)):
        # Step 1.
        base = selection.base[b].tolist()
        assert base == plain_base_tokens(score[b], grid, patch)
        # Step 2: with ties several sets are right; each has the same similarities, and nothing left out beats them.
        similarity = cosines(x[b])
        best = similarity[:, base].max(1).values
        others = [t for t in range(n) if t not in base]
        pruned, kept = selection.pruned[b].tolist(), selection.kept[b].tolist()
        assert pruned == sorted(set(pruned)) and len(pruned) == k and set(pruned) <= set(others)
        assert sorted(pruned + kept) == list(range(n)) and kept == sorted(kept)
        expected = sorted((best[t].item() for t in others), reverse=True)[:k]
        assert sorted((best[t].item() for t in pruned), reverse=True) == pytest.approx(expected, abs=1e-9)
        # Step 3: the token that a pruned one is recovered from is as similar as any.
        pool = base if recover_from == "base" else kept
        for token in pruned:
            source = kept[selection.source[b, token].item()]
            assert source in pool
            assert similarity[token, source].item() == pytest.approx(similarity[token, pool].max().item(), abs=1e-9)


@FEW
@given(cases())
def test_local_similarity_looks_at_the_own_and_the_adjacent_patches(case):
    x, grid, patch, k, score = case
    (h, w), (sy, sx) = grid, patch
    selection = select_tokens(x, grid, k, patch=patch, score=score, similarity="local")
    for b in range(len(x)):
        base, similarity = plain_base_tokens(score[b], grid, patch), cosines(x[b])
        assert selection.base[b].tolist() == base

        def place(token):
            # What no whole patch holds counts to the nearest.
            return min(token // w // sy, h // sy - 1), min(token % w // sx, w // sx - 1)

        near = {
            t: [s for s in base if all(abs(i - j) <= 1 for i, j in zip(place(t), place(s), strict=True))]
            for t in range(h * w)
            if t not in base
        }
        best = {t: similarity[t, sources].max().item() for t, sources in near.items()}
        pruned = selection.pruned[b].tolist()
        expected = sorted(best.values(), reverse=True)[:k]
        assert sorted((best[t] for t in pruned), reverse=True) == pytest.approx(expected, abs=1e-9)
        for token in pruned:
            source = selection.kept[b, selection.source[b, token]].item()
            assert source in near[token]
            assert similarity[token, source].item() == pytest.approx(best[token], abs=1e-9)


@FEW
@given(cases())
def test_restore_after_shorten_keeps_kept_tokens_and_fills_pruned_ones_with_base_tokens(case):
    x, grid, patch, k, score = case
    selection = select_tokens(x, grid, k, patch=patch, score=score)
    short = selection.shorten(x)
    back = selection.restore(short)
    assert short.shape == (len(x), x.shape[1] - k, x.shape[2]) and back.shape == x.shape
    for b in range(len(x)):
        base = x[b, selection.base[b]]
        assert torch.equal(short[b], x[b, selection.kept[b]])
        assert torch.equal(back[b, selection.kept[b]], x[b, selection.kept[b]])
        for token in selection.pruned[b]:
            assert (back[b, token] == base).all(dim=1).any()


@FEW
@given(cases())
def test_merge_averages_pruned_tokens_into_their_base_token(case):
    x, grid, patch, k, score = case
    dropped = select_tokens(x, grid, k, patch=patch, score=score)
    short = select_tokens(x, grid, k, patch=patch, score=score, merge=True).shorten(x)
    for b in range(len(x)):
        for position, token in enumerate(dropped.kept[b].tolist()):
            group = [token, *(p for p in dropped.pruned[b].tolist() if dropped.source[b, p] == position)]
            assert torch.allclose(short[b, position], x[b, group].mean(0))


@FEW
@given(cases())
def test_more_than_the_bound_is_an_error_that_names_it(case):
    x, grid, patch, _, score = case
    bound = x.shape[1] - num_base_tokens(grid, patch)
    with pytest.raises(dato.DatoError, match=f"at most {bound} "):
        select_tokens(x, grid, bound + 1, patch=patch, score=score)


def test_aligned_guidance_halves_share_base_tokens_but_not_pruned_ones():
    x = randn(4, 64, 5)
    aligned = select_tokens(x, (8, 8), 20, align_cfg=True)
    free = select_tokens(x, (8, 8), 20)
    assert torch.equal(aligned.base[2:], aligned.base[:2]) and torch.equal(aligned.base[:2], free.base[:2])
    assert not torch.equal(free.base[2:], free.base[:2])
    assert not torch.equal(aligned.pruned[2:], aligned.pruned[:2])


def test_nothing_as_large_as_n_by_n_is_ever_made(monkeypatch):
    n, largest = 4096, 0
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    x = randn(1, n, 8)
    with Watch():
        select_tokens(x, (64, 64), n // 2, score=similarity_score(x))
    assert largest <= (n // 4) ** 2  # a sixteenth of N x N


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_selects_and_restores(dtype):
    x = randn(2, 256, 8).to(dtype)
    selection = select_tokens(x, (16, 16), 150)
    assert selection.pruned.shape == (2, 150)
    assert selection.restore(selection.shorten(x)).dtype == dtype
    # Large activations, as in SDXL: the norm must not overflow.
    assert torch.isfinite(similarity_score(x * 2000)).all()
    # Scores go into the thousands; they are off by less than half precision resolves there.
    x = (1 + 0.3 * randn(1, 4096, 32)).to(dtype)
    exact = similarity_score(x.double())
    resolved = (exact.to(dtype) - exact).abs().max()
    assert (similarity_score(x) - exact).abs().max() < resolved


def test_grid_has_to_fit():
    with pytest.raises(dato.DatoError, match="grid of 3 x 5 has 15 tokens"):
        select_tokens(randn(1, 16, 4), (3, 5), 1)
    with pytest.raises(dato.DatoError, match="no patch"):
        num_base_tokens((1, 8), (2, 2))
    assert math.isclose(num_base_tokens((8, 8), (2, 2)), 16)
