"""What a front says of its points, beside what an evaluation measures."""

from dataclasses import replace

import pytest

import dato
from dato import Front, Point, Schedule
from dato.experiments.front_claims import Claim, claims, objective_of, said_of

FRONT = dato.load_front("emoji-sd-depth")


def measured(metric: str, value: float, said: float | None = None, **further: float) -> Point:
    metrics = {metric: value} | ({} if said is None else {f"said_{metric}": said}) | further
    return Point(Schedule.full(3), 0.0, 10.0, 1.0, metrics)


def test_a_front_says_its_objective():
    point = FRONT.points[9]
    assert objective_of(FRONT) == "psnr"
    assert said_of(point, FRONT, ["clip-score", "psnr"]) == {"said_psnr": point.quality}
    assert said_of(point, FRONT, ["clip-score", "ssim"]) == {}
    silent = Front((Point(Schedule.full(3), 1, 1, 1),), Point(Schedule.full(3), 1, 1, 1))
    assert objective_of(silent) is None and said_of(silent.points[0], silent, ["psnr"]) == {}


def test_each_front_has_one_claim_of_the_means():
    points = {
        "a 0": measured("psnr", 40.0, 43.0),
        "a 1": measured("psnr", 30.0, 31.0),
        "b 0": measured("frechet", -5.0, -4.0, psnr=50.0),
        "10 steps": measured("psnr", 20.0),
    }
    families = {"fewer steps": ["10 steps"], "a": ["a 0", "a 1"], "b": ["b 0"]}
    found = claims(families, points, ["psnr", "frechet"])
    assert found == [Claim("a", "psnr", 37.0, 35.0, 2), Claim("b", "frechet", -4.0, -5.0, 1)]
    assert str(found[0]) == "a: psnr 37.00 by the front, 35.00 measured here, difference +2.00 (mean of 2 points)"
    # A distance has the sign of the field: the front says 4, and it is 5.
    assert str(found[1]) == "b: frechet 4.00 by the front, 5.00 measured here, difference -1.00 (one point)"


@pytest.mark.parametrize("objective", ["ssim", "clip-score"])
def test_another_objective(objective):
    front = replace(FRONT, conditions={**FRONT.conditions, "quality": objective})
    assert said_of(front.points[3], front, [objective]) == {f"said_{objective}": front.points[3].quality}
