"""Searches from the command line: stopped, killed, with a distance as the objective, of depths and ratios together."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SMALL_DEPTHS

from dato import load_front
from dato.evaluation.evaluator import Evaluator
from dato.search.journal import read_entries

pytestmark = pytest.mark.usefixtures("one_round_of_measuring")


def test_a_distance_is_given_as_the_field_writes_it(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    options = ("--steps", 3, "--quality", "frechet", "--min-quality", 1e6, "--out", "runs/frechet")
    code, printed, errors = run("search/search_depth.py", *SMALL_DEPTHS, *options)
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
    import dato.search.run as command

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
