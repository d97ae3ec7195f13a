"""The latency table: its arithmetic, and, on a clock that we move ourselves, that it finds each call's true time."""

import json
import random
import runpy
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from which_tests import thorough

import dato.search.candidate_timing
import dato.search.study
import dato.unet.cache
import dato.utils.timing
from dato import DatoError, Pruning, Schedule, load_front
from dato.evaluation.baselines import all_baselines
from dato.evaluation.evaluator import Evaluator
from dato.generation.prompts import read_prompts
from dato.generation.sampling import Sampling
from dato.metrics import Setup, load_metric
from dato.prediction.latency_check import Pair, TableCheck, check_table, measurer, random_schedules
from dato.prediction.latency_measure import (
    BEGIN,
    _Generation,
    _summed_up,
    fixed_parts,
    measure_table,
    probes,
    typical,
)
from dato.prediction.latency_table import CallKind, LatencyTable, call_kinds
from dato.samplers import SAMPLERS, lengths, set_scheduler
from dato.search.nsga2 import search
from dato.search.presets import DEPTH_PRESETS
from dato.search.spaces import DepthSpace, RatioSpace
from dato.tokens.pruner import TokenPruner
from dato.unet.ladder import Ladder
from dato.unet.patch import Patch

TABLE = LatencyTable(
    12, {CallKind(12): 10.0, CallKind(1): 2.0, CallKind(0): 0.5, CallKind(1, None, 1, "aligned"): 3.0}, 9.0, 0.25, 40.0
)


def test_a_schedule_takes_what_its_calls_take():
    schedule = Schedule([12, 1, 0, 12, 1])
    assert TABLE.predict_unet(schedule) == 2 * 10 + 2 * 2 + 0.5
    assert TABLE.predict(schedule) == 24.5 + 5 * 0.25 + 40
    # Whole calls alone need no patch. A line needs two values, and goes by the skip connections where that is the rule.
    assert TABLE.predict(Schedule.full(7)) == 7 * 9.25 + 40
    ordered = replace(schedule, orders=(1, 1, 0, 1, 1), forecast="aligned")
    assert TABLE.predict_unet(ordered) == 2 * 10 + 2 + 3 + 0.5
    with pytest.raises(DatoError, match=r"no call of depth 1, order 1$"):
        TABLE.predict(replace(ordered, forecast="polynomial"))
    with pytest.raises(DatoError, match=r"no call of depth 12, ratio 0\.5, order 0"):
        TABLE.predict(schedule.with_ratios(0.5))
    with pytest.raises(DatoError, match="other settings of pruning"):
        TABLE.predict(replace(schedule.with_ratios(0.5), pruning=Pruning(sx=4)))
    assert TABLE.predict(replace(schedule, pruning=Pruning(sx=4))) == TABLE.predict(schedule)  # it prunes nothing


def test_kinds_of_calls():
    def kinds(depths, order, forecast="polynomial", ratios=None):
        return [tuple(kind)[1:] for kind in call_kinds(Schedule(depths, ratios, order, forecast=forecast))]

    plain, line, parabola = (None, 0, "polynomial"), (None, 1, "polynomial"), (None, 2, "polynomial")
    # A call at depth 2 computes what arrives at rung 0 and the prediction, but not what arrives at rung 1.
    assert kinds([12, 2, 1, 0, 2, 1], 2) == [plain, plain, line, parabola, plain, parabola]
    assert kinds([12, 1, 12, 1, 0], 1, "aligned") == [plain, plain, plain, (None, 1, "aligned"), line]
    assert kinds([12, 1, 12, 12, 1], 2, "aligned")[-1] == parabola
    spectrum = (None, 1, "chebyshev")
    assert kinds([12, 0, 1, 12, 1, 0], 1, "chebyshev") == [plain, spectrum, plain, plain, spectrum, spectrum]
    assert kinds([12, 0, 1], 0, ratios=[0, 0, 0.5]) == [(0.0, 0, "polynomial"), plain, (0.5, 0, "polynomial")]


def test_a_table_is_plain_data(tmp_path):
    table = replace(TABLE, calls={**TABLE.calls, CallKind(3, 0.3): 1 / 3}, pruning=Pruning(recover_from="past"))
    assert LatencyTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    good = TABLE.to_dict()
    for bad in (
        {key: value for key, value in good.items() if key != "stock"},
        good | {"per_call": -1},
        good | {"per_image": "1"},
        good | {"calls": [[12, None]]},
        None,
    ):
        with pytest.raises(DatoError, match="not a latency table"):
            LatencyTable.from_dict(bad)


def test_what_is_outside_the_unet_comes_of_two_lengths():
    assert fixed_parts([(8, 54.0), (48, 74.0)]) == pytest.approx((0.5, 50))
    noisy = [(8, 54.0), (8, 53.9), (48, 74.0), (48, 74.2), (28, 64.0), (28, 640.0)]
    assert fixed_parts(noisy) == pytest.approx((0.5, 50), rel=0.01)
    assert fixed_parts([(8, 54.0), (48, 50.0)]) == (0, 52)  # neither part is ever negative
    assert fixed_parts([(10, 1.0), (20, 9.0)]) == pytest.approx((0.275, 0))
    assert fixed_parts([(8, 54.0)]) == (0, 54)


def test_a_call_that_was_held_up_does_not_count_but_slowness_does():
    assert typical([5.0] * 19 + [500.0]) == 5 and typical([4.0, 6.0]) == 5 and typical([3.0]) == 3
    assert typical([10.0] * 6 + [20.0] * 4) == pytest.approx(13.75)  # the median would say 10


WHOLE = CallKind(12)


def generation(kind, *times):
    return _Generation([kind] * len(times), times, sum(times))


def test_stock_and_whole_calls_take_the_same_unless_they_surely_differ():
    noisy = [generation(None, 9, 50, 70), generation(None, 9, 55, 65), generation(WHOLE, 9, 60, 44, 52)]
    calls, _ = _summed_up(12, [*noisy, generation(WHOLE, 9, 58, 60)])
    assert calls[None] == calls[WHOLE] == typical([50, 70, 55, 65, 60, 44, 52, 58, 60])
    steady = [
        generation(kind, 9, ms + less, ms + 1) for kind, ms in ((None, 50), (WHOLE, 54)) for less in (0, 0.1, 0.2)
    ]
    calls, _ = _summed_up(12, steady)
    assert (calls[None], calls[WHOLE]) == pytest.approx((50.575, 54.575))  # 50.1, 50.2, 51, 51: without the ends
    calls, _ = _summed_up(12, [generation(None, 9, 50), generation(CallKind(1), 9, 20)])
    assert calls == {None: 50, CallKind(1): 20}


def every_kind():
    """Schedules of every kind of call: all rules, with pruning and without."""
    depths = [
        Schedule.uniform(9, 2, depth, order, forecast=rule)
        for depth in (0, 1, 3)
        for order in (0, 1, 2)
        for rule in ("polynomial", "aligned", "chebyshev")
    ]
    return depths + RatioSpace(depths, [0, 0.3, 0.5], Pruning(recover_from="past")).examples()


def test_every_kind_is_in_a_probe_several_times():
    wanted = {kind for schedule in every_kind() for kind in call_kinds(schedule)}
    assert len(wanted) > 30
    for longest in (56, 20):
        found = probes(wanted, 12, Pruning(recover_from="past"), longest, random.Random(0), 3)
        counts = Counter(kind for probe in found for kind in call_kinds(probe))
        assert wanted <= set(counts) <= wanted | {CallKind(12, 0.0)} and min(counts.values()) >= 3
        assert max(map(len, found)) <= longest
        assert all(set(probe.depths[:BEGIN]) == {12} for probe in found)
    again = probes(wanted, 12, Pruning(recover_from="past"), 20, random.Random(0), 3)
    assert again == found != probes(wanted, 12, Pruning(recover_from="past"), 20, random.Random(1), 3)


def test_a_space_names_its_kinds():
    """Whatever a search comes upon is in the table that its space's examples fill."""
    rng = np.random.default_rng(0)
    depths = DepthSpace([4, 9, 13], 12, [0, 1, 3], [0, 1, 2], "aligned")
    bases = [s for s in random_schedules(4, [9, 13], depths=[0, 1, 3], orders=[0, 1], forecast="aligned")]
    ratios = [RatioSpace(bases, [0, 0.3, 0.5], Pruning()), RatioSpace(bases, [0.3, 0.5], Pruning())]
    # Where every other call is of depth 0, ratios that alternate by call would be all zero.
    ratios.append(RatioSpace([Schedule([12, 0, 1, 0, 1, 0])], [0, 0.5], Pruning()))
    for space in (depths, *ratios):
        known = {kind for schedule in space.examples() for kind in call_kinds(schedule)}
        for x in [*space.papers_initial(100, rng), *space.initial(20, rng, [])]:
            assert set(call_kinds(space.decode(x))) <= known


class Clock:
    """Stands in for `time` in `dato.utils.timing`: the time is what the work that was really done should take."""

    STOCK, PER_CALL, PER_IMAGE = 40.0, 0.25, 16.0  # milliseconds of a batch
    DEPTH = MappingProxyType({12: 41.0, 3: 16.0, 1: 4.0, 0: 1.0})

    def __init__(self, monkeypatch, pipe):
        self.now = 0.0
        monkeypatch.setattr(dato.utils.timing, "time", SimpleNamespace(perf_counter=lambda: self.now / 1000))
        on = partial(self._on, monkeypatch)
        on(UNet2DConditionModel, "forward", lambda *_, **__: self.STOCK)
        # To the patch the timed forward is another's, which would run in whole calls.
        monkeypatch.setattr(dato.unet.forward_override, "foreign_forward", lambda module, before: None)
        on(Patch, "forward", lambda *_, **__: 0.5)
        on(Ladder, "run", lambda ladder, depth, *_, **__: self.DEPTH[depth])
        on(TokenPruner, "prepare", lambda pruner, ratio, *_: 2.0 - 4 * ratio)
        # What is really forecast, and from how many values.
        on(dato.unet.cache, "combine", lambda values, weights: 0.25 * len(values))
        on(dato.unet.cache, "forecast_weights", lambda *_: 0.0)
        on(dato.unet.cache, "align", lambda *_: 2.0)
        on(type(pipe.scheduler), "step", lambda *_, **__: self.PER_CALL)
        on(type(pipe.vae), "decode", lambda *_, **__: self.PER_IMAGE)

    def _on(self, monkeypatch, owner, name, cost):
        plain = getattr(owner, name)

        def timed(*args, **kwargs):
            self.now += cost(*args, **kwargs)
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, timed)


@pytest.mark.parametrize("sampler", ["plms", *thorough("heun")])
def test_the_table_finds_what_each_kind_of_call_takes(make_pipe, monkeypatch, sampler):
    pipe = make_pipe()
    set_scheduler(pipe, sampler)
    Clock(monkeypatch, pipe)
    pruning = Pruning(recover_from="past")
    bases = [Schedule.uniform(9, 2, d, o, forecast="aligned") for d in (0, 1, 3) for o in (0, 1, 2)]
    schedules = [*bases, *RatioSpace(bases[3:5], [0, 0.25, 0.5], pruning).examples()]
    table = measure_table(pipe, ["a", "b", "c"], Sampling(batch_size=2), schedules, rounds=1)
    assert [table.stock, table.per_call, table.per_image] == pytest.approx([20, 0.125, 8])
    times = {kind: 2 * ms for kind, ms in table.calls.items()}  # the clock's are of a batch of two
    for kind, ms in times.items():
        # A call of the patched UNet, its rungs, its hooks, and its forecast.
        true = 0.5 + Clock.DEPTH[kind.depth]
        true += 0 if kind.ratio is None else 2 - 4 * kind.ratio
        true += 2 if kind.forecast == "aligned" else 0.25 * (kind.order + 1) if kind.order else 0
        assert ms == pytest.approx(true), kind
    assert {kind for schedule in schedules for kind in call_kinds(schedule)} <= set(times)
    # Whole; at depths 1 and 3 reuse, line, parabola, aligned; at depth 0 the first three; three kinds by ratio.
    assert len(times) == 1 + 2 * 4 + 3 + 3 * 3

    # And so it knows what other schedules take, of other lengths: no error is left.
    others = random_schedules(3, [9], depths=[0, 1, 3], orders=[0, 1], forecast="aligned", seed=2)
    others += random_schedules(2, [9], depths=[1], ratios=[0, 0.25, 0.5], pruning=pruning, seed=3)
    check = check_table(
        table, others, measurer(pipe, ["a", "b"], Sampling()), stock=Schedule.full(max(lengths(pipe, 12))), rounds=1
    )
    if sampler == "plms":  # it computes at one timestep twice, so a line through its first two values does not exist
        assert max(check.errors) < 0.02
    else:
        assert max(check.errors) == pytest.approx(0, abs=1e-9)
        assert check.stock.measured == pytest.approx(check.stock.predicted)
    assert not pipe.unet._forward_hooks and "forward" not in pipe.unet.__dict__


def test_spectrums_calls_are_in_the_table(make_pipe, monkeypatch):
    pipe = make_pipe()
    set_scheduler(pipe, "dpm++2m")
    Clock(monkeypatch, pipe)
    known = list(all_baselines({8: 8}, 8, 12).values())
    table = measure_table(pipe, ["a"], Sampling(batch_size=1), known, rounds=1)
    assert all(table.predict(schedule) > 0 for schedule in known)
    # It goes by all values since the first: at least those of the probe's beginning.
    assert table.calls[CallKind(0)] == pytest.approx(1.5)
    assert table.calls[CallKind(0, None, 1, "chebyshev")] >= 1.5 + 0.25 * BEGIN


def test_one_table_is_of_one_way_to_prune(make_pipe):
    schedules = [replace(Schedule.full(4).with_ratios(0.5), pruning=Pruning(sx=n)) for n in (2, 4)]
    with pytest.raises(DatoError, match="prune with different settings"):
        measure_table(make_pipe(), ["a"], Sampling(), schedules)
    with pytest.raises(DatoError, match="choose_every"):
        pruning = Pruning(choose_every=2)
        measure_table(
            make_pipe(), ["a"], Sampling(), [replace(Schedule.full(4, rungs=12).with_ratios(0.5), pruning=pruning)]
        )


def test_lengths_that_samplers_make(make_pipe):
    pipe = make_pipe()
    for sampler in SAMPLERS:
        set_scheduler(pipe, sampler)
        found = lengths(pipe, 20)
        assert list(found) == sorted(found) and 20 <= max(found) <= 21, sampler
    set_scheduler(pipe, "heun")
    assert lengths(pipe, 7) == {1: 1, 3: 2, 5: 3, 7: 4}
    with pytest.raises(DatoError, match="makes no generation of 6 calls"):
        measurer(pipe, ["a"], Sampling())(Schedule.uniform(6, 2, 1))


def test_errors_of_times_and_of_speed_ups():
    # The machine is slower by a quarter than when the table was measured; one prediction is off beside that.
    check = TableCheck((Pair(8.0, 10.0), Pair(4.0, 5.0), Pair(2.2, 2.5)), Pair(16.0, 20.0))
    assert check.errors == pytest.approx([0.2, 0.2, 0.12])
    assert check.speedup_errors == pytest.approx([0, 0, 1 - 1 / 1.1])
    assert "3 schedules: times off by 20.0% (worst 20.0%), speed-ups by 0.0% (worst 9.1%)" in str(check)


def test_checking_goes_in_turn_with_stock():
    asked = []

    def measure(schedule):
        asked.append(schedule)
        return float(len(asked))

    schedules = [Schedule([12, 1, 0]), Schedule([12, 0, 0])]
    check = check_table(TABLE, schedules, measure, stock=Schedule.full(3), rounds=3)
    assert asked == [Schedule.full(3)] + [Schedule.full(3), *schedules] * 3  # the first warms up
    assert check.stock == Pair(TABLE.predict(Schedule.full(3)), 5)
    assert [pair.measured for pair in check.pairs] == [6, 7]


def test_random_schedules_are_different_and_fixed_by_the_seed():
    options = {"depths": [0, 1], "orders": [0, 1], "ratios": [0, 0.5], "forecast": "aligned"}
    found = random_schedules(20, [10, 20], **options)
    assert found == random_schedules(20, [10, 20], **options) != random_schedules(20, [10, 20], seed=1, **options)
    assert len(set(found)) == 20 and {len(s) for s in found} == {10, 20}
    shares = [s.depths.count(12) / len(s) for s in found]
    assert min(shares) < 0.3 and max(shares) > 0.6
    with pytest.raises(DatoError, match="no 20 different schedules"):
        random_schedules(20, [2], depths=[0])


def test_a_search_by_a_table_is_the_same_every_time(make_pipe):
    table = replace(TABLE, calls={**TABLE.calls, CallKind(0, None, 1): 0.6})
    space = DepthSpace([3, 4], 12, [0, 1], [0, 1], "aligned")
    preset = replace(DEPTH_PRESETS["quick"], pop_size=5, generations=2)

    pipe = make_pipe()

    def points():
        metrics = [load_metric("psnr", Setup())]
        judge = Evaluator(pipe, read_prompts(None, 1), Sampling(steps=3), metrics, table.predict, steps=[2])
        return [
            (p.schedule, p.quality, p.latency_ms, p.speedup)
            for p in search(space, lambda asked: map(judge, asked), preset, seed=1)
        ]

    first = points()
    assert first == points() and len(first) == 10
    assert all(latency == table.predict(schedule) for schedule, _, latency, _ in first)


def test_a_search_measures_its_table_and_says_how_far_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dato.search.study, "measure_table", partial(measure_table, rounds=1))
    options = "--preset quick --images 1 --batch-size 1 --steps 3 --depths 0,1 --orders 0 --pop-size 4 --rounds 1"
    options += " --generations 1"
    arguments = ["search_depth.py", *options.split(), "--latency", "table", "--out", "run"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(Path(__file__).parents[2] / "search" / "search_depth.py"), run_name="__main__")
    errors = " ".join(capsys.readouterr().err.split())
    assert not left.value.code
    assert "The latency table against the clock" in errors and "kinds of call measured" in errors
    front = load_front("run/pareto.json")
    table = LatencyTable.from_dict(front.conditions["latency_table"])
    assert "predicted by latency_table" in front.conditions["latency"]
    assert {CallKind(12), CallKind(1), CallKind(0)} <= set(table.calls)
    for point in (front.baseline, *front.points, *front.references.values()):
        assert point.metrics["table_ms"] == pytest.approx(table.predict(point.schedule))
        assert point.latency_ms == point.metrics["measured_ms"] != point.metrics["table_ms"]  # timed at the end
        assert point.speedup == pytest.approx(front.baseline.latency_ms / point.latency_ms)


def test_auto_is_a_table_on_a_cpu():
    assert dato.search.candidate_timing.mode_of("auto", "cpu") == "table"
    assert dato.search.candidate_timing.mode_of("measured", "cpu") == "measured"
