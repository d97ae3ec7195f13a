"""How a guided search divides its time."""

import pytest

from dato.search.budget import FEWEST, Budget, divided

SIZES = {"prompts": 6, "images": 12}


def test_candidates_get_what_the_finalists_leave():
    assert divided(50.0, 3.0, **SIZES) == (Budget(14.0, 3.0), 0.0)
    assert divided(45.0, 3.0, **SIZES) == (Budget(9.0, 3.0), 0.0)  # the least: half of 6 images of each finalist


@pytest.mark.parametrize("available", [44.0, 41.17, 30.0, 22.5])
def test_with_less_time_there_are_fewer_finalists_and_the_time_is_kept(available):
    budget, too_much = divided(available, 3.0, **SIZES)
    assert FEWEST * 3 <= budget.finalists < 3 and budget.candidates == pytest.approx(3 * budget.finalists)
    assert budget.candidates + 12 * budget.finalists == pytest.approx(available) and too_much == 0


@pytest.mark.parametrize("available", [20.0, 0.0, -10.0])
def test_half_of_the_finalists_are_the_fewest(available):
    budget, too_much = divided(available, 3.0, **SIZES)
    assert budget == Budget(4.5, 1.5) and too_much == pytest.approx(22.5 - available)
