"""What browser tabs get: each its own images, the last wish only, and lines and commands that give the same image."""

import io
import json
import math
import shlex
import threading
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
import torch
from conftest import FRONT_FILE, call
from demo_jobs import CHOICE, OTHER, STEPS, a_studio, counted_calls, image_of, job, sessions_of
from PIL import Image

from dato.demo.choices import choices_of, rule_choice
from dato.demo.job import Snapshot
from dato.demo.sessions import COMPARE, FRONT, RULE, seed_of
from dato.errors import DatoError
from dato.samplers import sampler_name, sampler_set
from dato.strategies import load_front, load_strategy


@pytest.fixture
def sessions(pipe):
    with a_studio(pipe) as studio:
        yield sessions_of(studio)


@pytest.fixture
def studio_calls(pipe):
    with counted_calls(pipe) as counted:
        yield counted


def pixels(file):
    return np.array(Image.open(file if not isinstance(file, bytes) else io.BytesIO(file)))


def results(sessions, session, *choices, **asked):
    done = list(sessions.generate(session, job(*choices, **asked)))[-1]
    assert done.over and not done.error
    return done


def test_the_lines_and_the_command_give_the_same_image(sessions, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for choice in (sessions.choices[3], rule_choice(2)):
        task = job(choice, seed=5)
        done = list(sessions.generate("one", task))[-1]
        use = sessions.use(task, done.results[0], done)
        space = {}
        exec(use.python, space)
        assert (np.array(space["image"]) == pixels(use.file)).all()
        words = shlex.split(use.command)
        assert words[0] == "dato"
        code, _, errors = call(monkeypatch, capsys, *words[1:], "--repeats", 1, "--out", "images")
        assert code == 0, errors
        stem = "images/rose-on-a-white-background-5"
        assert (pixels(f"{stem}.png") == pixels(use.file)).all()
        stock = np.round(done.stock.image.permute(1, 2, 0).numpy() * 255)
        assert (pixels(f"{stem}-stock.png") == stock).all()


def test_the_png_says_how_it_was_made(sessions):
    task = job(sessions.choices[3], seed=5)
    done = list(sessions.generate("one", task))[-1]
    use = sessions.use(task, done.results[0], done)
    said = json.loads(Image.open(io.BytesIO(use.file)).text["dato"])
    assert said["prompt"] == task.prompt and said["seed"] == 5 and said["model"] == "emoji-sd"
    assert said["steps"] == 4 and said["sampler"] == "dpm++2m" and said["guidance_scale"] == 3
    assert said["schedule"]["depths"] == list(done.results[0].schedule.depths)
    assert said["psnr"] == done.results[0].psnr
    assert said["speedup"] == pytest.approx(done.stock.latency_ms / done.results[0].shot.latency_ms)
    assert "/" not in said["options"][1]  # the front's folder stays on this machine
    assert use.name == f"rose-on-a-white-background-5-{task.choices[0].name}.png"


def test_two_tabs_at_once_get_their_own_images(sessions, pipe):
    got = {}
    tabs = [("one", CHOICE, 1), ("two", OTHER, 2)]

    def ask(tab, choice, seed):
        got[tab] = results(sessions, tab, choice, seed=seed)

    threads = [threading.Thread(target=ask, args=tab) for tab in tabs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for tab, choice, seed in tabs:
        assert torch.equal(got[tab].results[0].shot.image, image_of(pipe, choice.source, seed=seed))
        assert torch.equal(got[tab].stock.image, image_of(pipe, seed=seed))


def test_a_later_job_replaces_an_earlier_one_of_the_same_tab_only(sessions, pipe):
    begun, go = threading.Event(), threading.Event()

    def wait(*_):
        begun.set()
        go.wait(60)

    handle = pipe.unet.register_forward_pre_hook(wait)
    earlier, elsewhere = [], []
    first = threading.Thread(target=lambda: earlier.extend(sessions.generate("one", job(seed=1))))
    other = threading.Thread(target=lambda: elsewhere.extend(sessions.generate("two", job(seed=2))))
    first.start()
    begun.wait(60)
    other.start()
    threading.Timer(0.5, go.set).start()
    later = results(sessions, "one", OTHER, seed=3)
    first.join()
    other.join()
    handle.remove()
    assert not any(snapshot.over for snapshot in earlier)
    assert torch.equal(elsewhere[-1].results[0].shot.image, image_of(pipe, CHOICE.source, seed=2))
    assert torch.equal(later.results[0].shot.image, image_of(pipe, OTHER.source, seed=3))


def test_stop_concerns_one_tab(sessions, pipe):
    begun = threading.Event()
    handle = pipe.unet.register_forward_pre_hook(lambda *_: begun.set())
    seen = []
    for snapshot in sessions.generate("one", job()):
        seen.append(snapshot)
        if begun.wait(60):
            sessions.stop("two")
            sessions.stop("one")
    handle.remove()
    assert seen[-1].stopped
    assert results(sessions, "one").stock is not None


def test_who_leaves_stops_his_job_and_nothing_is_kept(sessions, studio_calls):
    """Gradio closes the generator of a tab that is gone."""
    watching = sessions.generate("one", job())
    next(watching)
    watching.close()
    assert not sessions._runs and not sessions._wanted
    assert results(sessions, "two", seed=1).stock is not None
    assert len(studio_calls) < 4 * STEPS


def test_what_is_chosen_on_each_tab(sessions):
    assert sessions.choose(FRONT, 0, 2.5, ()) == (sessions.choices[0],)
    assert sessions.choose(FRONT, 99, 2.5, ()) == (sessions.choices[-1],)
    assert sessions.choose(RULE, 0, 2.5, ())[0].source == 2.5
    names = [sessions.choices[1].name, sessions.choices[1].name, "rule 2x"]
    assert [choice.name for choice in sessions.choose(COMPARE, 0, 2.5, names)] == names[1:]
    sessions.choices = ()
    with pytest.raises(DatoError, match="no front"):
        sessions.choose(FRONT, 0, 2.5, ())
    for wrong in (1, math.nan, math.inf):
        with pytest.raises(DatoError, match="speedup"):
            sessions.choose(RULE, 0, wrong, ())


def test_every_point_of_the_shipped_front_is_what_its_options_choose():
    front = load_strategy("emoji-sd-depth")
    choices, first = choices_of(front, "emoji-sd-depth")
    assert choices[first].source is front.knee() and [c.source for c in choices] == list(front.points)[::-1]
    assert all(choice.options[:3] == ("--strategy", "emoji-sd-depth", "--pick") for choice in choices)
    assert [choice.steps(7) for choice in choices] == [point.steps for point in front.points[::-1]]
    assert {choice.steps(7) for choice in choices_of(front, "emoji-sd-depth", 7)[0]} == {7}


def test_a_point_of_another_sampler_runs_with_it(pipe, sessions, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    front = load_front(FRONT_FILE)
    own = zip(front.points, cycle(("ddim", "dpm++2m", None)), strict=False)
    points = tuple(replace(point, scheduler=sampler) for point, sampler in own)
    replace(front, points=points).save("front.json")
    choices, _ = choices_of(load_front("front.json"), "front.json", STEPS)
    assert [choice.own_sampler for choice in choices] == [point.scheduler for point in points[::-1]]
    assert {choice.own_sampler for choice in choices_of(front, "front.json", STEPS, "euler")[0]} == {None}
    choice = next(choice for choice in choices if choice.own_sampler == "ddim")
    task = job(choice, seed=5)
    done = list(sessions.generate("one", task))[-1]
    assert sampler_name(pipe.scheduler) == "dpm++2m"
    use = sessions.use(task, done.results[0], done)

    def expected(schedule, sampler):
        with sampler_set(pipe, sampler):
            return (image_of(pipe, schedule, seed=5) * 255).round().permute(1, 2, 0).numpy()

    schedule = choice.source.schedule
    assert (pixels(use.file) == expected(schedule, "ddim")).all() and 'scheduler="ddim"' in use.python
    assert json.loads(Image.open(io.BytesIO(use.file)).text["dato"])["sampler"] == "ddim"
    for given, own, usual in (((), "ddim", "dpm++2m"), (("--scheduler", "euler"), "euler", "euler")):
        words = [*shlex.split(use.command)[1:], "--repeats", 1, "--out", "images", *given]
        code, _, errors = call(monkeypatch, capsys, *words)
        assert code == 0, errors
        assert (pixels("images/rose-on-a-white-background-5.png") == expected(schedule, own)).all()
        assert (pixels("images/rose-on-a-white-background-5-stock.png") == expected(None, usual)).all()


def test_a_schedule_alone_is_one_choice():
    choices, first = choices_of(load_strategy("dato-published"), "dato-published")
    assert first == 0 and len(choices) == 1 and choices[0].python == '"dato-published"'


@pytest.mark.parametrize("typed", [None, "", math.nan, math.inf, 1.5, "7"])
def test_a_seed_is_a_whole_number(typed):
    with pytest.raises(DatoError, match="seed"):
        seed_of(typed)
    assert seed_of(7.0) == 7


def test_a_random_prompt_is_another_one(sessions):
    assert {sessions.random_prompt("a rose") for _ in range(20)} == {"a dog"}
    sessions.prompts = ["a rose"]
    assert sessions.random_prompt("a rose") == "a rose"


def test_what_is_not_there_yet_has_no_numbers(sessions):
    done = results(sessions, "one", sessions.choices[3])
    before = Snapshot(results=done.results)
    file = sessions.use(job(sessions.choices[3]), done.results[0], before).file
    said = json.loads(Image.open(io.BytesIO(file)).text["dato"])
    assert said["stock_ms"] is None and said["speedup"] is None
