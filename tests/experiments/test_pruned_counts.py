"""How often each token was pruned: the counts are right, and noise makes them more even."""

from dataclasses import replace

import pytest
import torch
from conftest import PROMPTS, draw
from PIL import Image

from dato import Schedule, apply_patch, remove_patch
from dato.experiments.pruned_counts import pruned_counts
from dato.generation.sampling import Sampling
from dato.pruning import PAPER_PRUNING
from dato.unet.patch import patch_of

SAMPLING = Sampling(steps=6, guidance_scale=3.0)


def test_shares_are_those_of_the_ratio_and_noise_makes_them_more_even(pipe):
    whole = Schedule.full(7).with_ratios(0.5)
    with_noise, without = (
        pruned_counts(pipe, PROMPTS[0], SAMPLING, whole, replace(PAPER_PRUNING, score=score, noise_alpha=1000.0))
        for score in ("VI", "V")
    )
    for found in (with_noise, without):
        assert found.share.shape == (32, 32) and found.image.shape == (3, 64, 64)
        assert found.share.mean().item() == pytest.approx(0.5, abs=1e-6)
    assert 0.1 < with_noise.share.std() < without.share.std() - 0.02
    assert patch_of(pipe) is None


def test_counting_changes_nothing(pipe):
    schedule = replace(Schedule.full(7).with_ratios(0.5), pruning=PAPER_PRUNING)
    apply_patch(pipe, schedule)
    before = draw(pipe, steps=6)
    seen = []
    patch_of(pipe).pruner.listener = lambda factor, grid, selection: seen.append((factor, grid, selection.pruned.shape))
    assert torch.equal(draw(pipe, steps=6), before)
    assert {(factor, grid) for factor, grid, _ in seen} == {(1, (32, 32))}
    assert all(shape == (2, 512) for *_, shape in seen)
    remove_patch(pipe)


def test_the_picture_is_drawn(run, tmp_path):
    code, printed, _ = run("scripts/pruned_tokens.py", PROMPTS[0], "--steps", 3, "--out", tmp_path / "a.png")
    assert code == 0 and printed.count("never pruned") == 3
    assert Image.open(tmp_path / "a.png").size[0] > 900
    code, _, errors = run("scripts/pruned_tokens.py", PROMPTS[0], "--steps", 3, "--ratio", 0.9)
    assert code == 2 and "0.75" in errors and "Traceback" not in errors
