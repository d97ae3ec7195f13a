"""Journals and studies: after any kind of kill, all judgements are there, and the search continues as if not killed."""

import json
import os
import random
import signal
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dato import DatoError, Point, Pruning, Schedule
from dato.evaluation.judgement import Judgement, failed
from dato.evaluation.pool import Facts
from dato.evaluation.racing import Rival, expected_if_beaten, rival_for, rivals_of
from dato.evaluation.stock import Stock
from dato.point import non_dominated
from dato.search.journal import Journal, read_entries
from dato.search.nsga2 import search
from dato.search.presets import DEPTH_PRESETS
from dato.search.run_folder import Folder
from dato.search.spaces import DepthSpace
from dato.search.study import Study

SPACE = DepthSpace([13], 12, [0, 1])
PRESET = replace(DEPTH_PRESETS["quick"], pop_size=8, generations=5)


class ToyJudges:
    """Quality falls with the age of the cache. Counts what it is asked; candidates of 3 whole calls have failed."""

    facts = Facts(12, 13, {12: 13}, "Toy", None, (8, 8), (1,), "a toy")
    table = None

    def __init__(self, pause=0.0, images=4):
        self.asked, self.pause, self.images = [], pause, images
        self.rivals = {}
        point = Point(Schedule.full(13), 100.0, 130.0, 1.0, {"measured_ms": 130.0})
        self.stock = Stock(point, torch.zeros(images, 3, 2, 2), b"stock")

    def judge(self, schedules, rivals=()):
        # The last asked for is ready first, as it may be with several workers.
        for schedule in reversed(schedules):
            time.sleep(self.pause)
            self.asked.append(schedule)
            self.rivals[schedule] = rivals
            if schedule.depths.count(12) == 3:
                yield failed(schedule, "out of memory", 2)
                continue
            age, loss = 0, 0.0
            for depth in schedule.depths:
                age = 0 if depth == 12 else age + 1
                loss += age / (1 + depth)
            cost = float(sum(1 + d for d in schedule.depths))
            own = tuple(-loss + i / 3 for i in range(self.images))
            metrics = {"psnr": sum(own) / len(own), "measured_ms": cost}
            yield Judgement(Point(schedule, metrics["psnr"], cost, 130 / cost, metrics), own, 4, sample=b"picture")

    def close(self):
        pass


def begun(folder, judges, seed=0, **search):
    study = Study(Folder(folder), judges)
    try:
        study.begin("depth", {"seed": seed}, {"model": "toy", "search": {"seed": seed, **search}}, Pruning())
    except DatoError:
        study.close()
        raise
    return study


def run(folder, judges, seed=0):
    """A whole search over the journal of a folder: (points in their order, the study, closed)."""
    study = begun(folder, judges, seed)
    points = list(search(SPACE, lambda asked: study(asked, race=True), PRESET, seed=seed))
    study.close()
    return points, study


def test_a_journal_gives_back_what_was_appended_and_drops_a_torn_line(tmp_path):
    path = tmp_path / "run" / "journal.jsonl"
    journal = Journal(path)
    values = [{"a": 1.5}, ["ü", None], {"text": "two\nlines"}]
    for value in values:
        journal.append(value)
    assert read_entries(path)[0] == values  # on the disk already
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"torn": [1, 2')
    again = Journal(path)
    assert again.torn and again.entries == values
    again.append("more")
    again.close()
    last = Journal(path)
    assert not last.torn and last.entries == [*values, "more"]
    last.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9)), max_size=6), st.data())
def test_a_journal_cut_anywhere_keeps_its_whole_lines(tmp_path_factory, values, data):
    path = tmp_path_factory.mktemp("cut") / "journal.jsonl"
    journal = Journal(path)
    for value in values:
        journal.append(value)
    journal.close()
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    again = Journal(path)
    assert again.entries == values[: whole[:cut].count(b"\n")]
    again.close()


def test_a_journal_has_one_writer_and_its_damage_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    with pytest.raises(DatoError, match="another process writes"):
        Journal(path)
    journal.append(1)
    journal.close()
    path.write_bytes(b"1\nnonsense\n2\n")
    with pytest.raises(DatoError, match="line 2 is damaged"):
        Journal(path)
    with pytest.raises(DatoError, match="cannot write"):
        Journal(path / "below" / "journal.jsonl")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"kept": 1})
    with journal._file:
        pass
    journal._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(DatoError, match=r"cannot write .*No space left on device; .*resume the search in"):
        journal.append({"lost": 2})
    again = Journal(tmp_path / "journal.jsonl")
    assert again.entries == [{"kept": 1}]
    again.close()


def test_a_finished_search_asked_again_judges_nothing(tmp_path):
    judges = ToyJudges()
    points, study = run(tmp_path, judges)
    assert len(judges.asked) == len(set(judges.asked)) == len(study.judged) > 20
    assert any(judgement.failure for judgement in study.judged.values())
    again = ToyJudges()
    same, replayed = run(tmp_path, again)
    assert same == points and again.asked == []
    # Whole, with what was seen of each image, failures too; of pictures only that they are there.
    assert [replace(j, sample=None) for j in study.judged.values()] == list(replayed.judged.values())
    assert Folder(tmp_path).sample(points[0].schedule).read_bytes() == b"picture"
    elsewhere, _ = run(tmp_path / "other", ToyJudges())
    assert elsewhere == points


def test_a_failed_candidate_is_never_on_the_front_and_the_search_goes_on(tmp_path):
    points, study = run(tmp_path, ToyJudges())
    bad = {s for s, j in study.judged.items() if j.failure == "out of memory"}
    assert bad and not bad & {p.schedule for p in non_dominated(points)}
    assert len(points) > PRESET.pop_size * 3


@pytest.mark.parametrize("cut", [1, 2, 3, 9, 20])
def test_what_was_not_reached_is_judged_and_nothing_else(tmp_path, cut):
    whole = ToyJudges()
    points, study = run(tmp_path / "whole", whole)
    lines = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "journal.jsonl").write_bytes(b"".join(lines[:cut]) + lines[cut][:-7])
    judges = ToyJudges()
    again, resumed = run(tmp_path / "cut", judges)
    assert again == points and resumed.torn
    # They race against whom they would have raced, though the journal knows more of their own generation already.
    assert judges.rivals.items() <= whole.rivals.items() and any(whole.rivals.values())
    known = sum(b'"judged"' in line or b'"failed"' in line for line in lines[:cut])
    assert resumed.replayed == known and len(judges.asked) == len(study.judged) - known


def test_twenty_kills_leave_a_whole_journal_and_the_same_front(tmp_path):
    points, _ = run(tmp_path / "whole", ToyJudges())
    chance, kills, kept, folder = random.Random(0), 0, 0, tmp_path / "killed"
    while kills < 20 or not kept:  # the last kill leaves a journal to go on with
        child = os.fork()
        if child == 0:
            try:
                run(folder, ToyJudges(pause=0.02))
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status):  # it had come to its end: begin anew
            (folder / "journal.jsonl").unlink()
            kept = 0
        elif (folder / "journal.jsonl").exists():
            entries, whole = read_entries(folder / "journal.jsonl")
            text = (folder / "journal.jsonl").read_bytes()
            assert text[:whole].count(b"\n") == len(entries) and b"\n" not in text[whole:]
            kept = sum("judged" in entry for entry in entries)
    judges = ToyJudges()
    again, study = run(folder, judges)
    assert again == points and len(judges.asked) == len(study.judged) - study.replayed
    assert study.replayed > 0


def test_a_full_disk_at_a_sample_says_how_to_go_on_and_keeps_the_judgement(tmp_path, monkeypatch):
    def full(path, data):
        raise DatoError(f"cannot write {path}: No space left on device; choose another place with --out")

    study = begun(tmp_path, ToyJudges())
    assert study.stock
    monkeypatch.setattr("dato.search.study.write_atomic", full)
    with pytest.raises(DatoError, match="No space left on device; make room, then resume the search in"):
        list(study([Schedule.uniform(13, 2, 1)]))
    study.close()
    again = begun(tmp_path, ToyJudges())
    assert again.replayed == 1
    again.close()


def test_other_versions_of_libraries_are_named(tmp_path):
    begun(tmp_path, ToyJudges()).close()
    path = tmp_path / "journal.jsonl"
    header = json.loads(path.read_text())
    header["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(header) + "\n")
    study = begun(tmp_path, ToyJudges())
    assert list(study.other_versions) == ["torch"] and study.other_versions["torch"].startswith("1.0 there, ")
    study.close()


def test_a_journal_of_other_settings_is_refused_by_name(tmp_path):
    run(tmp_path, ToyJudges())
    with pytest.raises(DatoError, match=r"other settings \(search.seed: 0 there, 1 here\)"):
        begun(tmp_path, ToyJudges(), seed=1)
    with pytest.raises(DatoError, match=r"search.pop_size: none there, 9 here"):
        begun(tmp_path, ToyJudges(), pop_size=9)
    study = Study(Folder(tmp_path), ToyJudges())
    with pytest.raises(DatoError, match=r"command: depth there, ratio here; .*pruning.score: sito there, dato here"):
        study.begin("ratio", {}, {"model": "toy", "search": {"seed": 0}}, Pruning(score="dato"))
    study.close()
    (tmp_path / "journal.jsonl").write_text('{"format": "other"}\n')
    with pytest.raises(DatoError, match="not a journal"):
        begun(tmp_path, ToyJudges())
    (tmp_path / "journal.jsonl").write_text('{"format": "dato.journal", "version": 99}\n')
    with pytest.raises(DatoError, match="version 99 is not known"):
        begun(tmp_path, ToyJudges())


def test_stock_comes_from_the_journal_and_is_made_again_where_its_images_are_lost(tmp_path):
    first = begun(tmp_path, ToyJudges())
    assert first.stock.point.latency_ms == 130
    first.close()
    other = ToyJudges()
    other.stock = replace(other.stock, point=replace(other.stock.point, latency_ms=1.0), sample=b"another")
    second = begun(tmp_path, other)
    assert second.stock.point.latency_ms == 130 and other.stock.sample == b"stock"
    second.close()
    Folder(tmp_path).stock.write_bytes(b"broken")
    third = begun(tmp_path, other)
    assert third.stock.images.shape == (4, 3, 2, 2) and third.stock.point.latency_ms == 130
    third.close()
    assert Folder(tmp_path).stock.read_bytes() != b"broken"


@pytest.mark.parametrize(
    "entry",
    [{"judged": {}}, {"judged": {"depths": [12]}, "per_image": []}, {"failed": {"depths": [1]}, "why": "x"}],
)
def test_an_entry_that_is_no_judgement_is_refused(entry):
    with pytest.raises(DatoError):
        Judgement.from_dict(entry, 12, Pruning())


def test_a_race_gives_up_who_is_surely_beaten_and_nobody_else():
    rival = Rival(10.0, (40.0, 30.0, 35.0, 45.0), spread=1.0)
    # What is easy or hard about a prompt is common to both: only differences count.
    assert expected_if_beaten((35.0, 25.0), rival) == pytest.approx(37.5 - 5)
    assert expected_if_beaten((40.0, 30.0), rival) is None
    assert expected_if_beaten((39.8, 29.9), rival) is None  # worse, but not surely
    assert expected_if_beaten((45.0, 35.0), rival) is None
    assert expected_if_beaten((36.0, 30.0), replace(rival, spread=9.0)) is None
    fast = Rival(5.0, (20.0, 20.0, 20.0, 20.0), spread=1.0)
    assert rival_for(7.0, [rival, fast]) is fast and rival_for(10.0, [rival, fast]) is rival
    assert rival_for(4.0, [rival, fast]) is None
    made = rivals_of([(10.0, (40.0, 30.0)), (5.0, (20.0, 16.0)), (20.0, (44.0, 40.0))])
    assert [r.latency_ms for r in made] == [5, 10, 20] and made[0].spread == pytest.approx(4.2426, abs=1e-4)
    assert rivals_of([(1.0, (2.0, 3.0))]) == () == rivals_of([(1.0, (2.0,)), (2.0, (3.0,))])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 5.0))
def test_a_race_is_rarely_wrong(seed, spread):
    chance = random.Random(seed)
    wrong = 0
    for _ in range(200):
        true = [chance.gauss(0, spread) for _ in range(8)]
        rival = Rival(1.0, tuple(30.0 for _ in true), spread)
        given_up = expected_if_beaten([30 - d for d in true[:2]], rival)
        wrong += given_up is not None and sum(true) <= 0
    assert wrong <= 20  # of equals, at most about one in twenty


class ToyValidation(ToyJudges):
    """Validates as it judges."""

    def ask(self, function, *arguments, **options):
        return self.stock

    def each(self, function, tasks):
        for _, schedule, rivals in tasks:
            (judgement,) = self.judge([schedule], rivals)
            yield None, judgement


def test_a_validation_that_is_resumed_has_the_same_rivals(tmp_path):
    finalists = [Schedule.uniform(13, interval, 0) for interval in (7, 13)]
    others = [Schedule.uniform(13, interval, 1) for interval in (2, 3, 4)]

    def validated():
        judges = ToyValidation()
        study = begun(tmp_path, judges)
        list(study.validate(finalists))
        found = [judgement.point.quality for judgement in study.validate(others, race=True)]
        assert all(map(study.is_validated, [*finalists, *others]))
        study.close()
        return found, judges

    whole, judges = validated()
    rivals = judges.rivals[others[0]]
    assert len(rivals) == 2 and all(judges.rivals[schedule] == rivals for schedule in others)
    journal = tmp_path / "journal.jsonl"
    kept = journal.read_text().splitlines(keepends=True)[:-2]  # the first of the others is known, and is no rival
    journal.write_text("".join(kept))
    again, judges = validated()
    assert again == whole and judges.asked == others[1:]
    assert all(judges.rivals[schedule] == rivals for schedule in others[1:])


def test_what_was_given_up_is_not_validated(tmp_path):
    judges = ToyValidation()
    study = begun(tmp_path, judges)
    half, whole, broken = Schedule.uniform(13, 2, 0), Schedule.uniform(13, 4, 0), Schedule.uniform(13, 5, 0)
    assert broken.depths.count(12) == 3
    original = judges.judge

    def given_up(schedules, rivals=()):
        for judgement in original(schedules, rivals):
            short = judgement.schedule == half
            yield replace(judgement, per_image=judgement.per_image[:2], images=2) if short else judgement

    judges.judge = given_up
    assert not study.is_validated(whole)
    list(study.validate([whole, half, broken]))
    assert [study.is_validated(schedule) for schedule in (whole, half, broken)] == [True, False, False]
    study.close()
