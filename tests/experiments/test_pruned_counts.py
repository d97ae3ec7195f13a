"""How often each token was pruned: the counts are right, and noise makes them more even."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import PROMPTS, draw
from PIL import Image

from dato import Schedule, apply_patch, remove_patch
from dato.experiments.pruned_counts import pruned_counts
from dato.generation.sampling import Sampling
from dato.pruning import SITO_PRUNING
from dato.unet.patch import patch_of

SAMPLING = Sampling(steps=6, guidance_scale=3.0)


def test_shares_are_those_of_the_ratio_and_noise_makes_them_more_even(pipe):
    whole = Schedule.full(7).with_ratios(0.5)
    with_noise, without = (
        pruned_counts(pipe, PROMPTS[0], SAMPLING, whole, replace(SITO_PRUNING, score=score, noise_alpha=1000.0))
        for score in ("VI", "V")
    )
    for found in (with_noise, without):
        assert found.share.shape == (32, 32) and found.image.shape == (3, 64, 64)
        assert found.share.mean().item() == pytest.approx(0.5, abs=1e-6)
    assert 0.1 < with_noise.share.std() < without.share.std() - 0.02
    assert 0.4 < with_noise.again < without.again - 0.1 < 0.9
    assert patch_of(pipe) is None


def test_what_is_pruned_again_is_counted_block_by_block(pipe, monkeypatch):
    """Of two blocks one prunes the same tokens at every call, and the other shares half of them with the next call."""
    choices = {0: [[0, 1], [0, 1], [0, 1]], 1: [[0, 1], [1, 2], [2, 3]]}

    def generate(running, *_):
        for call in range(3):
            for block, tokens in choices.items():
                note = patch_of(running).pruner.listener
                note(1, block, (2, 2), SimpleNamespace(pruned=torch.tensor([[3, 3], tokens[call]])))
        return SimpleNamespace(images=torch.zeros(1, 3, 8, 8))

    monkeypatch.setattr("dato.experiments.pruned_counts.generate", generate)
    found = pruned_counts(pipe, "", SAMPLING, Schedule.full(3).with_ratios(0.5), SITO_PRUNING)
    assert found.again == pytest.approx((2 * 1 + 2 * 0.5) / 4)
    assert found.share.flatten().tolist() == pytest.approx([4 / 6, 5 / 6, 2 / 6, 1 / 6])


def test_counting_changes_nothing(pipe):
    schedule = replace(Schedule.full(7).with_ratios(0.5), pruning=SITO_PRUNING)
    apply_patch(pipe, schedule)
    before = draw(pipe, steps=6)
    seen = []
    patch_of(pipe).pruner.listener = lambda factor, number, grid, selection: seen.append(
        (factor, grid, selection.pruned.shape)
    )
    assert torch.equal(draw(pipe, steps=6), before)
    assert {(factor, grid) for factor, grid, _ in seen} == {(1, (32, 32))}
    assert all(shape == (2, 512) for *_, shape in seen)
    remove_patch(pipe)


def test_the_picture_is_drawn(run, tmp_path):
    options = "--steps", 3, "--relative-noise", "0,9"
    code, printed, _ = run("scripts/pruned_tokens.py", PROMPTS[0], *options, "--out", tmp_path / "a.png")
    assert code == 0 and printed.count("never pruned") == 5
    again = dict(re.findall(r"^(.+): .* ([\d.]+)% pruned again by the next step$", printed, flags=re.M))
    assert again["relative noise 0"] == again["without noise (V)"] and len(again) == 5
    assert float(again["relative noise 9"]) < float(again["relative noise 0"]) - 5
    assert Image.open(tmp_path / "a.png").size[0] > 900
    code, _, errors = run("scripts/pruned_tokens.py", PROMPTS[0], "--steps", 3, "--ratio", 0.9)
    assert code == 2 and "0.75" in errors and "Traceback" not in errors
    code, _, errors = run("scripts/pruned_tokens.py", PROMPTS[0], "--relative-noise", "1;2")
    assert code == 2 and "--relative-noise '1;2': give numbers" in errors
