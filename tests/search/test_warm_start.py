"""A search that begins from a front: its schedules are judged first, and it may end as one of them."""

import pytest
from conftest import PROMPTS
from even_table import measured

from dato import DatoError, Front, Point, Schedule
from dato.search import search_depth, search_joint
from dato.search.journal import read_entries
from dato.search.spaces import DepthSpace
from dato.search.warm_start import WarmStart

FEW = {"steps": [6], "latency": "table", "guidance_scale": 1, "height": 64, "width": 64}
QUICK = {"preset": "quick", "pop_size": 4, "generations": 1, "rounds": 0}
LATE = Schedule((12, 0, 0, 0, 0, 12))
PLMS = [Schedule((12, 0, 0, 0, 0, 0, 12)), Schedule((12, 0, 12, 0, 0, 0, 12))]  # seven calls of six steps


def front_of(tmp_path, *schedules):
    """The path of a front of these schedules, the fastest first."""
    points = [Point(schedule, 30.0 + i, 10.0 + i, 100 / (10 + i), steps=6) for i, schedule in enumerate(schedules)]
    baseline = Point(Schedule.full(len(schedules[0])), 100.0, 100.0, 1.0, steps=6)
    path = tmp_path / "start.json"
    Front(points, baseline, {}, {"quality": "psnr", "steps": 6, "calls": len(schedules[0])}).save(path)
    return path


def space(**changes):
    return DepthSpace(
        **{"calls": [6], "rungs": 12, "depths": [0, 1], "orders": [0, 1], "order_by_call": True} | changes
    )


def inside(*schedules, calls=6, **changes):
    start = WarmStart(schedules, "mine", calls)
    return [(s.depths, s.orders[1]) for s in start.inside(space(**changes)).schedules]


def test_schedules_of_the_space_stay_as_they_are():
    uniform = Schedule.uniform(6, 3, 1, 1)
    found = WarmStart([LATE, uniform, LATE], "mine", 6).inside(space())
    assert found.schedules == [LATE.canonical(), uniform.canonical()]


def test_they_are_moved_to_another_height_length_and_order():
    assert inside(LATE, rungs=9) == [((9, 0, 0, 0, 0, 9), 0)]
    long = Schedule.uniform(12, 3, 1)
    assert inside(long, calls=12) == [(long.resampled(6).depths, 0)]
    assert inside(Schedule.uniform(6, 3, 1, 2)) == [((12, 1, 1, 12, 1, 1), 1)]


def test_a_speedup_stays_the_same_at_another_length():
    """A schedule of half of its reference's calls becomes one of half of the new reference's, if there are such."""
    half, whole = Schedule.uniform(10, 5, 0), Schedule.uniform(20, 5, 0)
    start = WarmStart([half, whole], "mine", 20)
    assert [len(s) for s in start.inside(DepthSpace([6, 12], 12, [0])).schedules] == [6, 12]
    assert [len(s) for s in start.inside(DepthSpace([9, 21], 12, [0])).schedules] == [21]


def test_what_the_space_does_not_hold_is_left_out():
    deep, aligned = Schedule.uniform(6, 3, 7), Schedule.uniform(6, 3, 1, 1, forecast="aligned")
    assert inside(deep, aligned, LATE) == [(LATE.depths, 0)]
    assert inside(deep, LATE, rungs=5) == [((5, 0, 0, 0, 0, 5), 0)]
    with pytest.raises(DatoError, match="`warm_start` mine: this search cannot hold any of its schedules"):
        inside(deep, aligned)


def test_prompts_that_were_searched_do_not_validate_without_a_warning():
    start = WarmStart([LATE], "mine", 6, frozenset({"a cat", "a dog"}))
    assert start.told(["a tree"]) == start.told([]) == "Beginning with 1 schedules of mine."
    assert "warning: it was searched with 1 of the 2 prompts to validate by" in start.told(["a tree", "a cat"])


@pytest.mark.parametrize("preset", [{"validation": 2, "minutes": 0.1}, QUICK])
def test_its_schedules_are_judged_first(make_pipe, tmp_path, monkeypatch, preset):
    monkeypatch.setattr("dato.search.study.measure_table", measured)
    monkeypatch.setattr("dato.search.guided.FIRST_GENERATIONS", 5)
    prompts = PROMPTS[:1] if preset is QUICK else [*PROMPTS, "cat face", "green apple", "tulip"]
    path = front_of(tmp_path, *PLMS)
    front = search_depth(make_pipe(), prompts, out=tmp_path / "run", warm_start=path, **FEW, **preset)
    entries = read_entries(tmp_path / "run" / "journal.jsonl")[0]
    judged = [tuple(entry["judged"]["depths"]) for entry in entries if "judged" in entry]
    first = judged.index(PLMS[0].depths)
    assert judged[first : first + 2] == [schedule.depths for schedule in PLMS]
    assert preset is QUICK or not first  # with generations, references are judged before
    settings = front.conditions["search"]
    assert settings["warm_start"] == str(path) and len(settings["warm_start_sha256"]) == 64


def test_a_joint_search_takes_one_too(make_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("dato.search.study.measure_table", measured)
    start = front_of(tmp_path, PLMS[0])
    front = search_joint(make_pipe(), PROMPTS[:1], warm_start=start, ratios=[0, 0.5], depths=[0], **FEW, **QUICK)
    assert front.conditions["search"]["warm_start"] == str(start)


def test_another_front_is_another_search(make_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("dato.search.study.measure_table", measured)
    pipe, options = make_pipe(), {**FEW, **QUICK, "out": tmp_path / "run"}
    search_depth(pipe, PROMPTS[:1], warm_start=front_of(tmp_path, PLMS[0]), **options)
    path = front_of(tmp_path, PLMS[1])
    with pytest.raises(DatoError, match="warm_start"):
        search_depth(pipe, PROMPTS[:1], warm_start=path, **options)


def test_a_warm_start_that_is_not_there(make_pipe):
    with pytest.raises(DatoError, match="no file and no shipped strategy"):
        search_depth(make_pipe(), PROMPTS[:1], warm_start="none.json", **FEW, **QUICK)
    with pytest.raises(DatoError, match="`warm_start` does not go with `preset` paper"):
        search_depth(make_pipe(), PROMPTS[:1], warm_start="none.json", preset="paper")
