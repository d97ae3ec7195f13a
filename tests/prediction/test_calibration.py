"""From predicted errors to judged quality."""

from dataclasses import replace

import numpy as np
import pytest
from error_models import random_model

from dato.errors import DatoError
from dato.prediction.calibration import FEWEST, Calibration
from dato.schedule import Schedule

CALLS = 12


@pytest.fixture
def model():
    return random_model(calls=CALLS, depths=(1, 2))


def schedules(count: int) -> list[Schedule]:
    rng = np.random.default_rng(1)
    return [Schedule((3, *rng.integers(0, 4, CALLS - 1).tolist()), rungs=3) for _ in range(count)]


def test_it_learns_the_scale(model):
    def judge(schedule):
        return 30 - 2 * np.log10(model.error(schedule) + 1e-6)

    calibration = Calibration([model], [(s, judge(s)) for s in schedules(40)])
    assert calibration.fitted and calibration.deviation < 0.5
    for schedule in schedules(60)[40:]:
        assert calibration(schedule) == pytest.approx(judge(schedule), abs=1)


def test_with_few_judged_it_ranks_by_the_error(model):
    some = schedules(FEWEST - 1)
    calibration = Calibration([model], [(s, 1.0) for s in some])
    assert not calibration.fitted and calibration.deviation is None
    assert sorted(some, key=calibration) == sorted(some, key=model.error, reverse=True)


def test_the_number_of_whole_calls_is_learnt(model):
    latents = np.tril(np.random.default_rng(2).normal(size=(CALLS + 1, CALLS)), -1)
    model = replace(model, latents=latents, reactions=np.tile([0.5, 0.5, 0.5, 0.1], (CALLS, 1)))

    def judge(schedule):
        return 20 + 30 * np.log10(schedule.depths.count(3))

    some = schedules(60)
    calibration = Calibration([model], [(s, judge(s)) for s in some[:40]])
    wrong = [calibration(s) - judge(s) for s in some[40:]]
    assert np.std(wrong) < 0.3 * np.std([judge(s) for s in some[40:]])


def test_what_no_model_knows_is_left_out(model):
    judged = [(s, 20.0) for s in schedules(FEWEST)]
    more = [(Schedule.full(4, rungs=3), 90.0), (schedules(1)[0], float("nan"))]
    assert Calibration([model], judged + more)(judged[0][0]) == pytest.approx(20.0)
    with pytest.raises(DatoError, match="4 calls"):
        Calibration([model])(Schedule.full(4, rungs=3))
    with pytest.raises(DatoError, match="one sensitivity model"):
        Calibration([model, model])
    with pytest.raises(DatoError):
        Calibration([])
