"""Generating for the page: the images of `generate`, one job at a time, stopping, and errors as a line."""

import threading

import pytest
import torch
from demo_jobs import CHOICE, OTHER, STEPS, a_studio, counted_calls, image_of, job, last

from dato.demo import studio as studio_module
from dato.demo.choices import rule_choice
from dato.demo.job import Job
from dato.demo.run import Run, Stopped
from dato.errors import DatoError


@pytest.fixture
def studio(pipe):
    with a_studio(pipe) as studio:
        yield studio


@pytest.fixture
def calls(pipe):
    with counted_calls(pipe) as counted:
        yield counted


def test_images_and_psnr_are_those_of_generate(studio, pipe):
    done = last(studio.start(job(CHOICE, OTHER)))
    assert done.error == "" and not done.stopped
    assert torch.equal(done.stock.image, image_of(pipe))
    for result, choice in zip(done.results, (CHOICE, OTHER), strict=True):
        assert result.schedule == choice.source and result.shot.latency_ms > 0
        assert torch.equal(result.shot.image, image_of(pipe, choice.source))
        error = (result.shot.image - done.stock.image).square().mean()
        assert result.psnr == pytest.approx(-10 * torch.log10(error).item(), abs=1e-3)


def test_the_rule_gives_its_schedule(studio, pipe):
    done = last(studio.start(job(rule_choice(2))))
    assert done.results[0].schedule.depths == (12, 0, 0, 12)
    assert torch.equal(done.results[0].shot.image, image_of(pipe, done.results[0].schedule))


def test_stock_is_generated_once_for_each_prompt_and_seed(studio, calls):
    first = last(studio.start(job()))
    assert len(calls) == 2 * STEPS
    again = last(studio.start(job(OTHER)))
    assert len(calls) == 3 * STEPS and again.stock is first.stock
    last(studio.start(job(seed=1)))
    assert len(calls) == 5 * STEPS


def test_few_of_stocks_images_are_kept(studio, calls, monkeypatch):
    monkeypatch.setattr(studio_module, "KEPT", 1)
    for seed in (0, 1, 0):
        last(studio.start(job(seed=seed)))
    assert len(calls) == 6 * STEPS


@pytest.mark.parametrize("call", [1, 3, STEPS + 2])
def test_what_is_stopped_leaves_nothing_behind(studio, pipe, call):
    """It is stopped at its first call, in the middle, and in stock's image."""
    seen = []

    def stop(*_):
        seen.append(1)
        if len(seen) == call:
            studio.stop(run)

    started = threading.Event()
    handle = pipe.unet.register_forward_pre_hook(lambda *_: started.wait() and stop())
    run = studio.start(job())
    started.set()
    stopped = last(run)
    after = last(studio.start(job()))
    handle.remove()
    assert stopped.stopped and stopped.over and len(seen) == call - 1 + 1 + 2 * STEPS
    assert torch.equal(after.results[0].shot.image, image_of(pipe, CHOICE.source)) and torch.equal(
        after.stock.image, image_of(pipe)
    )


def test_others_wait_and_know_how_many_are_ahead(studio, pipe):
    go = threading.Event()
    handle = pipe.unet.register_forward_pre_hook(lambda *_: go.wait(60) and None)
    runs = [studio.start(job(seed=seed)) for seed in range(4)]
    assert [run.snapshot.ahead for run in runs] == [0, 1, 2, 3]
    studio.stop(runs[1])
    assert [run.snapshot.ahead for run in (runs[0], runs[2], runs[3])] == [0, 1, 2]
    go.set()
    done = [last(run) for run in runs]
    handle.remove()
    assert done[1].stopped and not done[1].results
    for seed in (0, 2, 3):
        assert torch.equal(done[seed].results[0].shot.image, image_of(pipe, CHOICE.source, seed=seed))


def test_progress_names_the_call(studio):
    seen = list(studio.start(job()).snapshots(pause=0))
    names = list(dict.fromkeys(snapshot.doing for snapshot in seen if snapshot.doing))
    assert names == [CHOICE.name, "stock"]
    assert {snapshot.calls for snapshot in seen if snapshot.doing} == {STEPS}
    assert [len(snapshot.results) for snapshot in seen] == sorted(len(snapshot.results) for snapshot in seen)


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (MemoryError(), "memory ran out"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "memory ran out"),
        (DatoError("the sampler cannot do that"), "the sampler cannot do that"),
        (KeyError("a bug"), "KeyError: 'a bug'"),
    ],
)
def test_an_error_is_one_line_and_the_next_job_works(studio, pipe, monkeypatch, failure, line):
    with monkeypatch.context() as patch:
        patch.setattr(studio_module, "generate", lambda *_: (_ for _ in ()).throw(failure))
        failed = last(studio.start(job()))
    assert line in failed.error and "\n" not in failed.error and not failed.stopped
    assert torch.equal(last(studio.start(job())).results[0].shot.image, image_of(pipe, CHOICE.source))


@pytest.mark.parametrize(("value", "line"), [(float("nan"), "not made of finite numbers"), (0.0, "is black")])
def test_an_image_that_is_none_is_an_error(studio, pipe, monkeypatch, value, line):
    usual, made = studio_module.generate, []

    def broken(*arguments):
        result = usual(*arguments)
        made.append(1)
        if len(made) == 1:
            result.images.fill_(value)
        return result

    monkeypatch.setattr(studio_module, "generate", broken)
    assert line in last(studio.start(job())).error
    assert last(studio.start(job())).error == ""


def test_a_warning_is_a_note(studio):
    notes = last(studio.start(job(rule_choice(50)))).notes
    assert len(notes) == 1 and "cannot be reached" in notes[0]


def test_closing_stops_what_runs_and_what_waits(studio, pipe):
    runs = [studio.start(job(seed=seed)) for seed in range(3)]
    studio.close()
    assert all(run.snapshot.over for run in runs) and runs[2].snapshot.stopped


def test_a_run_that_is_over_stays_as_it_is():
    run = Run(job())
    run.stop()
    run.update(error="later")
    assert run.snapshot.error == "" and [snapshot.stopped for snapshot in run.snapshots()] == [True]
    with pytest.raises(Stopped):
        run.at_call(1)


@pytest.mark.parametrize(
    ("prompt", "seed", "choices", "line"),
    [
        (" ", 0, (CHOICE,), "type a prompt"),
        ("x" * 1001, 0, (CHOICE,), "1001 characters"),
        ("\ud800", 0, (CHOICE,), "half of a character"),
        ("a", -1, (CHOICE,), "seed"),
        ("a", 2**53, (CHOICE,), "seed"),
        ("a", 0, (), "choose"),
    ],
)
def test_a_wrong_job_is_one_line(prompt, seed, choices, line):
    with pytest.raises(DatoError, match=line):
        Job(prompt, seed, choices)
