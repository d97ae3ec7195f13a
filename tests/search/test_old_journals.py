"""Journals that earlier versions of dato wrote are resumed as before."""

import json
import lzma
from pathlib import Path

from dato import load_front
from dato.evaluation.evaluator import Evaluator
from dato.search.journal import read_entries

# A search of depths with --images 2 --race 1 --steps 6,8,10 --generations 3 --pop-size 8, to its end.
DEPTH = Path(__file__).parent / "journals" / "depth-0.1.0.jsonl.xz"


def test_a_finished_search_of_depths_is_replayed_to_the_same_front(run, tmp_path, monkeypatch):
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(lzma.decompress(DEPTH.read_bytes()))
    entries, _ = read_entries(journal)
    judged = []
    monkeypatch.setattr(Evaluator, "judge", lambda self, schedule, *rest: judged.append(schedule))
    code, printed, errors = run("search/search_depth.py", "--resume", tmp_path, "--json")
    assert code == 0, errors
    events = [json.loads(line) for line in printed.splitlines()]
    known = sum("judged" in entry for entry in entries)
    # Another version of a library may be told before.
    assert any(f"{known} candidates are known" in event.get("text", "") for event in events[:2]) and not judged
    assert read_entries(journal)[0] == entries  # nothing was measured or judged again
    front = load_front(tmp_path)
    timed = {json.dumps(point) for point in entries[-1]["points"]}
    assert len(front) > 5 and {json.dumps(point.to_dict()) for point in front.points} <= timed
    assert front.baseline.latency_ms == entries[-1]["points"][0]["latency_ms"]
    assert front.conditions["search"]["candidates"] == known and front.conditions["search"]["race"] == 1
