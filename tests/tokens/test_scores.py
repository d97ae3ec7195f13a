"""The registry of base scores: what each computes, and that descriptions and functions belong together."""

import subprocess
import sys

import pytest
import torch
from conftest import draw
from devices import randn

import dato
from dato.pruning import BASE_SCORES, SCORES, BaseScore, Pruning
from dato.tokens import scores
from dato.tokens.scores import base_score, spread_in_patches
from dato.tokens.selection import select_tokens
from dato.tokens.similarity import similarity_score


def table_3(row, **options):
    return Pruning(score=row, **options)


def test_base_scores_are_those_of_the_papers():
    x = randn(2, 64, 6)
    sim = similarity_score(x)

    noise = randn(2, 64)

    def score(pruning, difference=None):
        return base_score(x, pruning, noise, difference)

    assert torch.allclose(score(Pruning(sim_beta=2.0, noise_alpha=0.3)), 2 * sim + 0.3 * noise, atol=1e-5)
    assert torch.equal(score(table_3("VI")), score(Pruning()))
    assert torch.equal(score(table_3("V")), sim) and torch.equal(score(table_3("III")), sim)
    assert torch.equal(score(table_3("II")), noise) and torch.equal(score(table_3("IV")), noise)
    assert not score(table_3("I")).any()

    # DaTo: the signed difference and noise, and noise alone while there is none.
    difference = randn(2, 64)
    dato_score = Pruning(score="dato", noise_alpha=0.1, diff_gamma=5.0)
    assert torch.allclose(score(dato_score), 0.1 * noise)
    assert torch.allclose(score(dato_score, difference), 0.1 * noise + 5 * difference)
    assert [row for row in SCORES if table_3(row).base_score.noise] == ["sito", "dato", "II", "IV", "VI"]


@pytest.mark.parametrize(("grid", "patch"), [((4, 6), (2, 2)), ((5, 7), (2, 3)), ((6, 5), (3, 1))])
def test_the_spread_is_that_of_each_patch(grid, patch):
    (h, w), (sy, sx) = grid, patch
    score = randn(2, h * w) * 100
    score[0].view(h, w)[:sy, :sx] = 7.0  # one patch whose scores are equal
    spread = spread_in_patches(score, grid, patch).view(2, h, w)
    for b in range(2):
        for i in range(h):
            for j in range(w):
                top, left = i // sy * sy, j // sx * sx
                whole = top + sy <= h and left + sx <= w
                values = score[b].view(h, w)[top : top + sy, left : left + sx].cpu().numpy()
                expected = values.std() if whole and values.std() else 1.0
                assert spread[b, i, j].item() == pytest.approx(expected, rel=1e-4)


def test_relative_noise_is_scaled_by_the_spread():
    x, noise, difference, grid = randn(2, 64, 6), randn(2, 64), randn(2, 64) * 1e-3, (8, 8)
    options = {"noise": "relative", "noise_alpha": 0.5, "sx": 4}
    sim = 2 * similarity_score(x)
    expected = sim + 0.5 * noise * spread_in_patches(sim, grid, (2, 4))
    assert torch.allclose(base_score(x, Pruning(sim_beta=2.0, **options), noise, None, grid), expected)
    pruning = Pruning(score="dato", diff_gamma=5.0, **options)
    expected = 5 * difference + 0.5 * noise * spread_in_patches(5 * difference, grid, (2, 4))
    assert torch.allclose(base_score(x, pruning, noise, difference, grid), expected, atol=1e-8)
    assert torch.equal(base_score(x, pruning, noise, None, grid), 0.5 * noise)  # there is no difference yet
    # Nothing but noise: it decides alone.
    assert torch.equal(base_score(x, Pruning(sim_beta=0.0, **options), noise, None, grid), 0.5 * noise)


def test_relative_noise_changes_choices_where_the_papers_does_not():
    x = randn(1, 1024, 8) * 0.5 + 3.0  # tokens are alike, so a SimScore is nearly 1,024
    noise, grid = randn(1, 1024), (32, 32)

    def base(**options):
        return select_tokens(x, grid, 512, score=base_score(x, Pruning(**options), noise, None, grid)).base

    without = base(score="V")
    assert (base(noise_alpha=0.1) == without).float().mean() > 0.9
    changed = [(base(noise="relative", noise_alpha=alpha) != without).float().mean() for alpha in (0, 0.1, 1, 1000)]
    assert changed[0] == 0 < changed[1] < 0.15 < changed[2] < 0.7 and changed[3] == pytest.approx(0.75, abs=0.1)
    # The scale is the score's own: the same weight does the same to scores that are a hundred times as large.
    larger = base(noise="relative", noise_alpha=1.0, sim_beta=100.0)
    assert torch.equal(larger, base(noise="relative", noise_alpha=1.0))


@pytest.mark.parametrize(
    ("row", "expected"), [("I", [0, 2, 8, 10]), ("II", None), ("III", None), ("IV", None), ("V", None), ("VI", None)]
)
def test_every_row_of_table_3_gives_a_quarter_of_the_tokens(row, expected):
    pruning, x = table_3(row), randn(1, 16, 4)
    score = base_score(x, pruning, randn(1, 16))
    base = select_tokens(x, (4, 4), 3, patch=pruning.base_patch, score=score).base[0].tolist()
    assert len(set(base)) == 4
    if expected:
        assert base == expected
    if row in ("II", "III"):
        assert sorted(score[0].topk(4).indices.tolist()) == base


def test_every_described_score_is_computed_and_has_the_right_shape():
    assert set(scores._FUNCTIONS) == set(BASE_SCORES) and tuple(BASE_SCORES) == SCORES
    x = randn(2, 16, 4)
    for name, score in BASE_SCORES.items():
        assert score.name == name and score.summary
        noise = randn(2, 16) if score.noise else None  # a score without noise must not read it
        value = base_score(x, Pruning(score=name), noise)
        assert value.shape == (2, 16) and value.dtype == torch.float32


def test_a_score_that_goes_by_no_patch_refuses_local_similarity():
    for name, score in BASE_SCORES.items():
        if score.by_patch:
            assert Pruning(score=name, similarity="local", sy=3).base_patch == (3, 2)
        else:
            assert Pruning(score=name).base_patch is None
            with pytest.raises(dato.DatoError, match=f"{name} does not"):
                Pruning(score=name, similarity="local")


def test_a_new_score_takes_a_description_and_a_function(monkeypatch, pipe):
    with pytest.raises(dato.DatoError, match="score must be one of"):
        Pruning(score="norm")
    with pytest.raises(KeyError, match="describe the base score 'norm'"):
        scores.computes("norm")(similarity_score)
    monkeypatch.setitem(BASE_SCORES, "norm", BaseScore("norm", "length of the token", noise=False))
    monkeypatch.setattr(scores, "_FUNCTIONS", dict(scores._FUNCTIONS))
    calls = []

    @scores.computes("norm")
    def norm(tokens, pruning):
        calls.append((tokens.noise, tokens.difference))
        return tokens.x.norm(dim=2).float()

    stock = draw(pipe)
    dato.apply_patch(pipe, prune_ratio=0.5, score="norm")
    assert not torch.equal(draw(pipe), stock)
    assert calls and set(calls) == {(None, None)}  # it asked for neither noise nor difference


def test_settings_are_read_without_torch():
    code = "import sys, dato.pruning, dato.schedule; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "False"]
