"""Kinds of search side by side: rules alone and a guided search of two small budgets, to rows with hypervolumes."""

from itertools import pairwise

import pytest
from even_table import measured

from dato import DatoError
from dato.experiments.search_comparison import SHARES, ComparisonSettings, compare_searches

SETTINGS = ComparisonSettings(("rules", "guided"), repeats=1, candidates=10, images=2, held_out=1, steps=8)


@pytest.fixture
def compared(tmp_path, monkeypatch):
    monkeypatch.setattr("dato.search.guided.FIRST_GENERATIONS", 20)
    monkeypatch.setattr("dato.search.study.measure_table", measured)
    monkeypatch.setattr("dato.experiments.search_comparison.WORST", 5.0)  # dB; so few calls give bad images
    return compare_searches(SETTINGS, tmp_path)


@pytest.mark.thorough
def test_rules_and_a_guided_search_side_by_side(compared):
    rules, guided = compared.rows
    assert (rules["search"], guided["search"]) == ("rules", "guided")
    # 4 of 8 calls whole, spread evenly or ever farther apart, depth 0 or 1, order 0 or 1; two images of each.
    assert rules["candidates"] == 8 and 8 * 4 * 2 < rules["unet_calls"] < 8 * 8 * 2
    for row in compared.rows:
        spent, curve = zip(*row["curve"], strict=True)
        assert all(a < b for a, b in pairwise(spent)) and all(a <= b for a, b in pairwise(curve))
        assert spent[-1] == row["unet_calls"] and curve[-1] == row[f"hypervolume at {SHARES[-1]:g}"]
        assert 0 < row["hypervolume at 1"] < 1 and 0 < row["held-out at 1"] < 1
        assert row["points"] == len(row["front"]) and all(share < 1.5 for share, *_ in row["front"])
    # The guided search has spent something on its error model before its first candidate.
    assert guided["curve"][0][0] > rules["curve"][0][0] > 0
    assert compared.conditions["steps"] == 8 and compared.conditions["candidates"] == 10


def test_an_unknown_search_is_refused():
    with pytest.raises(DatoError, match="unknown search 'luck'; known are paper; "):
        ComparisonSettings(("luck",))
