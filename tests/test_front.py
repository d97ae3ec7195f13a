"""Fronts as data: a front is read as it was written, and an invalid file is refused."""

import json
from dataclasses import replace

import pytest

import dato
from dato import DatoError, Front, Point, Schedule, load_front
from dato.point import competing, non_dominated, without_equals
from dato.report.page import write_page
from dato.schedule import Schedule as PlainSchedule
from dato.search.run_folder import Run
from dato.strategies import load_strategy, strategies


def point(quality, latency, depth=1):
    return Point(
        Schedule([12, depth, depth]), quality, latency, 100 / latency, {"psnr": quality, "unet_ms": latency / 2}
    )


@pytest.fixture
def front():
    stock = Point(Schedule.full(3), 100.0, 100.0, 1.0, {"psnr": 100.0})
    return Front(
        (point(20, 20, 0), point(35, 25), point(40, 60, 5)),
        stock,
        {"N=2 d=1": point(30, 50)},
        {"calls": 3, "quality": "psnr"},
    )


def test_there_and_back(front, tmp_path):
    front.save(tmp_path / "deep" / "pareto.json")
    assert load_front(tmp_path / "deep" / "pareto.json") == front
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["pareto.json"]  # nothing temporary stays
    text = (tmp_path / "deep" / "pareto.json").read_text()
    assert '"depths": [12, 0, 0],' in text  # a schedule is one line that a person can read


def test_points_of_their_own_steps_and_forecasts(front, tmp_path):
    own = Point(Schedule([12, 1], orders=1, forecast="aligned"), 30, 10, 10, {}, steps=2, scheduler="dpm++2m")
    front = Front((own, *front.points), front.baseline, front.references, front.conditions)
    front.save(tmp_path / "pareto.json")
    again = load_front(tmp_path / "pareto.json")
    assert again == front and again.points[0].kwargs == {"num_inference_steps": 2} and again.points[1].kwargs == {}
    data = json.loads((tmp_path / "pareto.json").read_text())
    assert data["front"][0]["forecast"] == "aligned" and not {"forecast", "steps", "scheduler"} & set(data["front"][1])
    for key, value, message in [
        ("steps", 0, "steps must be a whole number above 0"),
        ("steps", None, "schedule of 2 calls, the search had 3"),
        ("scheduler", 3, "scheduler must be a name"),
        ("forecast", "hope", "unknown forecast 'hope'"),
    ]:
        broken = json.loads(json.dumps(data))
        broken["front"][0][key] = value
        with pytest.raises(DatoError, match=message):
            Front.from_dict(broken)


def test_knee_and_picks(front):
    assert front.knee() is front.points[1] and front.knee_index == 1
    assert front.pick(speedup=4) is front.points[1] and front.pick(speedup=1) is front.points[2]
    assert front.pick(speedup=4.5) is front.points[0]
    assert front.pick(quality=30) is front.points[1] and front.pick(quality=0) is front.points[0]
    assert front.choose() is front.knee() and front.choose(speedup=1) is front.points[2]
    with pytest.raises(DatoError, match=r"6 times as fast as stock; the fastest is 5.00x"):
        front.pick(speedup=6)
    with pytest.raises(DatoError, match="the best has 40"):
        front.pick(quality=41)
    assert front.pick(quality=40) is front.points[2] and front.choose(quality=36) is front.points[2]
    for both_or_none in ({}, {"speedup": 2, "quality": 30}):
        with pytest.raises(DatoError, match="either"):
            front.pick(**both_or_none)


def test_the_knee_of_a_front_without_a_bend_is_its_best_point():
    stock = Point(Schedule.full(3), 100.0, 100.0, 1.0)

    def knee(*points):
        return Front(tuple(point(*values) for values in points), stock).knee_index

    assert knee((20, 20)) == 0
    assert knee((20, 20), (40, 60)) == 0  # both are on the line, and the first one is faster
    assert knee((20, 20), (25, 40), (40, 60)) == 0 and knee((20, 20), (35, 40), (40, 60)) == 1
    assert knee((-40, 20), (-25, 30), (-24, 31), (-20, 60)) == 2  # a distance is negative
    assert knee((0.2, 0.02), (0.5, 0.04), (0.6, 0.9)) == 1  # whatever the units are
    assert knee((20, 20), (30, 20)) == 1  # no width
    assert knee((20, 20), (20, 60)) == 1 and knee((30, 20), (20, 60)) == 1  # no height


def test_a_point_without_conditions_says_that_they_are_unknown():
    bare = point(20.0, 50.0)
    assert bare.summary == (
        "An unknown model, an unknown number of steps of an unknown sampler: 2.00 times as fast as the unchanged "
        "pipeline, quality 20.00."
    )
    conditions = {"model": "m", "steps": 20, "scheduler": "PNDMScheduler", "quality": "fid"}
    told = replace(bare, conditions=conditions).summary
    assert told == "m, 20 steps of PNDMScheduler: 2.00 times as fast as the unchanged pipeline, FID -20.00."
    told = replace(bare, conditions=conditions | {"scheduler_name": "plms"}).summary
    assert "20 steps of plms:" in told
    own = replace(bare, conditions=conditions | {"scheduler_name": "plms"}, steps=7, scheduler="ddim")
    assert "7 steps of ddim:" in own.summary


def test_a_front_and_its_points_cannot_be_changed(front):
    for thing, name in ((front, "points"), (front, "conditions"), (front.points[0], "quality")):
        with pytest.raises(AttributeError):
            setattr(thing, name, None)


def test_points_are_compared_without_their_fronts_conditions(front):
    one = front.points[0]
    assert one == replace(one, conditions={}) and one != replace(one, quality=21)
    assert "conditions" not in repr(one) and one.conditions is front.conditions
    assert all(p.conditions is front.conditions for p in (front.baseline, *front.references.values()))
    bare = Front(front.points, front.baseline)
    assert bare.references == {} == bare.conditions and len(bare) == 3 and bare.rungs == 12


def test_non_dominated_is_what_no_other_point_beats():
    points = [point(q, t) for q, t in [(1, 10), (2, 10), (2, 20), (3, 30), (2.5, 40), (3, 30), (float("nan"), 5)]]
    assert [(p.quality, p.latency_ms) for p in non_dominated(points)] == [(2, 10), (3, 30)]


def edits():
    def at(*path, value):
        def edit(data):
            for key in path[:-1]:
                data = data[key]
            data[path[-1]] = value

        return edit

    def drop(*path):
        def edit(data):
            for key in path[:-1]:
                data = data[key]
            del data[path[-1]]

        return edit

    return [
        (at("version", value=2), "version 2 is not known here"),
        (at("version", value="1"), "version '1' is not known here"),
        (at("format", value="else"), '"format" must be'),
        (at("front", value=[]), "no points"),
        (at("front", value={}), '"front" must be a list'),
        (at("extra", value=1), 'unknown key "extra"'),
        (at("rungs", value=0), "rungs must be"),
        (at("pruning", "sx", value=0), "sx must be"),
        (at("pruning", value=[]), "pruning must be an object"),
        (at("conditions", value=[]), '"conditions" must be an object'),
        (at("conditions", "calls", value=4), "has a schedule of 3 calls, the search had 4"),
        (at("conditions", "steps", value="20"), "steps cannot be '20'"),
        (at("conditions", "prompts", value=5), "prompts cannot be 5"),
        (at("conditions", "batch_size", value=None), "batch_size cannot be None"),
        (at("front", 1, "quality", value=10**400), "quality must be a finite number"),
        (at("front", 1, "depths", value=[12, 1]), "ratios has 3 entries and depths has 2"),
        (at("front", 1, "depths", value=[12, 1, 13]), "point 1: schedule: depth 13 of call 2"),
        (at("front", 1, "depths", value=[1, 1, 1]), "first call must run the whole UNet"),
        (at("front", 1, "ratios", value=[0, 0, 1]), "ratio 1 of call 2"),
        (at("front", 1, "orders", value=[0, 0, 3]), "order 3 of call 2"),
        (at("front", 1, "latency_ms", value=0), "above 0"),
        (at("front", 1, "quality", value="good"), "quality must be a finite number"),
        (at("front", 1, "metrics", "psnr", value=None), "psnr must be a finite number"),
        (at("front", 1, value=7), "point 1 must be an object"),
        (at("front", 1, "extra", value=7), 'point 1: unknown key "extra"'),
        (at("references", value=[]), '"references" an object'),
        (drop("baseline"), 'front: front: "baseline" is missing'),
        (drop("conditions", "quality"), 'front: conditions: "quality" is missing'),
        (drop("conditions", "calls"), 'front: conditions: "calls" is missing'),
        (drop("front", 0, "orders"), 'front: point 0: "orders" is missing'),
        (drop("references", "N=2 d=1", "speedup"), "front: reference 'N=2 d=1': \"speedup\" is missing"),
        (at("baseline", value=7), "front: baseline must be an object"),
        (at("references", "N=2 d=1", value=7), "front: reference 'N=2 d=1' must be an object"),
        (at("front", 1, "speedup", value=0), "above 0"),
        (at("front", 1, "speedup", value=True), "speedup must be a finite number"),
        (at("conditions", "steps", value=True), "steps cannot be True"),
    ]


def test_numbers_that_json_does_not_have(front, tmp_path):
    """Python reads and writes NaN and Infinity in JSON, which nobody else does."""
    nan, inf, path = float("nan"), float("inf"), tmp_path / "front.json"
    odd = {**front.conditions, "search": {"min_quality": nan, "list": [inf, 1.0]}}
    stock = replace(front.baseline, metrics={"psnr": 100.0, "fid": nan})
    Front(front.points, stock, front.references, odd).save(path)
    data = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert data["conditions"]["search"] == {"min_quality": None, "list": [None, 1.0]}
    assert data["baseline"]["metrics"] == {"psnr": 100.0}
    assert load_front(path).baseline == front.baseline

    # What somebody else wrote.
    path.write_text(json.dumps(data | {"conditions": odd}))
    again = load_front(path)
    assert again.conditions["search"] == data["conditions"]["search"]
    write_page([Run.load(path)], tmp_path / "page.html")
    again.save(path)
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == data
    path.write_text(json.dumps(data | {"conditions": {**odd, "guidance_scale": nan}}))
    with pytest.raises(DatoError, match="guidance_scale cannot be nan"):
        load_front(path)
    for key, value in [("quality", nan), ("latency_ms", inf), ("speedup", -inf)]:
        data["front"][0][key] = value
        path.write_text(json.dumps(data))
        with pytest.raises(DatoError, match=f"front.json: front: point 0: {key} must be a finite number"):
            load_front(path)
        data["front"][0][key] = 1.0
        broken = Front((replace(front.points[0], **{key: value}),), front.baseline, {}, front.conditions)
        with pytest.raises(DatoError, match=f"front: point 0: {key} must be a finite number, not {value}"):
            broken.save(tmp_path / "broken.json")
        assert not (tmp_path / "broken.json").exists()


@pytest.mark.parametrize(("edit", "message"), edits())
def test_a_front_with_a_fault_is_refused_in_one_line_that_names_file_and_fault(front, tmp_path, edit, message):
    data = json.loads(json.dumps(front.to_dict()))
    edit(data)
    path = tmp_path / "front.json"
    path.write_text(json.dumps(data))
    with pytest.raises(DatoError) as caught:
        load_front(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_front_is_refused(front, tmp_path):
    for text, message in [("{", "not JSON"), ("[1]", "neither a front nor a schedule"), ("", "not JSON")]:
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(DatoError, match=message):
            load_front(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatoError, match="not a text file"):
        load_front(tmp_path / "x.json")
    with pytest.raises(DatoError, match="no file and no shipped strategy"):
        load_front(tmp_path / "missing.json")
    with pytest.raises(DatoError, match=r"a folder without pareto\.json"):
        load_front(tmp_path)
    front.save(tmp_path / "pareto.json")  # a run's folder stands for its front
    assert load_front(tmp_path).points == front.points
    (tmp_path / "s.json").write_text(Schedule.full(3).to_json())
    with pytest.raises(DatoError, match="one schedule, not a front"):
        load_front(tmp_path / "s.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(DatoError, match="cannot write"):
        front.save(tmp_path / "file" / "pareto.json")


def test_every_shipped_strategy_loads_by_name_and_patches_its_model(pipe):
    shipped = strategies()
    assert {"emoji-sd-depth", "emoji-sd-plms20-ratio", "dato-published", "sd15-uniform-n3-d1"} <= set(shipped)
    for name in shipped:
        loaded = load_strategy(name)
        dato.apply_patch(pipe, name)
        if isinstance(loaded, PlainSchedule):
            assert dato.current_schedule(pipe) == loaded
        else:
            assert dato.current_schedule(pipe) == loaded.knee().schedule
            assert loaded.conditions["model"] == "emoji-sd"


def test_shipped_strategies_are_beside_the_package_and_in_a_wheel_inside_it(tmp_path, monkeypatch):
    package = tmp_path / "dato"
    monkeypatch.setattr("dato.strategies.__file__", str(package / "strategies.py"))
    assert strategies() == {}
    for folder in (tmp_path / "strategies", package / "shipped_strategies"):
        folder.mkdir(parents=True)
        (folder / "one.json").write_text("{}")
        (folder / "notes.txt").write_text("")
        assert strategies() == {"one": folder / "one.json"}


def test_shipped_fronts_are_what_they_are_called():
    assert load_front("emoji-sd-depth").conditions["search"]["kind"] == "depth"
    assert load_front("emoji-sd-plms20-ratio").conditions["search"]["kind"] == "ratio"


def test_the_published_vector_is_the_authors():
    """DaTo's own: the first call whole, then 50 entries in which 2 and above stand for the whole UNet."""
    theirs = "0 1 1 1 1 1 11 1 1 1 1 1 1 1 0 0 11 1 1 1 0 11 1 0 1 1 1 1 1 11 0 0 1 1 1 1 1 1 1 1 11 1 1 1 1 1 1 1 1 1"
    schedule = load_strategy("dato-published")
    assert schedule.depths == (12, *(12 if d >= 2 else d for d in map(int, theirs.split())))
    assert (schedule.depths.count(12), schedule.depths.count(1), schedule.depths.count(0)) == (6, 38, 7)


def test_what_is_slower_than_stock_or_not_good_enough_does_not_compete():
    points = [point(20, 20), point(30, 15), point(60, 99), point(70, 101), point(10, 10)]
    kept = competing(points, None)
    assert [(p.quality, p.latency_ms) for p in kept] == [(10, 10), (30, 15), (60, 99)]
    assert [p.quality for p in competing(points, 50.0)] == [60]
    assert [p.quality for p in competing(points, 65.0)] == [70]  # nothing better, and too slow
    assert [p.quality for p in competing(points[:2], 65.0)] == [30]
    assert [p.quality for p in competing(points, 60.0)] == [60]  # the floor itself is good enough
    level = point(80, 100)  # as fast as stock, so not faster
    assert [p.quality for p in competing([point(20, 20), level], None)] == [20]
    assert competing([level], None) == (level,) and competing([], 50.0) == ()


def test_of_points_that_are_equally_fast_the_best_one_stays():
    points = [point(10, 50), point(20, 50.2), point(30, 50.4), point(40, 60), point(50, 60.1)]
    # The first is 0.8% faster than the third one, so it stays.
    assert [p.quality for p in without_equals(competing(points, None))] == [10, 30, 50]
