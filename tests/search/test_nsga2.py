"""The search algorithm with a cheap judge: reproducible, within its space, better than the schedules it begins with."""

from dataclasses import replace

import numpy as np
import pytest
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from pymoo.indicators.hv import HV

from dato import DatoError, Point, Pruning, Schedule
from dato.evaluation.baselines import all_baselines, fewer_steps, seeds, uniform
from dato.evaluation.evaluator import Evaluator
from dato.evaluation.methods import tomesd_method
from dato.evaluation.side_by_side import retime
from dato.generation.prompts import read_prompts
from dato.generation.sampling import Sampling, generate
from dato.metrics import Setup, load_metric
from dato.point import non_dominated
from dato.samplers import SAMPLERS, num_calls, sampler_name, set_scheduler
from dato.search.nsga2 import search
from dato.search.operators import EditMutation, splice
from dato.search.presets import DEPTH_PRESETS, RATIO_PRESETS
from dato.search.spaces import DepthSpace, RatioSpace

SMALL = replace(DEPTH_PRESETS["quick"], pop_size=12, generations=12)


class Judge:
    """Quality falls with the age of the cache, more so late; latency is the depth's. Counts what it is asked."""

    def __init__(self):
        self.judged = {}

    def __call__(self, schedule):
        if schedule not in self.judged:
            age, loss = 0, 0.0
            for call, (depth, ratio, _) in enumerate(schedule.entries):
                age = 0 if depth == schedule.rungs else age + 1
                loss += age * (1 + call / 10) / (1 + depth) + ratio
            cost = sum(1 + 8 * d * (1 - r / 2) for d, r, _ in schedule.entries)
            self.judged[schedule] = Point(schedule, -loss, cost, 1.0)
        return self.judged[schedule]

    def ask(self, schedules):
        return map(self, schedules)


@pytest.mark.parametrize("presets", [DEPTH_PRESETS, RATIO_PRESETS])
@pytest.mark.parametrize("name", ["quick", "paper"])
def test_the_same_seed_gives_the_same_points(presets, name):
    preset = replace(presets[name], pop_size=10, generations=4)
    if presets is DEPTH_PRESETS:
        space = DepthSpace([12], 12, preset.depths)
    else:
        bases = [Schedule.uniform(12, 3, 1), Schedule.uniform(12, 4, 0)]
        space = RatioSpace(bases, preset.ratios, Pruning(score="dato"))
    runs = [[p.schedule for p in search(space, Judge().ask, preset, seed=seed)] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] and runs[0] != runs[2]
    assert len(runs[0]) <= 40 and len(set(runs[0])) > 10
    for schedule in runs[0]:
        if presets is DEPTH_PRESETS:
            assert set(schedule.depths) <= {*preset.depths, 12}
        else:
            assert schedule.depths in {base.depths for base in bases} and schedule.pruning.score == "dato"
            assert set(schedule.ratios) <= {0.0, *preset.ratios}
            assert all(r == 0 for d, r, _ in schedule.entries if d == 0)


def hypervolume(points):
    """The area between the points and a corner that all of them beat (quality -400, latency 2500)."""
    return HV(ref_point=np.array([400.0, 2500.0]))(np.array([[-p.quality, p.latency_ms] for p in points]))


@pytest.mark.parametrize("operators", ["quick", "paper"])
def test_the_search_goes_beyond_the_schedules_it_began_with(operators):
    space, judge = DepthSpace([21], 12, [0, 1, 3]), Judge()
    known = [s for s in uniform(21, 12).values() if space.encode(s) is not None]
    chosen = DEPTH_PRESETS[operators]
    preset = replace(SMALL, generations=20, crossover=chosen.crossover, mutation=chosen.mutation)
    found = list(search(space, judge.ask, preset, seeds=known))
    assert len({p.schedule for p in found}) > 200
    begun = [judge(s) for s in known]
    # Every schedule that it began with is matched in both objectives, and the front as a whole is further out.
    assert all(any(f.quality >= b.quality and f.latency_ms <= b.latency_ms for f in found) for b in begun)
    assert hypervolume(found) > hypervolume(begun)


@pytest.mark.parametrize("preset", [SMALL, replace(DEPTH_PRESETS["paper"], pop_size=12, generations=12)])
def test_a_space_that_is_exhausted_ends_the_search(preset):
    judge = Judge()
    points = list(search(DepthSpace([3], 12, [1]), judge.ask, preset))
    assert 1 <= len(judge.judged) <= 4 and points


def test_a_quality_that_is_no_number_ranks_last():
    def judge(schedule):
        point = Judge()(schedule)
        return replace(point, quality=float("nan")) if schedule.depths[-1] == 12 else point

    front = non_dominated(search(DepthSpace([12], 12, [0, 1]), lambda asked: map(judge, asked), SMALL))
    assert front and all(np.isfinite(p.quality) and p.schedule.depths[-1] != 12 for p in front)


def test_a_floor_of_quality_moves_the_population_above_it():
    space, floor = DepthSpace([21], 12, [0, 1]), -60.0
    preset = replace(SMALL, generations=30)
    last = [
        [p.quality >= floor for p in search(space, Judge().ask, preset, min_quality=m)][-60:] for m in (None, floor)
    ]
    assert np.mean(last[1]) > np.mean(last[0])


def test_spaces_encode_what_they_decode_and_refuse_nonsense():
    space = DepthSpace([6], 9, [0, 2])
    schedule = Schedule([9, 0, 2, 9, 2, 0], rungs=9)
    assert space.decode(space.encode(schedule)) == schedule
    assert space.encode(Schedule([9, 1, 2, 9, 2, 0], rungs=9)) is None
    for make, message in [
        (lambda: DepthSpace([6], 9, [3, -1]), "0 to 9, not -1"),
        (lambda: DepthSpace([6], 9, [10]), "depths of this UNet are 0 to 9"),
        (lambda: DepthSpace([6], 9, [9]), "something to choose"),
        (lambda: DepthSpace([1], 9, [0]), "at least two UNet calls"),
        (lambda: RatioSpace([schedule], [0, 0.8], Pruning()), "ratios go from 0 to 0.75, not 0.8"),
        (lambda: RatioSpace([schedule], [0.5], Pruning()), "at least two"),
    ]:
        with pytest.raises(DatoError, match=message):
            make()


LENGTHS = DepthSpace([7, 13, 25], 12, [0, 1, 3], orders=[0, 1])


@st.composite
def vectors(draw):
    """A vector of the space of three lengths and two orders, with its unused genes 0 as the space writes them."""
    x = np.array([draw(st.integers(0, upper)) for upper in LENGTHS.upper])
    x[LENGTHS.heads + LENGTHS.active(x) :] = 0
    return x


@settings(max_examples=100, deadline=None)
@given(vectors(), vectors(), st.integers(0, 2**32 - 1))
def test_variation_of_schedules_of_several_lengths_stays_in_the_space(one, other, seed):
    rng = np.random.default_rng(seed)
    children = [splice(LENGTHS, one, other, rng), EditMutation(LENGTHS, edits=3)._do(None, [one], random_state=rng)[0]]
    for child in children:
        schedule = LENGTHS.decode(child)
        assert len(schedule) in (7, 13, 25) and set(schedule.orders) <= {0, 1}
        again = LENGTHS.encode(schedule)
        assert LENGTHS.decode(again) == schedule
        if set(schedule.depths) != {12}:  # where all calls are whole, the gene of the order says nothing
            assert np.array_equal(again, child)
    child = LENGTHS.decode(children[0])
    mother, father = LENGTHS.decode(one), LENGTHS.decode(other)
    assert len(child) == len(mother)
    assert {*child.orders} == {*mother.orders} or {12} in ({*child.depths}, {*mother.depths})
    # Every call is the mother's, or the father's of the same time.
    father = father.resampled(len(mother))
    assert all(c in pair for c, *pair in zip(child.depths, mother.depths, father.depths, strict=True))


def test_another_length_keeps_the_kind_of_schedule():
    x = LENGTHS.encode(Schedule.uniform(25, 2, 1, order=1))
    shorter = LENGTHS.decode(LENGTHS.with_head(x, 0, 1))
    assert len(shorter) == 13 and 6 <= shorter.depths.count(12) <= 7 and shorter.orders == (1,) * 13
    assert LENGTHS.decode(LENGTHS.with_head(x, 1, 0)) == Schedule.uniform(25, 2, 1)


def test_a_search_over_lengths_goes_beyond_regular_schedules_of_each():
    judge, begun = Judge(), seeds([7, 13, 25], 12, [0, 1])
    points = list(search(LENGTHS, judge.ask, SMALL, seeds=begun))
    new = [p for p in points if p.schedule not in begun]
    assert {len(p.schedule) for p in new} == {7, 13, 25} and {o for p in new for o in p.schedule.orders} == {0, 1}
    assert hypervolume(points) > hypervolume([judge(s) for s in begun]) + 1000


def test_schedules_of_whole_calls_have_one_spelling():
    whole = LENGTHS.encode(Schedule.full(13))
    ordered = LENGTHS.with_head(whole, 1, 1)
    assert not np.array_equal(whole, ordered) and LENGTHS.decode(ordered) == Schedule.full(13)
    assert len(LENGTHS.decode(LENGTHS.with_head(ordered, 0, 2))) == 25
    aligned = DepthSpace([7], 12, [0, 1], orders=[1], forecast="aligned")
    assert aligned.decode(aligned.encode(Schedule.full(7))) == Schedule.full(7)


def test_ratios_of_bases_of_different_lengths_keep_their_place_in_time():
    bases = [Schedule.full(4), Schedule.full(12), Schedule.uniform(12, 3, 0)]
    space = RatioSpace(bases, [0, 0.3, 0.5], Pruning(recover_from="past"))
    x = np.array([0, 2, 2, 1, 0, *[0] * 8])
    assert space.decode(x).ratios == (0.5, 0.5, 0.3, 0.0)
    longer = space.with_head(x, 0, 1)
    assert space.decode(longer).ratios == (0.5,) * 6 + (0.3,) * 3 + (0.0,) * 3
    assert np.array_equal(space.with_head(longer, 0, 0), x)
    assert space.decode(space.with_head(x, 0, 2)).ratios[:4] == (0.5, 0.0, 0.0, 0.5)  # nothing to prune at depth 0
    # However many bases there are, each begins both without pruning and with.
    begun = [space.decode(x) for x in space.initial(2, np.random.default_rng(0))]
    assert len(begun) == 6 and [any(s.ratios) for s in begun] == [False] * 3 + [True] * 3
    for seed in range(50):
        rng = np.random.default_rng(seed)
        child = EditMutation(space, edits=4)._do(None, [splice(space, x, longer, rng)], random_state=rng)[0]
        assert len(space.decode(child)) == len(bases[child[0]]) and not child[1 + space.active(child) :].any()


def test_references_name_stock_with_fewer_steps_uniform_schedules_and_spectrum():
    assert fewer_steps(50) == [25, 20, 15, 10, 8, 6, 5] and fewer_steps(4) == [2] and fewer_steps(2) == []
    assert fewer_steps(25, more=True)[:3] == [20, 15, 12] and fewer_steps(25)[0] == 12
    assert fewer_steps(50, more=True) == fewer_steps(50)
    known = all_baselines({51: 50, 26: 25, 11: 10}, 51, 12)
    assert known["25 steps"] == Schedule.full(26) and known["10 steps"] == Schedule.full(11) and "50 steps" not in known
    assert known["N=3 d=1"] == Schedule.uniform(51, 3, 1)
    assert known["Spectrum"] == Schedule.growing(51, forecast="chebyshev")
    assert known["Spectrum, windows +3"].depths.count(12) < known["Spectrum"].depths.count(12)
    regular = seeds([11, 26], 12, [0, 1], "aligned")
    assert len(regular) == 3 * 2 * 2 and Schedule.uniform(26, 2, 1) in regular
    assert Schedule.uniform(11, 3, 0, order=1, forecast="aligned") in regular
    assert len(seeds([21], 12, [0], count=16)) == 7


def test_a_schedule_says_by_its_length_for_how_many_steps_it_is(_embedded):
    metrics = [load_metric("psnr", Setup())]
    judge = Evaluator(_embedded, read_prompts(None, 1), Sampling(steps=6), metrics, steps=[3, 2])
    assert judge.steps_of == {7: 6, 4: 3, 3: 2} and judge.calls == 7
    half, whole = judge(Schedule.full(4)), judge(Schedule.full(7))
    assert (half.steps, half.scheduler, whole.steps) == (3, "plms", 6)
    assert whole.quality == 100 and 5 < half.quality < 60  # the reference is the image of 6 steps
    assert judge(Schedule.uniform(4, 2, 1)).quality < 60
    with pytest.raises(DatoError, match="5 calls cannot be judged here; generations have 3, 4, 7"):
        judge(Schedule.full(5))


def test_a_peer_is_judged_beside_schedules(_embedded):
    judge = Evaluator(_embedded, read_prompts(None, 1), Sampling(steps=3), [load_metric("psnr", Setup())])
    peer = tomesd_method(0.5, Schedule.full(4))
    point = judge(peer)
    assert 5 < point.quality < 60 and judge(Schedule.full(4)).quality == 100  # gone again afterwards
    assert not any("ToMe" in type(module).__name__ for module in _embedded.unet.modules())
    baseline, [timed] = retime(judge, {peer: point}, 1)
    assert timed.speedup == pytest.approx(baseline.latency_ms / timed.latency_ms)


def test_papers_initial_schedules_have_few_whole_calls():
    """As the authors' script draws them: none in the first 15 calls, 0 or 1 in the next 20, 0 or 1 in the last 15."""
    space = DepthSpace([51], 12, [0, 1])
    drawn = [space.decode(genes).depths for genes in space.papers_initial(200, np.random.default_rng(0))]
    depths = np.array(drawn)[:, 1:]
    whole = np.stack([(part == 12).sum(1) for part in np.split(depths, [15, 35], axis=1)], axis=1)
    assert {tuple(row) for row in whole} == {(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)}
    assert 0.4 < whole[:, 1].mean() < 0.6 and 0.4 < whole[:, 2].mean() < 0.6
    # The other calls are at depth 0 or 1 with the same chance, and a whole call may be anywhere in its stretch.
    shallow = depths[depths < 12]
    assert set(shallow) == {0, 1} and 0.48 < shallow.mean() < 0.52
    places = np.flatnonzero((depths == 12).any(0))
    assert places.min() < 18 and places.max() == 49 and {34, 35} & set(places)


def test_papers_initial_schedules_of_a_joint_search_prune_no_more_calls_whole():
    space = DepthSpace([51], 12, [0, 1], ratios=[0.3, 0.5])
    for genes in space.papers_initial(50, np.random.default_rng(0)):
        schedule = space.decode(genes)
        assert schedule.depths[1:].count(12) <= 2
        assert all(ratio == 0 for depth, ratio, _ in schedule.entries if depth == 12)


@pytest.fixture(scope="module")
def judge_of(_embedded):
    def make(latency=None):
        metrics = [load_metric(name, Setup()) for name in ("psnr", "clip-score")]
        return Evaluator(_embedded, read_prompts(None, 3), Sampling(steps=3), metrics, latency)

    return make


def test_candidates_see_the_same_prompts_and_noise(judge_of):
    judge, again = judge_of(), judge_of()
    assert judge.baseline.quality == 100 and judge.baseline.speedup == 1 and judge.calls == 4
    assert judge(Schedule.full(4)).quality == 100  # the same noise as stock's, so the same images
    schedule = Schedule.uniform(4, 2, 1)
    first = judge(schedule)
    images = judge.images
    assert judge(schedule) is first and judge.images == images  # not generated again
    times = {"unet_ms": 0, "measured_ms": 0}
    assert again(schedule).metrics | times == first.metrics | times
    assert 0 < first.quality < 100 and first.metrics["unet_ms"] < first.latency_ms == first.metrics["measured_ms"]


def test_predicted_latencies_are_what_counts_until_all_are_timed(judge_of):
    judge = judge_of(lambda schedule: sum(schedule.depths) + 1.0)
    schedule, peer = Schedule.uniform(4, 2, 1), tomesd_method(0.5, Schedule.full(4))
    point = judge(schedule)
    assert point.latency_ms == point.metrics["table_ms"] == 27 and point.speedup == pytest.approx(49 / 27)
    assert point.metrics["measured_ms"] > point.metrics["unet_ms"] > 0
    # Nobody predicts a peer: its speed-up is a ratio of measured times.
    other, stock = judge(peer), judge.baseline
    assert other.latency_ms == other.metrics["measured_ms"] and "table_ms" not in other.metrics
    assert other.speedup == pytest.approx(stock.metrics["measured_ms"] / other.latency_ms)
    assert retime(judge, {schedule: point, peer: other}, 0) == (stock, [point, other])
    baseline, timed = retime(judge, {schedule: point, peer: other}, 1)
    assert baseline.metrics["table_ms"] == 49 and timed[0].metrics["table_ms"] == 27
    for again in (baseline, *timed):
        assert again.latency_ms == again.metrics["measured_ms"]
        assert again.speedup == pytest.approx(baseline.latency_ms / again.latency_ms)


def test_timing_again_goes_in_turn_and_gives_ratios_of_one_run(judge_of):
    judge, ticks = judge_of(), []
    schedules = [Schedule.uniform(4, 4, 0), Schedule.uniform(4, 2, 3)]
    points = [judge(s) for s in schedules]
    baseline, again = retime(judge, dict(zip(schedules, points, strict=True)), 2, lambda: ticks.append(1))
    assert len(ticks) == 6
    assert [p.schedule for p in again] == schedules and [p.quality for p in again] == [p.quality for p in points]
    assert baseline.speedup == 1
    assert all(p.speedup == pytest.approx(baseline.latency_ms / p.latency_ms) for p in again)


def test_prompts_come_from_a_file_or_the_search_split(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  a dog \n", encoding="utf-8")
    assert read_prompts(path, 2) == ["a cat", "a dog"]
    for count, source, message in [(3, path, "3 prompts are asked for"), (1, tmp_path / "none.txt", "cannot read")]:
        with pytest.raises(DatoError, match=message):
            read_prompts(source, count)
    assert len(read_prompts(None, 74)) == 74


def test_samplers_by_name(pipe):
    set_scheduler(pipe, "ddim")
    assert type(pipe.scheduler).__name__ == "DDIMScheduler" and not pipe.scheduler.config.clip_sample
    assert num_calls(pipe, 10) == 10
    set_scheduler(pipe, "plms")
    assert num_calls(pipe, 10) == 11
    for name in (*SAMPLERS, *reversed(SAMPLERS)):  # nothing of one stays with the next
        set_scheduler(pipe, name)
        assert sampler_name(pipe.scheduler) == name
    for kind, options in [
        (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
        (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
        (PNDMScheduler, {"skip_prk_steps": False}),
    ]:
        assert sampler_name(kind(**options)) == kind.__name__
    with pytest.raises(DatoError, match="unknown scheduler 'fast'"):
        set_scheduler(pipe, "fast")
    with pytest.raises(DatoError, match="cannot do 2000 steps"):
        set_scheduler(pipe, "ddim")
        num_calls(pipe, 2000)
    with pytest.raises(DatoError, match="`height` must be a multiple of 8, not 60"):
        generate(pipe, ["rose"], Sampling(height=60))
