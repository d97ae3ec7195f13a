"""`dato export`: one schedule of a front as a file that the schema takes; and what is refused."""

import json
import os
from dataclasses import replace

import jsonschema
import pytest
from conftest import FRONT_FILE, call

import dato
from dato import DatoError, Point, Schedule
from dato.strategies import load_strategy

LINE = "The quality was measured with the point's own forecasts. With order {} it will differ."


@pytest.fixture
def export(monkeypatch, capsys, tmp_path):
    """Run the command in a folder of its own: (exit code, lines of standard output, lines of standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code, printed, errors = call(monkeypatch, capsys, "export", *arguments)
        return code, printed.splitlines(), [line for line in errors.splitlines() if line.strip()]

    return run


def written(path):
    data = json.loads(path.read_text("utf-8"))
    jsonschema.Draft202012Validator(dato.schedule_schema()).validate(data)
    return data


def test_a_point_for_readers_that_cannot_forecast(export, tmp_path):
    code, printed, errors = export(FRONT_FILE, "--pick", "speedup=3", "--order", 0, "--out", "deep/few-steps.json")
    point = dato.load_front(FRONT_FILE).pick(speedup=3)
    assert code == 0 and errors == [] and 1 in point.schedule.orders and point.schedule.forecast == "aligned"
    summary = "emoji-sd, 50 steps of dpm++2m: 3.10 times as fast as the unchanged pipeline, PSNR (dB) 63.87."
    assert printed == [summary, LINE.format(0), "written to deep/few-steps.json"]
    data = written(tmp_path / "deep" / "few-steps.json")
    assert data["depths"] == list(point.schedule.depths) and data["ratios"] == list(point.schedule.ratios)
    assert data["orders"] == [0] * 50 and "forecast" not in data and data["name"] == "few-steps"
    assert data["source"].startswith(summary) and data["source"].endswith("no order is above 0, so quality differs.")
    assert load_strategy(tmp_path / "deep" / "few-steps.json").depths == point.schedule.depths
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["few-steps.json"]


def test_a_point_for_readers_that_know_the_line(export, tmp_path):
    code, printed, _ = export(FRONT_FILE, "--pick", "speedup=3", "--order", 1)
    assert code == 0 and LINE.format(1) in printed  # the point is aligned
    data = written(tmp_path / "schedule.json")
    assert set(data["orders"]) == {1} and "forecast" not in data


@pytest.mark.parametrize("name", ["emoji-sd-depth", "emoji-sd-plms20-ratio"])
def test_a_point_as_it_is(export, tmp_path, name):
    knee = dato.load_front(name).knee()
    for _ in range(2):  # a schedule that is there is replaced
        code, printed, _ = export(name)
        assert code == 0 and printed == [knee.summary, "written to schedule.json"]
    assert load_strategy(tmp_path / "schedule.json") == knee.schedule
    assert written(tmp_path / "schedule.json")["source"] == knee.summary


def test_nothing_is_said_where_order_0_changes_nothing(export, tmp_path):
    code, printed, _ = export("emoji-sd-plms20-depth", "--pick", "quality=40", "--order", 0)
    point = dato.load_front("emoji-sd-plms20-depth").pick(quality=40)
    assert code == 0 and printed == [point.summary, "written to schedule.json"]
    assert load_strategy(tmp_path / "schedule.json") == point.schedule


def test_bad_input_is_one_line_and_exit_code_2(export, tmp_path, monkeypatch):
    front, folder, text = tmp_path / "pareto.json", tmp_path / "folder", tmp_path / "text"
    dato.load_front("emoji-sd-plms20-depth").save(front)
    folder.mkdir()
    text.write_text("notes")
    (tmp_path / "broken.json").write_text(front.read_text().replace('"version": 1', '"version": 2'))
    kept = front.read_bytes()
    for arguments, message in [
        (("nothing",), "no file and no shipped strategy 'nothing'"),
        (("folder",), "folder is a folder without pareto.json"),
        (("text",), "text is not JSON"),
        (("broken.json",), "broken.json: dato.front: version 2 is not known here"),
        (("dato-published",), "dato-published is one schedule, not a front"),
        (("pareto.json", "--pick", "best"), "--pick 'best': give knee, speedup=NUMBER or quality=NUMBER"),
        (("pareto.json", "--pick", "speedup=100"), "100 times as fast as stock; the fastest is 7.21x"),
        (("pareto.json", "--out", "pareto.json"), "pareto.json exists and is not a schedule, so it is kept"),
        (("pareto.json", "--out", "text"), "text exists and is not a schedule, so it is kept; give another --out"),
        (("pareto.json", "--out", "folder"), "folder exists and is not a schedule"),
        (("pareto.json", "--out", "text/schedule.json"), "cannot write text/schedule.json"),
    ]:
        code, printed, errors = export(*arguments)
        assert code == 2 and printed == [] and len(errors) == 1, errors
        assert errors[0].startswith("error: ") and message in errors[0]
    assert front.read_bytes() == kept and text.read_text() == "notes" and not list(folder.iterdir())
    code, _, _ = export("pareto.json", "--order", 2)
    assert code == 2 and not (tmp_path / "schedule.json").exists()


def test_a_schedule_that_is_read_only_is_kept(export, tmp_path, monkeypatch):
    path = tmp_path / "schedule.json"
    path.write_text(Schedule.full(3).to_json())
    path.chmod(0o444)
    monkeypatch.setattr("os.access", lambda path, mode, **_: mode != os.W_OK)  # root may write everything
    code, printed, errors = export("emoji-sd-depth")
    assert code == 2 and printed == []
    assert errors == ["error: cannot write schedule.json: it is read-only; give another --out"]
    assert load_strategy(path) == Schedule.full(3)


def test_in_python(tmp_path):
    schedule = Schedule([9, 1, 0], [0, 0.5, 0], [1, 2, 1], 9, dato.Pruning(sx=4), "chebyshev")
    conditions = {"calls": 3, "quality": "fid", "model": "/home/me/models/mine", "steps": 3, "scheduler": "MyScheduler"}
    point = Point(schedule, -12.5, 50.0, 2.0, conditions=conditions)
    assert point.summary == (
        "mine, 3 steps of MyScheduler: 2.00 times as fast as the unchanged pipeline, FID 12.50."
    )  # no path, and a distance is positive
    assert point.export(tmp_path / "as-it-is.json") == schedule == load_strategy(tmp_path / "as-it-is.json")
    for order in (0, 1, 2):
        lower = point.export(tmp_path / "lower.json", order=order)
        assert lower == load_strategy(tmp_path / "lower.json") == schedule.with_order_at_most(order)
        assert lower.orders == tuple(min(o, order) for o in (1, 2, 1)) and lower.forecast == "polynomial"
        assert replace(lower, orders=0) == replace(schedule, orders=0)
        assert "measured with other forecasts" in written(tmp_path / "lower.json")["source"]
    for order in (3, -1, True, 0.5):
        with pytest.raises(DatoError, match=r"`order` must be 0, 1 or 2, not"):
            point.export(tmp_path / "none.json", order=order)
    with pytest.raises(DatoError, match="cannot write"):
        point.export(tmp_path)
    assert not (tmp_path / "none.json").exists()
    alone = Point(Schedule([12, 1]), 1.0, 1.0, 1.0)
    assert alone.summary.startswith("An unknown model, an unknown number of steps of an unknown sampler: 1.00 times")
