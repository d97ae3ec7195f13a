"""Our own presets are what the page says of them. test_paper_settings.py has the paper's."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

import pytest
from conftest import ROOT

from dato.search.options import DepthSearch, JointSearch, RatioSearch
from dato.search.presets import DEPTH_PRESETS, GUIDED, RATIO_PRESETS, Preset

PAGE = (ROOT / "docs" / "search-your-own-model.md").read_text("utf-8")
ROWS = {line.split("`")[1]: line for line in PAGE.splitlines() if line.startswith("| `--")}


class Told(NamedTuple):
    """A setting of a preset.

    Attributes:
        name: Its name.
        value: Its value.
        words: Where the page says so, in the preset's row.
    """

    name: str
    value: Any
    words: str


FAST = [
    Told("minutes", 5.0, "a guided search of about five minutes"),
    Told("quality", "psnr", ""),  # as options.md says
    Told("min_quality", None, ""),
    Told("steps", (50,), "50 steps"),
    Told("depths", (0,), "depth 0 and the whole UNet"),
    Told("orders", (0, 1), "each call has its own order, 0 or 1"),
    Told("order_by_call", True, "each call has its own order"),
    Told("forecast", "polynomial", "by polynomials"),
    Told("images", 6, "6 images for candidates"),
    Told("race", 2, "6 images for candidates, of which losers get 2"),
    Told("model_images", 4, "and the sensitivity model 4"),
    Told("advised", True, "and the sensitivity model"),
    Told("validation", 12, "12 for validation"),
    Told("finalists", 12, "of about 12 points"),
    Told("rounds", 0, "The front is not timed again"),
    Told("scheduler", "dpm++2m", "For the embedded model the sampler is DPM++ 2M"),
    Told("guidance_scale", 3.0, "with guidance 3"),
    Told("for_all_models", False, "For the embedded model the sampler is"),
    Told("batch_size", 6, "6 images are generated together"),
    Told("ratios", (), ""),
]
THOROUGH = [
    Told("minutes", 40.0, "the same with 40 minutes"),
    Told("steps", (10, 15, 20, 25, 30, 40, 50), "10 to 50 steps"),
    Told("depths", (0, 1, 2, 3), "depths 0, 1, 2, 3"),
    Told("orders", (0, 1, 2), "orders 0, 1, 2"),
    Told("images", 24, "24 images"),
    Told("race", 6, "of which losers get 6"),
    Told("model_images", 8, "and the sensitivity model 8"),
    Told("validation", 30, "and 30 for validation"),
    Told("finalists", 36, "of about 36 points"),
]
QUICK = [
    Told("minutes", None, "generations of NSGA-II"),
    Told("quality", "psnr", ""),  # as options.md says
    Told("min_quality", None, ""),
    Told("steps", (8, 10, 12, 15, 18, 20, 22, 25, 30, 40, 50), "8 to 50 steps"),
    Told("images", 8, "8 images"),
    Told("race", 2, "of which losers get 2"),
    Told("model_images", 1, "and the sensitivity model 1"),
    Told("generations", 3, "in 3 generations"),
    Told("pop_size", 72 // 3, "72 candidates beside the references"),
    Told("depths", (0, 1, 2, 3), "depths 0, 1, 2, 3 and the whole UNet"),
    Told("orders", (0, 1), "orders 0 and 1"),
    Told("forecast", "aligned", "orders 0 and 1, aligned"),
    Told("order_by_call", False, "orders 0 and 1, aligned"),
    Told("from_uniform", True, "beside the references"),
    Told("advised", True, "It begins with the sensitivity model's plans"),
    Told("crossover", None, "by crossover in time"),
    Told("mutation", None, "and by edits"),
    Told("rounds", 2, "The front is timed again twice"),
    Told("scheduler", "dpm++2m", "For the embedded model the sampler is DPM++ 2M"),
    Told("guidance_scale", 3.0, "with guidance 3"),
    Told("for_all_models", False, "For the embedded model the sampler is"),
    Told("batch_size", 2, "2 images are generated together"),
    Told("validation", 0, ""),
    Told("ratios", (), ""),
]
QUICK_RATIO = [
    Told("images", 4, "`search ratio` has 4 images"),
    Told("pop_size", 80 // 5, "80 candidates in 5 generations"),
    Told("generations", 5, "80 candidates in 5 generations"),
    Told("advised", False, "no sensitivity model"),
    Told("ratios", (0, 0.3, 0.5, 0.7), "ratios 0, 0.3, 0.5, 0.7"),
    Told("quality", None, ""),  # the front's, as options.md says
]


def differences(one: Preset, other: Preset) -> set[str]:
    """The names of the settings in which two presets differ."""
    return {field.name for field in fields(Preset) if getattr(one, field.name) != getattr(other, field.name)}


@pytest.mark.parametrize(
    ("preset", "row", "told"),
    [
        (DEPTH_PRESETS["fast"], "--preset fast", FAST),
        (DEPTH_PRESETS["thorough"], "--preset thorough", THOROUGH),
        (DEPTH_PRESETS["quick"], "--preset quick", QUICK),
        (RATIO_PRESETS["quick"], "--preset quick", QUICK_RATIO),
    ],
)
def test_a_preset_is_what_the_page_says(preset, row, told):
    assert {name: getattr(preset, name) for name, _, _ in told} == {name: value for name, value, _ in told}
    for name, _, words in told:
        assert words in ROWS[row], name


def test_what_a_preset_takes_over_from_another_is_the_same():
    assert differences(DEPTH_PRESETS["thorough"], DEPTH_PRESETS["fast"]) == {name for name, _, _ in THOROUGH}
    assert differences(RATIO_PRESETS["quick"], DEPTH_PRESETS["quick"]) == {name for name, _, _ in QUICK_RATIO}


def test_the_options_choose_among_the_presets_that_the_page_has():
    assert {name.removeprefix("--preset ") for name in ROWS if name.startswith("--preset")} == set(DEPTH_PRESETS)
    assert GUIDED == ("fast", "thorough") and DepthSearch().preset == "fast"
    assert DepthSearch.PRESETS == ("fast", "thorough", "quick", "paper")
    for search in (RatioSearch, JointSearch):
        assert search.PRESETS == ("quick", "paper") and search().preset == "quick"


def test_a_preset_cannot_be_changed():
    with pytest.raises(AttributeError):
        DEPTH_PRESETS["fast"].images = 1


def test_a_guided_search_looks_at_the_speedups_that_the_page_names():
    assert "--speedups 2,16" in ROWS
    for name in GUIDED:
        assert DepthSearch(preset=name).settings().speedups == (2.0, 16.0)


def test_a_joint_search_has_the_depths_of_one_preset_and_the_ratios_of_the_other():
    settings = JointSearch().settings()
    assert differences(settings, DEPTH_PRESETS["quick"]) == {"ratios"}
    assert settings.ratios == RATIO_PRESETS["quick"].ratios
