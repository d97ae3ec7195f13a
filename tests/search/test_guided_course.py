"""A guided search from its start to a validated front, and a plan, on a tiny pipeline."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PROMPTS, draw
from even_table import measured
from which_tests import thorough

import dato
from dato import DatoError, Point, Schedule, load_front
from dato.evaluation.evaluator import Evaluator
from dato.evaluation.validation import OTHER_NOISE
from dato.prediction.latency_table import LatencyTable
from dato.search import plan, search_depth, study
from dato.search.candidate_timing import HOW
from dato.search.guided_course import FURTHER_SHARE, RULES_SHARE, START, THINKING, GuidedCourse
from dato.search.journal import read_entries
from dato.unet.compiled import CompiledCalls

MANY = [*PROMPTS, "cat face", "green apple", "tulip on a black background"]
FAST = {"steps": [6], "validation": 2, "minutes": 0.1, "latency": "table", "batch_size": 1, "guidance_scale": 1}
FAST |= {"height": 64, "width": 64}


def make_even_and_short(patch):
    """Make the latency table the same in every search, as if a clock ran evenly, and the first evolution short."""
    patch.setattr("dato.search.study.measure_table", measured)
    patch.setattr("dato.search.planning.measure_table", measured)
    patch.setattr("dato.search.guided.FIRST_GENERATIONS", 30)


@pytest.fixture(autouse=True)
def even_and_short(monkeypatch):
    make_even_and_short(monkeypatch)


@pytest.fixture(scope="module")
def searched(make_pipe, tmp_path_factory):
    """A pipeline, the folder of a finished search, its front, and what its evaluators have generated."""
    patch, generated = pytest.MonkeyPatch(), []
    original = Evaluator.generate

    def noted(self, method, prompts, sampling, decode=True):
        generated.append((self.validation is None, frozenset(prompts), sampling.seed))
        return original(self, method, prompts, sampling, decode)

    patch.setattr(Evaluator, "generate", noted)
    make_even_and_short(patch)
    folder, pipe = tmp_path_factory.mktemp("runs") / "whole", make_pipe(seed=2)
    try:
        front = search_depth(pipe, MANY, out=folder, **FAST)
    finally:
        patch.undo()
    return pipe, folder, front, generated


def judged(folder):
    return [entry["judged"] for entry in read_entries(folder / "journal.jsonl")[0] if "judged" in entry]


def test_validation_prompts_and_noise_are_never_searched(searched):
    _, _, front, generated = searched
    conditions = front.conditions
    assert len(conditions["validation_prompts"]) == 2 and len(conditions["prompts"]) == 4
    assert not set(conditions["prompts"]) & set(conditions["validation_prompts"])
    for validating, prompts, seed in generated:
        assert prompts <= set(conditions["validation_prompts" if validating else "prompts"])
        assert (seed >= OTHER_NOISE) == validating
    assert {validating for validating, _, _ in generated} == {True, False}


def test_a_front_says_what_was_validated(searched):
    _, folder, front, _ = searched
    assert load_front(folder) == front and front.conditions["search"]["finished"]
    assert front.conditions["search"]["validation_images"] > 0
    assert front.conditions["latency"] == "end to end per image, predicted by latency_table"
    table = LatencyTable.from_dict(front.conditions["latency_table"])
    by_schedule = {str(entry["depths"]) + str(entry["orders"]): entry["quality"] for entry in judged(folder)}
    for point in front.points:
        assert {"spread", "measured_ms"} <= set(point.metrics)
        assert point.latency_ms == pytest.approx(table.predict(point.schedule))
        own = by_schedule.get(str(list(point.schedule.depths)) + str(list(point.schedule.orders)))
        if "search_quality" in point.metrics:
            assert point.metrics["search_quality"] == own != point.quality
    for reference in front.references.values():
        assert not any(reference.latency_ms <= p.latency_ms and reference.quality > p.quality for p in front.points)
    assert any(name.startswith("rule: ") for name in front.references)


@pytest.mark.parametrize("lines", [8, *thorough(1, 4, -1)])
def test_a_search_that_was_cut_off_takes_the_same_decisions(searched, tmp_path, lines):
    pipe, folder, front, _ = searched
    shutil.copytree(folder, tmp_path / "run")
    journal = tmp_path / "run" / "journal.jsonl"
    kept = journal.read_text().splitlines(keepends=True)
    budgeted = next(number for number, line in enumerate(kept) if line.startswith('{"budget"'))
    kept = kept[: max(lines, budgeted + 1) if lines > 1 else lines]
    journal.write_text("".join(kept))
    again = search_depth(pipe, MANY, out=tmp_path / "run", **FAST)
    if lines == 1:  # another budget, as nothing was measured before
        assert judged(tmp_path / "run")[0]["depths"] == judged(folder)[0]["depths"]
        return
    entries = [(entry["depths"], entry["orders"], entry["quality"]) for entry in judged(folder)]
    assert [(entry["depths"], entry["orders"], entry["quality"]) for entry in judged(tmp_path / "run")] == entries
    assert again.conditions["prompts"] == front.conditions["prompts"]


@pytest.mark.parametrize("measured_ms", [500.0, 1000.0, 2000.0])
def test_minutes_are_converted_by_what_stock_took_and_not_by_the_table(measured_ms):
    """One round of a table may be off, and the budget is for what images will take."""
    stock = Point(Schedule.full(50), 100.0, 1000.0, 1.0, {"measured_ms": measured_ms})
    table = SimpleNamespace(predict=lambda schedule: 20.0 * schedule.depths.count(12))
    preset = SimpleNamespace(minutes=10, speedups=(2.0, 16.0), rounds=0, batch_size=6, finalists=12)
    course = GuidedCourse(
        SimpleNamespace(preset=preset, recipe=SimpleNamespace(prompts=PROMPTS * 2, validation=PROMPTS * 4)),
        SimpleNamespace(references={}),
        SimpleNamespace(stock=SimpleNamespace(point=stock), table=table),
        SimpleNamespace(note=pytest.fail),
        {},
    )
    course._rules_for_speedups = [Schedule.spread(50, 10)]
    budget = course._budget(0.0, table)
    images = (600 - START) * 1000 / measured_ms * (1 - THINKING)
    validation = 12 * (1 + RULES_SHARE * (0.2 + course._cost_of_finalists * FURTHER_SHARE))
    assert budget.candidates + 12 * budget.finalists == pytest.approx(images - validation)


@pytest.mark.parametrize(("own_quality", "chosen"), [(42.0, True), (39.0, False)])
def test_further_rules_are_predicted_by_what_those_of_dato_rule_turned_out_to_be(own_quality, chosen):
    """Both the rule of 10 whole calls and that of 5 are predicted to have 30 dB, and a point of 8 has 41 dB."""
    stock = Point(Schedule.full(50), 100.0, 1000.0, 1.0)
    own, point, rival = (Schedule.spread(50, whole) for whole in (10, 8, 5))
    course = GuidedCourse(
        SimpleNamespace(preset=SimpleNamespace(finalists=12, speedups=(2.0, 16.0))),
        SimpleNamespace(),
        SimpleNamespace(stock=SimpleNamespace(point=stock)),
        SimpleNamespace(),
        {},
    )
    course._rules_for_speedups, course._rules = [own], [own, rival]
    ms = {own: 200.0, point: 160.0, rival: 100.0}
    advice = SimpleNamespace(guess_all=lambda asked: (np.full(len(asked), 30.0), np.array([ms[s] for s in asked])))
    quality = {own: own_quality, point: 41.0}
    points = {s: Point(s, quality[s], ms[s], 1000 / ms[s]) for s in quality}
    assert course._further_rules(advice, points) == [rival] * chosen


def test_rivals_are_timed_again_beside_the_front(searched, tmp_path, monkeypatch):
    pipe, folder, front, _ = searched
    shutil.copytree(folder, tmp_path / "run")
    journal = tmp_path / "run" / "journal.jsonl"  # of a search that is to time again
    journal.write_text(journal.read_text().replace(f'"{HOW["predicted"]}"', f'"{HOW["table"]}"'))
    seen, original = [], study.retime

    def slowly(evaluator, points, rounds, **options):
        seen.append(set(points))
        stock, timed = original(evaluator, points, rounds, **options)
        return stock, [replace(point, latency_ms=2 * point.latency_ms) for point in timed]

    monkeypatch.setattr("dato.search.study.retime", slowly)
    again = search_depth(pipe, MANY, out=tmp_path / "run", **FAST | {"rounds": 1})
    every = [*front.points, *front.references.values()]
    assert len(seen) == 1 and {point.schedule for point in every} <= seen[0]
    assert again.conditions["search"]["rounds"] == 1
    for point in (*again.points, *again.references.values()):
        assert point.latency_ms == 2 * point.metrics["measured_ms"]


def test_a_rival_that_was_given_up_is_never_on_the_front(searched, tmp_path, monkeypatch):
    """Timed again it may seem faster than the point that it lost to."""
    pipe, folder, front, _ = searched
    shutil.copytree(folder, tmp_path / "run")
    journal = tmp_path / "run" / "journal.jsonl"
    lines = journal.read_text().replace(f'"{HOW["predicted"]}"', f'"{HOW["table"]}"').splitlines()
    rival = next(reference for name, reference in front.references.items() if name.startswith("rule: "))
    for number, line in enumerate(lines):
        entry = json.loads(line)
        judged = entry.get("validated", {}).get("judged", {})
        if judged.get("depths") == list(rival.schedule.depths) and judged["orders"] == list(rival.schedule.orders):
            entry["validated"] |= {"per_image": entry["validated"]["per_image"][:1], "images": 1}
            lines[number] = json.dumps(entry)
    journal.write_text("\n".join(lines) + "\n")
    original = study.retime

    def favoured(evaluator, points, rounds, **options):
        stock, timed = original(evaluator, points, rounds, **options)
        return stock, [replace(p, latency_ms=1e-3) if p.schedule == rival.schedule else p for p in timed]

    monkeypatch.setattr("dato.search.study.retime", favoured)
    again = search_depth(pipe, MANY, out=tmp_path / "run", **FAST | {"rounds": 1})
    assert rival.schedule in {reference.schedule for reference in again.references.values()}
    assert rival.schedule not in {point.schedule for point in again.points}


@pytest.mark.thorough
def test_a_search_with_compiled_calls(make_pipe, tmp_path, monkeypatch):
    kept = []

    def eager_backend(unet):
        kept.append(CompiledCalls(unet, backend="eager"))
        return kept[-1]

    monkeypatch.setattr("dato.evaluation.pool.CompiledCalls", eager_backend)
    pipe, torn = make_pipe(seed=2), tmp_path / "run"
    stock = draw(pipe)
    options = FAST | {"compile": True, "minutes": 0.1}
    front = search_depth(pipe, MANY, out=torn, **options)
    assert front.conditions["compiled"] is True and len(kept) == 1
    (whole, *others) = kept[0]._compiled
    assert whole[0] == 12 and all(key[4] == whole[4] for key in others)  # all generations are of one size
    assert torch.equal(draw(pipe), stock)
    assert search_depth(pipe, MANY, out=torn, **options).points == front.points
    with pytest.raises(DatoError, match="compiled: True there, none here"):
        search_depth(pipe, MANY, out=torn, **FAST)


@pytest.mark.thorough
def test_prompts_are_drawn_as_many_as_the_options_say(make_pipe, tmp_path):
    front = search_depth(make_pipe(seed=2), MANY, images=2, out=tmp_path, **FAST)
    conditions = front.conditions
    assert len(conditions["prompts"]) == len(conditions["validation_prompts"]) == 2
    assert {*conditions["prompts"], *conditions["validation_prompts"]} <= set(MANY)


def test_too_few_prompts_and_wrong_ends_are_refused(make_pipe):
    for options, message in [
        ({"speedups": [8, 2]}, "`speedups`"),
        ({"speedups": [2]}, "give the lowest and the highest"),
        ({"validation": 1}, "`validation` 1: it must be at least 2"),
        ({"minutes": 0}, "`minutes` 0: it must be at least 0.1"),
    ]:
        with pytest.raises(DatoError, match=message):
            search_depth(make_pipe(), MANY, **FAST | options)
    with pytest.raises(DatoError, match="at least 4 different ones, not 3"):
        search_depth(make_pipe(), PROMPTS, **FAST)


def test_a_plan_is_one_schedule_that_is_fast_enough(make_pipe):
    pipe = make_pipe(seed=2)
    front = plan(pipe, PROMPTS, speedup=2, steps=8, guidance_scale=1, height=64, width=64)
    (point,) = front.points
    table = LatencyTable.from_dict(front.conditions["latency_table"])
    assert table.predict(front.baseline.schedule) / point.metrics["table_ms"] >= 2
    assert front.conditions["search"]["kind"] == "plan" and front.conditions["calls"] == len(point.schedule)
    assert dato.current_schedule(pipe) is None
    dato.apply_patch(pipe, front)
    assert dato.current_schedule(pipe) == point.schedule
    dato.remove_patch(pipe)
    with pytest.raises(DatoError, match="60 times as fast as stock: ask for less"):
        plan(pipe, PROMPTS, speedup=60, steps=8, guidance_scale=1, height=64, width=64)
    with pytest.raises(DatoError, match="`speedup` 1: it must be above 1"):
        plan(pipe, PROMPTS, speedup=1)
    with pytest.raises(DatoError, match="at least 2 prompts"):
        plan(pipe, PROMPTS[:1])
