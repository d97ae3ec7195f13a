"""Prompts to search with, and others to validate by."""

import pytest

from dato.errors import DatoError
from dato.generation.prompts import split_prompts

PROMPTS = [f"prompt {number}" for number in range(30)]


@pytest.mark.parametrize("order", ["drawn", "given"])
@pytest.mark.parametrize("images, validation", [(8, 16), (20, 10), (3, 0)])
def test_search_and_validation_share_no_prompt(order, images, validation):
    search, validated = split_prompts([*PROMPTS, *PROMPTS[:5]], images, validation, seed=3, order=order)
    assert (len(search), len(validated)) == (images, validation)
    assert len({*search, *validated}) == images + validation
    if order == "given":
        assert [*search, *validated] == PROMPTS[: images + validation]


def test_the_seed_draws_from_the_whole_file():
    drawn = [split_prompts(PROMPTS, 4, 4, seed=seed) for seed in range(6)]
    assert drawn[0] == split_prompts(PROMPTS, 4, 4, seed=0) and drawn[0] != drawn[1]
    assert any(int(prompt.split()[1]) > 20 for search, _ in drawn for prompt in search)


def test_few_prompts_are_shared_out():
    search, validated = split_prompts(PROMPTS[:6], 8, 16)
    assert len(search) == 2 and len(validated) == 4 and not set(search) & set(validated)
    with pytest.raises(DatoError, match="at least 4 different ones, not 3"):
        split_prompts(PROMPTS[:3] * 5, 8, 16)
    with pytest.raises(DatoError, match="`prompts_order` 'sorted': known are drawn, given"):
        split_prompts(PROMPTS, 8, 16, order="sorted")
