"""Seeds near the largest one that torch takes: one line before anything is generated."""

from dataclasses import replace

import pytest
from conftest import PROMPTS, call, toy_recipe
from torch import allclose, equal

from dato import DatoError
from dato.evaluation.validation import OTHER_NOISE
from dato.generation.sampling import Sampling, generate

LARGEST = 2**64 - 1


def test_the_largest_seed_is_a_seed(pipe):
    last, before = Sampling(1, 1.0, seed=LARGEST), Sampling(1, 1.0, seed=LARGEST - 1)
    one, two = (generate(pipe, PROMPTS[:n], s, decode=False).images for n, s in ((1, last), (2, before)))
    assert one.isfinite().all() and not equal(two[0], two[1])


def test_image_i_starts_from_the_noise_of_the_seed_plus_i(pipe):
    def images(n, **options):
        return generate(pipe, PROMPTS[:1] * n, Sampling(1, 1.0, **options), decode=False).images

    together = images(4, seed=5, batch_size=4)
    assert not any(equal(together[i], together[j]) for i in range(4) for j in range(i))
    for batch_size in (1, 2, 3):
        assert allclose(images(4, seed=5, batch_size=batch_size), together, atol=1e-4)
    assert allclose(images(2, seed=7, batch_size=1), together[2:], atol=1e-4)


def test_larger_seeds_are_refused(pipe):
    for seed in (2**64, 2**70):
        with pytest.raises(DatoError, match=f"`seed` {seed} is too large: give at most {LARGEST}$"):
            Sampling(seed=seed)
    with pytest.raises(DatoError, match=f"`seed` {LARGEST} is too large: give at most {LARGEST - 2}$"):
        generate(pipe, PROMPTS[:3], Sampling(1, seed=LARGEST))


def test_a_search_whose_last_images_have_no_seed_is_refused_at_its_start():
    recipe = toy_recipe(2, 2, 1, "psnr")
    large = replace(recipe.sampling, seed=LARGEST - 1)
    assert replace(recipe, sampling=large).sampling.seed == LARGEST - 1
    with pytest.raises(DatoError, match=f"give at most {LARGEST - OTHER_NOISE - 3 + 1}$"):
        replace(recipe, sampling=large, validation=("a", "b", "c"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "a cat", "--strategy", "emoji-sd-depth", "--out", "images"),
        ("search", "depth", "--out", "run"),
        ("evaluate", "--images", "2", "--out", "evaluation"),
        ("plan",),
        ("pruned-tokens", "a cat"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_name_the_option(arguments, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, errors = call(monkeypatch, capsys, *arguments, "--seed", 2**64)
    assert code == 2 and f"--seed {2**64} is too large: give at most" in " ".join(errors.split())
