"""The sensitivity model in a search: it is measured once, kept in the journal, makes plans and ranks offspring."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conftest import toy_recipe
from even_table import measured

from dato import Point, Pruning, Schedule
from dato.evaluation.evaluator import Evaluator
from dato.evaluation.pool import InProcess
from dato.experiments.search_comparison import Account
from dato.prediction.latency_table import LatencyTable, call_kinds
from dato.search.adviser import Advice
from dato.search.hypervolume import Scale, by_evaluation
from dato.search.nsga2 import search
from dato.search.presets import DEPTH_PRESETS
from dato.search.run_folder import Folder
from dato.search.spaces import DepthSpace
from dato.search.study import Study

RECIPE = toy_recipe(6, 4, 2, "psnr", size=64)
SPACE = DepthSpace([4, 6], 12, [0, 1], (0, 1))


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """(folder, study, advice) after a table and the models were measured."""
    folder = tmp_path_factory.mktemp("advised")
    study = opened(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dato.search.study.measure_table", measured)
        study.use_table(study.measured_table(SPACE.examples()))
    advice = Advice(study.sensitivity([4, 6], [0, 1]), study.table)
    yield folder, study, advice
    study.close()


def opened(folder):
    study = Study(Folder(folder), InProcess(RECIPE.evaluator()))
    study.begin("depth", {}, {"toy": True}, Pruning())
    return study


def test_plans_are_of_the_space_and_better_than_regular_schedules_of_their_cost(known):
    _, _, measured = known
    # Fixed times, because what is planned depends on them.
    kinds = {kind: 1.0 + kind.depth for kind in measured.table.calls}
    advice = Advice(measured.models, LatencyTable(12, kinds, stock=13.0, per_call=0.1, per_image=1.0))
    plans = advice.plans(SPACE, 12)
    assert 4 <= len(plans) <= 12 and len(set(plans)) == len(plans)
    assert all(SPACE.encode(schedule) is not None for schedule in plans)
    for order in (0, 1):
        own = [s for s in plans if s.orders[0] == order]
        guesses = sorted((advice.guess(s) for s in own), key=lambda guess: guess[1])
        assert len(own) >= 3 and all(a[1] < b[1] and a[0] < b[0] for a, b in pairwise(guesses))
    errors = {len(model): model.error for model in advice.models}
    # Stock with fewer steps is no plan, so plans need not be as good.
    for regular in (Schedule.uniform(6, 2, 1), Schedule.uniform(6, 3, 0), Schedule.uniform(4, 2, 0)):
        # Plans have the least error to first order, which guesses correct.
        error, latency = errors[len(regular)](regular), advice.guess(regular)[1]
        every = [(errors[len(plan)](plan), advice.guess(plan)[1]) for plan in advice.plans(SPACE, 1000)]
        assert any(e <= error + 1e-9 and ms <= latency + 1e-6 for e, ms in every)


@pytest.mark.parametrize("orders", [(0, 2), (0, 1, 2)])
@pytest.mark.parametrize("forecast", ["polynomial", "aligned"])
def test_the_table_of_a_space_prices_all_that_is_planned_in_it(known, orders, forecast):
    _, _, advice = known
    space = DepthSpace([6], 12, [0, 1], orders, forecast)
    prices = {kind: 1.0 + kind.depth for example in space.examples() for kind in call_kinds(example)}
    table = LatencyTable(12, prices, stock=13.0, per_call=0.1, per_image=1.0)
    plans = Advice(advice.models, table).plans(space, 9)
    assert {schedule.orders[0] for schedule in plans} == set(orders)
    assert not DepthSpace([6], 12, [0, 1], (0, 1), "chebyshev").can_be_planned


@pytest.mark.thorough
def test_guesses_rank_as_images_do_and_are_learnt_from_them(known):
    _, study, advice = known
    schedules = [Schedule.uniform(6, 2, 1, 1), Schedule.uniform(6, 3, 1), Schedule.uniform(6, 6, 0), Schedule.full(4)]
    points = list(study(schedules))
    seen, guessed = [p.quality for p in points], [advice.guess(s)[0] for s in schedules]
    assert np.corrcoef(np.argsort(np.argsort(seen)), np.argsort(np.argsort(guessed)))[0, 1] > 0.7
    assert all(advice.guess(p.schedule)[1] == p.latency_ms for p in points)
    taught = Advice(advice.models, advice.table)
    more = list(study([SPACE.decode(x) for x in SPACE.initial(12, np.random.default_rng(0), schedules)]))
    taught.tell([*points, *more, replace(points[0], quality=-math.inf)])
    wrong = [abs(taught.guess(p.schedule)[0] - p.quality) for p in more]
    assert np.mean(wrong) < 3  # now in decibels of the images
    assert taught.guess(Schedule.uniform(5, 2, 1))[0] == -math.inf  # a length that nobody measured


def test_models_come_back_from_the_journal_as_they_were(known, tmp_path, monkeypatch):
    folder, _, advice = known
    lines = (folder / "journal.jsonl").read_bytes()
    (tmp_path / "journal.jsonl").write_bytes(lines)

    def generated(*arguments, **options):
        raise AssertionError("an image was generated")

    monkeypatch.setattr("dato.search.study.generate", generated, raising=False)
    monkeypatch.setattr("dato.prediction.error_measure.generate", generated)
    again = opened(tmp_path)
    models = again.sensitivity([4, 6], [0, 1])
    again.close()
    assert [len(model) for model in models] == [6, 4] == [len(model) for model in advice.models]
    some = Schedule.uniform(6, 2, 1), Schedule.uniform(4, 3, 0, 1)
    for schedule, model, old in zip(some, models, advice.models, strict=True):
        assert model.error(schedule) == old.error(schedule) > 0


@pytest.mark.thorough
def test_an_account_charges_a_search_for_what_it_would_have_spent_alone(known, monkeypatch):
    _, study, advice = known
    preset = replace(DEPTH_PRESETS["quick"], pop_size=6, generations=2)
    alone, raced = Account(study), Account(study, race=1)
    for account in (alone, raced):
        begin = advice.plans(SPACE, 6)
        list(search(SPACE, account, preset, seeds=begin, adviser=Advice(advice.models, advice.table)))
    assert len(alone.points) == len(set(p.schedule for p in alone.points)) >= 8
    assert alone.calls == pytest.approx(
        sum(2 * study.table.predict_unet(p.schedule) / study.table.stock for p in alone.points)
    )
    assert raced.calls <= alone.calls and raced.spent == sorted(raced.spent)
    judged = []
    monkeypatch.setattr(Evaluator, "judge", lambda self, *arguments: judged.append(arguments))
    again = Account(study)
    list(again([p.schedule for p in alone.points]))
    assert not judged and again.calls == pytest.approx(alone.calls)
    curve = alone.curve(Scale(10.0, 100.0))
    assert [volume for _, volume in curve] == sorted(volume for _, volume in curve)


def test_a_model_that_is_not_finite_is_noted_and_done_without(known, tmp_path, monkeypatch):
    _, _, advice = known
    broken = replace(advice.models[0], weights=advice.models[0].weights * math.nan)
    monkeypatch.setattr("dato.search.study.measure_sensitivity", lambda *arguments: broken)
    monkeypatch.setattr("dato.search.study.final_latent", lambda *arguments: np.zeros(128))
    for _ in range(2):  # and once more from the journal
        study = opened(tmp_path)
        assert study.sensitivity([4, 6], [0, 1]) == []
        study.close()


def test_seeds_of_a_joint_search_are_tried_with_pruning_too():
    space = DepthSpace([6], 12, [0, 1], ratios=[0.3, 0.5, 0.7], pruning=Pruning(recover_from="past"))
    plain = Schedule.uniform(6, 3, 0)
    seeds = space.also_pruned([plain, Schedule.uniform(6, 2, 1)])
    assert len(seeds) == 4 and all(space.encode(seed) is not None for seed in seeds)
    assert seeds[2].ratios == (0, 0, 0, 0.5, 0, 0) and seeds[3].ratios == (0, 0.5, 0.5, 0.5, 0.5, 0.5)
    assert DepthSpace([6], 12, [0, 1]).also_pruned([plain]) == [plain]


def test_hypervolume_ends_at_the_share_of_time_that_counts():
    points = [Point(Schedule.full(4), 60.0, 1.0, speedup) for speedup in (2.0, 4.0)]
    assert by_evaluation(points, Scale(20.0, 100.0))[-1] == pytest.approx(0.5 * 0.75)
    assert by_evaluation(points, Scale(20.0, 100.0, 0.5))[-1] == pytest.approx(0.5 * 0.5)
    assert by_evaluation(points, Scale(20.0, 100.0, 0.2)) == [0, 0]
