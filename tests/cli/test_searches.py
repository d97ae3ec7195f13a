"""Searches from the command line: stopped, killed, with a distance as the objective, of depths and ratios together."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PROMPTS, ROOT, SMALL_DEPTHS, call

from dato import load_front
from dato.evaluation.baselines import fewer_steps
from dato.evaluation.evaluator import Evaluator
from dato.prediction.latency_table import LatencyTable
from dato.schedule import Schedule
from dato.search import search_depth
from dato.search.journal import read_entries

pytestmark = pytest.mark.usefixtures("one_round_of_measuring")


def test_a_distance_is_given_as_the_field_writes_it(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    options = ("--steps", 3, "--latency", "measured", "--quality", "frechet", "--min-quality", 1e6)
    code, printed, errors = run("search/search_depth.py", *SMALL_DEPTHS, *options, "--out", "runs/frechet")
    assert code == 0 and "warning" not in errors and "frechet" in printed
    front = load_front("runs/frechet/pareto.json")
    assert all(p.quality < 0 and p.metrics["frechet"] == p.quality for p in front.points)
    assert front.conditions["search"]["min_quality"] == 1e6
    worst = -min(p.quality for p in front.points)
    code, _, errors = run(
        "scripts/generate.py",
        "--strategy",
        "runs/frechet/pareto.json",
        "--pick",
        f"quality={worst + 1}",
        "--repeats",
        1,
        "owl",
    )
    assert code == 0, errors


def test_a_stopped_search_writes_the_front_so_far_and_is_gone_on_with(run, folder, monkeypatch):
    import dato.search.course as command

    monkeypatch.chdir(folder)
    plain, judge, judged = command.search, Evaluator.judge, []

    def stopped(*arguments, **options):
        for number, point in enumerate(plain(*arguments, **options)):
            if number == 2:
                signal.raise_signal(signal.SIGINT)
            yield point

    def counted(self, schedule, *rivals):
        judged.append(schedule)
        return judge(self, schedule, *rivals)

    monkeypatch.setattr(Evaluator, "judge", counted)
    monkeypatch.setattr(command, "search", stopped)
    code, printed, errors = run("search/search_depth.py", *SMALL_DEPTHS, "--steps", 3, "--out", "runs/cut")
    assert code == 130 and printed == "" and "runs/cut/pareto.json is the front so far" in " ".join(errors.split())
    assert "python search/search_depth.py --resume runs/cut" in " ".join(errors.split())
    early = load_front("runs/cut/pareto.json")
    assert early.conditions["search"]["finished"] is False and len(judged) == len(set(judged))
    monkeypatch.setattr(command, "search", plain)
    # Its options come from the journal; what it holds is not judged again.
    code, _, errors = run("search/search_depth.py", "--resume", "runs/cut")
    assert code == 0 and "Going on with runs/cut" in errors
    front = load_front("runs/cut/pareto.json")
    search = front.conditions["search"]
    assert search["finished"] is True and search["candidates"] == len(judged) == len(set(judged))
    assert search["rounds"] == 1 and len(front.conditions["prompts"]) == 2 and front.conditions["steps"] == 3
    # Asked once more it answers from the journal alone, to the last digit.
    whole = Path("runs/cut/pareto.json").read_text()
    code, printed, errors = run("search/search_depth.py", "--resume", "runs/cut", "--quiet")
    assert code == 0 and printed.strip() == "runs/cut/pareto.json" and errors == ""
    assert Path("runs/cut/pareto.json").read_text() == whole and len(judged) == search["candidates"]

    for options, message in [
        (("--resume", "runs/cut", "--seed", 1), "search.seed: 0 there, 1 here"),
        (("--resume", "runs/cut", "--out", "elsewhere"), "leave out --out"),
        (("--resume", "runs/nowhere"), "cannot read runs/nowhere/journal.jsonl"),
    ]:
        code, _, errors = run("search/search_depth.py", *options)
        assert code == 2 and message in errors and "Traceback" not in errors
    code, _, errors = run("search/search_joint.py", "--resume", "runs/cut")
    assert code == 2 and "a search of depth" in errors
    (folder / "runs" / "cut" / "pareto.json").unlink()
    code, _, errors = run("search/search_depth.py", *SMALL_DEPTHS, "--out", "runs/cut")
    assert code == 2 and "go on with --resume runs/cut" in errors


def test_against_a_reference_of_fewer_steps_than_some_candidates(run, folder, monkeypatch):
    """As `--reference-steps 25 --steps 50`: stock, speed-ups and plain steps are those of the reference."""
    monkeypatch.chdir(folder)
    options = ("--steps", 8, "--reference-steps", 4, "--latency", "table", "--rounds", 0, "--orders", 0)
    code, printed, errors = run("search/search_depth.py", *SMALL_DEPTHS, *options, "--out", "runs/reference")
    assert code == 0, errors
    front = load_front("runs/reference/pareto.json")
    assert front.conditions["steps"] == front.conditions["calls"] == front.baseline.steps == 4
    assert front.baseline.speedup == 1 and front.baseline.quality == 100 and len(front.baseline.schedule) == 4
    # Longer candidates are judged, and plain steps only below the reference.
    judged = [entry["judged"] for entry in read_entries("runs/reference/journal.jsonl")[0] if "judged" in entry]
    assert {len(judgement["depths"]) for judgement in judged} == {2, 4, 8}
    assert {p.steps for name, p in front.references.items() if name.endswith(" steps")} == {2}
    assert front.references["N=2 d=1"].schedule.depths == (12, 1, 12, 1)
    for point in [*front.points, *front.references.values()]:
        assert point.speedup == pytest.approx(front.baseline.latency_ms / point.latency_ms)
        assert point.steps == len(point.schedule)
    assert 4 / 3 < front.references["2 steps"].speedup < 2 and all(point.speedup > 1 for point in front.points)
    assert all(front.plain_steps(point).steps <= 4 for point in front.points) and "plain steps" in printed


def test_reference_steps_25_of_lengths_up_to_50(make_pipe, tmp_path):
    """The usual numbers, with a tiny UNet."""
    options = {"steps": [20, 50], "reference_steps": 25, "depths": [0, 1], "orders": [0], "guidance_scale": 1.0}
    budget = {"preset": "quick", "pop_size": 4, "generations": 2, "rounds": 0, "latency": "table", "batch_size": 1}
    front = search_depth(
        make_pipe(), PROMPTS[:1], out=tmp_path / "run", progress=False, scheduler="dpm++2m", **options, **budget
    )
    assert front.conditions["steps"] == front.baseline.steps == len(front.baseline.schedule) == 25
    assert front.conditions["search"]["steps"] == [20, 50] and front.baseline.speedup == 1
    # Stock with fewer steps: shares of 25, and what is searched below it. Regular schedules have 25 calls.
    plain = {name: point.steps for name, point in front.references.items() if name.endswith(" steps")}
    assert plain == {f"{steps} steps": steps for steps in (*fewer_steps(25), 20)} and max(plain.values()) == 20
    assert {len(p.schedule) for name, p in front.references.items() if name not in plain} == {25}
    fastest = front.references["2 steps"]
    assert fastest.speedup == pytest.approx(front.baseline.latency_ms / fastest.latency_ms)
    assert 1 < front.references["20 steps"].speedup <= 25 / 20 < fastest.speedup <= 25 / 2
    assert load_front(tmp_path / "run" / "pareto.json").references.keys() == front.references.keys()


@pytest.mark.thorough
def test_a_killed_search_goes_on_where_it_was(folder):
    """The script itself, killed as by the system: the others of the twenty kills are in test_study, without images."""
    arguments = [sys.executable, str(ROOT / "search" / "search_depth.py"), *map(str, SMALL_DEPTHS), "--steps", "4"]
    journal = folder / "runs" / "killed" / "journal.jsonl"
    search = subprocess.Popen(
        [*arguments, "--out", str(journal.parent)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
    )
    while search.poll() is None and (not journal.exists() or journal.read_bytes().count(b'"judged"') < 3):
        time.sleep(0.01)
    search.kill()
    assert search.wait() == -signal.SIGKILL
    before, _ = read_entries(journal)
    resumed = [*arguments[:2], "--resume", str(journal.parent), "--json"]
    done = subprocess.run(resumed, capture_output=True, text=True, cwd=folder, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert read_entries(journal)[0][: len(before)] == before
    front = load_front(journal.parent / "pareto.json")
    assert events[-1]["event"] == "front" and len(events[-1]["points"]) == len(front)
    assert front.conditions["search"]["finished"]


def test_depths_and_ratios_searched_together(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    options = ("--steps", 4, "--ratios", "0.5", "--orders", 0, "--out", "runs/joint")
    code, _, errors = run(
        "search/search_joint.py", *SMALL_DEPTHS, "--images", 1, "--rounds", 0, "--pop-size", 8, *options
    )
    assert code == 0, errors
    front = load_front("runs/joint/pareto.json")
    assert front.conditions["search"]["ratios"] == [0, 0.5] and front.conditions["search"]["kind"] == "joint"
    judged = [e["judged"] for e in read_entries("runs/joint/journal.jsonl")[0] if "judged" in e]
    assert any(any(j["ratios"]) and not all(j["ratios"]) for j in judged)
    assert {r for j in judged for r in j["ratios"]} == {0, 0.5}
    assert front.points[0].schedule.pruning.recover_from == "past"


def test_a_plan_is_written_as_a_front_of_one_point(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    options = ("--speedup", 2, "--steps", 8, "--guidance-scale", 1, "--out", "plan.json")
    code, printed, errors = call(monkeypatch, capsys, "plan", *options)
    assert code == 0, errors
    front = load_front("plan.json")
    (point,), table = front.points, LatencyTable.from_dict(front.conditions["latency_table"])
    assert f"{point.speedup:.2f} times as fast as stock" in printed and "dato generate --strategy plan.json" in printed
    # How fast a plan is depends on the times that were measured, and they differ from run to run.
    assert len(point.schedule) == 8 and point.metrics["table_ms"] == pytest.approx(table.predict(point.schedule))
    assert table.predict(Schedule.full(8)) >= 2 * table.predict(point.schedule)
    for wrong, message in [(("--speedup", 1), "--speedup 1: it must be above 1"), (("--model", "x"), "give --prompts")]:
        code, _, errors = call(monkeypatch, capsys, "plan", *wrong)
        assert code == 2 and message in " ".join(errors.split()) and "Traceback" not in errors
