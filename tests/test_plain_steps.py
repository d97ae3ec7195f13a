"""How many plain steps are as good as a point: interpolated, bounded at the ends, or not told at all."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from conftest import FRONT_FILE

import dato
from dato import Front, Point, Schedule
from dato.plain_steps import PlainSteps, is_plain, plain_steps


def plain(steps: int, quality: float, speedup: float | None = None, **options) -> Point:
    """Stock with so many of 40 steps; its time is proportional to them if nothing else is said."""
    speedup = speedup or 40 / steps
    return Point(Schedule.full(steps), quality, 1000 / speedup, speedup, steps=steps, **options)


def searched(quality: float, speedup: float = 8.0, **options) -> Point:
    return Point(Schedule.uniform(40, 8, 0, 1), quality, 1000 / speedup, speedup, **{"steps": 40} | options)


STOCK = plain(40, 100.0)
REFERENCES = [plain(20, 44.0), plain(5, 20.0), plain(10, 32.0), Point(Schedule.uniform(40, 2, 1), 60, 500, 2, steps=40)]


@pytest.mark.parametrize(
    ("quality", "steps", "speedup", "bound"),
    [
        (32.0, 10, 2.0, ""),  # exactly a reference: its own time
        (38.0, 10 * 2**0.5, 8 * 10 * 2**0.5 / 40, ""),  # half of the way is the root of twice the steps
        (23.0, 5 * 2**0.25, 8 * 5 * 2**0.25 / 40, ""),
        (44.1, 20, 4.0, ">"),
        (99.9, 20, 4.0, ">"),  # stock is equal to itself, which says nothing of 30 steps
        (100.0, 40, 8.0, ""),
        (100.1, 40, 8.0, ">"),
        (20.0, 5, 1.0, ""),
        (19.9, 5, 1.0, "<"),
    ],
)
def test_by_quality(quality, steps, speedup, bound):
    result = plain_steps(searched(quality), REFERENCES, STOCK)
    assert (result.steps, result.speedup, result.bound) == (pytest.approx(steps), pytest.approx(speedup), bound)


def test_more_steps_are_never_worse():
    """The fewest steps count that reach a quality, however bad more steps are by chance."""
    wavy = [plain(5, 20), plain(10, 36), plain(20, 32), plain(25, 37)]
    assert plain_steps(searched(36), wavy, STOCK).steps == 10
    assert plain_steps(searched(34), wavy, STOCK).steps < 10
    between = plain_steps(searched(36.5), wavy, STOCK)
    assert 20 < between.steps < 25 and between.steps == pytest.approx(20 * 1.25**0.5)


def test_the_time_is_the_measured_one():
    """Where steps have a fixed cost beside them, ten of 40 are not 4 times as fast."""
    slow = [plain(20, 44.0, speedup=1.6), plain(10, 32.0, speedup=2.5)]
    assert plain_steps(searched(32.0), slow, STOCK) == PlainSteps(10, pytest.approx(8 / 2.5))
    middle = plain_steps(searched(32 + 12 * math.log2(1.5)), slow, STOCK)
    assert middle.steps == pytest.approx(15)
    assert middle.speedup == pytest.approx(8 * (1 / 1.6 + 1 / 2.5) / 2)


def test_a_point_of_fewer_steps_may_be_slower_than_its_plain_steps():
    assert plain_steps(searched(44.0, speedup=1.25), REFERENCES, STOCK).speedup == pytest.approx(1.25 / 2)


def test_one_reference_gives_bounds():
    one = [plain(20, 44.0)]
    assert plain_steps(searched(43), one, STOCK).bound == "<" and plain_steps(searched(45), one, STOCK).bound == ">"
    assert plain_steps(searched(44), one, STOCK) == PlainSteps(20, pytest.approx(4))


def test_what_cannot_be_told():
    assert plain_steps(searched(38), [], STOCK) is None
    assert plain_steps(searched(38), [STOCK, REFERENCES[-1]], STOCK) is None
    assert plain_steps(searched(math.nan), REFERENCES, STOCK) is None
    assert plain_steps(searched(38, scheduler="euler"), REFERENCES, STOCK) is None
    other_sampler = [replace(p, scheduler="euler") for p in REFERENCES]
    assert plain_steps(searched(38), other_sampler, STOCK) is None
    assert plain_steps(searched(38), REFERENCES, STOCK, "ssim") is None
    pruned = [replace(p, schedule=p.schedule.with_ratios(0.5)) for p in REFERENCES]
    assert plain_steps(searched(38), pruned, STOCK) is None
    # By this metric fewer steps are better, as a CLIP score may say.
    falling = [plain(steps, 90 - steps) for steps in (5, 10, 20)]
    assert plain_steps(searched(75), falling, plain(40, 50)) is None
    # Failed references do not count.
    assert plain_steps(searched(38), [*REFERENCES, plain(15, math.nan), plain(25, -math.inf)], STOCK) == plain_steps(
        searched(38), REFERENCES, STOCK
    )


def test_any_metric_of_which_higher_is_better():
    """A distance is negative, and stock need not be far above the others."""
    stock = plain(40, -50.0)
    references = [plain(20, -51.0), plain(10, -53.0)]
    assert plain_steps(searched(-52.0), references, stock).steps == pytest.approx(10 * 2**0.5)
    assert plain_steps(searched(-40.0), references, stock) == PlainSteps(40, pytest.approx(8), ">")
    metric = [replace(p, metrics={"frechet": q}, quality=0.0) for p, q in zip(references, (-51, -53), strict=True)]
    point, stock = searched(7, metrics={"frechet": -52.0}), replace(stock, quality=9.0, metrics={"frechet": -50.0})
    assert plain_steps(point, metric, stock, "frechet").steps == pytest.approx(10 * 2**0.5)


def test_points_of_a_front_know_their_steps_and_sampler():
    front = dato.load_front(FRONT_FILE)
    point = front.pick(speedup=7)
    result = front.plain_steps(point)
    assert 15 < result.steps < 18 < front.conditions["steps"] and result.bound == ""
    assert front.references["18 steps"].quality > point.quality > front.references["15 steps"].quality
    # Without the reference of 18 steps, those of 20 are the next.
    fewer = {name: p for name, p in front.references.items() if name != "18 steps"}
    other = replace(front, references=fewer).plain_steps(point)
    assert other.steps != result.steps and 15 < other.steps < 20
    # This front's points leave their steps to its conditions, and no reference is stock with fewer steps.
    assert dato.load_front("emoji-sd-plms20-depth").plain_steps(front.points[5]) is None


def test_calls_are_no_steps():
    """PLMS makes one call more than steps; a point without steps of its own has its front's."""
    stock = Point(Schedule.full(21), 100, 100, 1)
    few = Point(Schedule.full(11), 40, 50, 2, steps=10)
    point = Point(Schedule.uniform(21, 3, 1), 40, 25, 4)
    front = Front((point,), stock, {"10 steps": few}, {"calls": 21, "steps": 20, "quality": "psnr"})
    assert front.plain_steps(front.points[0]) == PlainSteps(10, 2.0)
    bare = Front((point,), stock, {"10 steps": few}, {"calls": 21, "quality": "psnr"})
    assert bare.plain_steps(bare.points[0]) is None  # nobody says how many steps stock has


def test_what_is_plain():
    assert is_plain(STOCK) and is_plain(plain(3, 1.0)) and not is_plain(searched(38))
    assert not is_plain(replace(STOCK, schedule=STOCK.schedule.with_ratios(0.5)))
