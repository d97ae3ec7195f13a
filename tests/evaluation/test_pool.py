"""Several workers on Ray give what one in process gives, and losing one loses nothing."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from conftest import toy_recipe

from dato import DatoError, Schedule
from dato.evaluation.evaluator import Evaluator
from dato.evaluation.pool import InProcess
from dato.evaluation.ray_pool import RayPool, make_pool

RECIPE = toy_recipe(4, 3, 1, "psnr", "clip-score")
SCHEDULES = [Schedule.uniform(4, 2, 1), Schedule.uniform(4, 3, 0), Schedule.full(3), Schedule.uniform(4, 2, 3)]


@pytest.fixture(scope="module")
def here():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of floats depend on it, and each of two workers has one
    judges = InProcess(RECIPE.evaluator())
    found = {judgement.schedule: judgement for judgement in judges.judge(SCHEDULES)}
    yield judges, found
    torch.set_num_threads(threads)


def test_two_workers_judge_as_one_does_even_where_one_is_lost(here, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    judges, found = here
    far = RayPool(RECIPE, workers=2)
    try:
        assert far.facts == judges.facts
        assert torch.equal(far.stock.images, judges.stock.images) and far.stock.sample == judges.stock.sample
        first = far.ask(lambda evaluator: os.getpid())
        arriving = far.judge(SCHEDULES)
        results = [next(arriving)]
        os.kill(first, signal.SIGKILL)  # what it is at now, or has got to do next, is done again
        results += arriving
        assert len(results) == len(SCHEDULES)
        for judgement in results:
            own = found[judgement.schedule]
            assert judgement.per_image == own.per_image and judgement.sample == own.sample
            assert judgement.point.quality == own.point.quality and judgement.failure is None
        with pytest.raises(DatoError, match="calls cannot be judged here"):
            list(far.judge([Schedule.full(9)]))
    finally:
        far.close()


@pytest.mark.thorough
def test_a_worker_that_cannot_load_its_model_says_so_in_one_line():
    pytest.importorskip("ray")
    with pytest.raises(DatoError, match="cannot load the model 'nowhere'"):
        RayPool(replace(RECIPE, model="nowhere"), workers=2)
    with pytest.raises(DatoError, match=r"`ray_address` 127\.0\.0\.1:1: nothing answers"):
        RayPool(RECIPE, workers=1, ray_address="127.0.0.1:1")


def test_one_worker_needs_no_ray(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert isinstance(make_pool(RECIPE), InProcess)
    with pytest.raises(DatoError, match=r"pip install 'dato\[ray\]'"):
        make_pool(RECIPE, workers=2)


def test_out_of_memory_and_bad_images_are_judgements(here, monkeypatch):
    judges, _ = here
    schedule = Schedule.uniform(4, 4, 0)
    real = Evaluator.generate

    def gives(change):
        def generate(self, method, prompts, sampling):
            result = real(self, method, prompts, sampling)
            return replace(result, images=change(result.images))

        return generate

    def raises(error):
        def generate(self, method, prompts, sampling):
            raise error

        return generate

    for fake, why in [
        (raises(torch.cuda.OutOfMemoryError("CUDA out of memory.")), "out of memory"),
        (raises(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")), "out of memory"),
        (raises(MemoryError()), "out of memory"),
        (gives(lambda images: images * float("nan")), "its images are not finite numbers"),
        (gives(lambda images: images * 0), "it gives black images"),
    ]:
        monkeypatch.setattr(Evaluator, "generate", fake)
        [judgement] = judges.judge([schedule])
        assert judgement.failure == why and judgement.point.quality == float("-inf")
    monkeypatch.setattr(Evaluator, "generate", raises(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        list(judges.judge([schedule]))


def test_a_race_spares_images_of_who_is_beaten(here):
    from dato.evaluation.racing import Rival

    judges, found = here
    own = found[SCHEDULES[1]]
    racing = InProcess(replace(RECIPE, race=1).evaluator())
    racing.stock = judges.stock
    best = Rival(0.0, tuple(q + 20 for q in own.per_image), spread=0.1)
    [beaten] = racing.judge([SCHEDULES[1]], [best])
    assert beaten.images == 1 and len(beaten.per_image) == 1
    assert beaten.point.quality == pytest.approx(own.point.quality, abs=1e-4)  # the rival's, less what it is worse by
    # A table shows what compares with the others: no mean over the first images.
    assert beaten.point.metrics[racing.evaluator.metrics[0].name] == beaten.point.quality
    assert not {m.name for m in racing.evaluator.metrics[1:]} & set(beaten.point.metrics)
    assert {m.name for m in racing.evaluator.metrics} <= set(own.point.metrics)
    [whole] = racing.judge([SCHEDULES[1]], [replace(best, latency_ms=1e9)])  # nobody who is faster
    assert whole.images == 2 and whole.per_image == pytest.approx(own.per_image)
    assert racing.evaluator.images == 3


def test_measured_times_are_scaled_by_a_short_stock_generation_before_each(here, monkeypatch):
    slow = InProcess(replace(RECIPE, interleave=True).evaluator())
    probes = iter([100.0, 200.0])
    monkeypatch.setattr(Evaluator, "_probe", lambda self: next(probes))
    stock = slow.stock
    [judgement] = slow.judge([SCHEDULES[0]])
    point = judgement.point
    # The machine was half as fast at the candidate's turn as at stock's.
    assert point.latency_ms == pytest.approx(point.metrics["measured_ms"] / 2)
    assert point.speedup == pytest.approx(stock.point.latency_ms / point.latency_ms)
    assert point.metrics["probe_ms"] == 200
