"""Candidates that are judged with compiled calls."""

import pytest
import torch
from conftest import PROMPTS, tiny_unet

from dato import DatoError, Schedule
from dato.evaluation.evaluator import Evaluator
from dato.evaluation.pool import Recipe
from dato.evaluation.side_by_side import retime
from dato.evaluation.validation import validation_evaluator
from dato.generation.sampling import Sampling
from dato.metrics import Setup, load_metric
from dato.prediction.latency_measure import measure_table
from dato.unet.compiled import CompiledCalls

SAMPLING = Sampling(4, 3.0, batch_size=2)
RUNGS = 6
FOUR = [*PROMPTS, "cat face"]


@pytest.fixture
def pipe(make_pipe):
    """A pipeline with a UNet of six rungs, which is soon compiled."""
    torch._dynamo.reset()
    pipe = make_pipe()
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    blocks = {"block_out_channels": (8, 8), "down_block_types": down, "up_block_types": up}
    pipe.register_modules(unet=tiny_unet(cross_attention_dim=128, sample_size=8, **blocks))
    yield pipe
    torch._dynamo.reset()


def schedule_of(*depths, order=0):
    return Schedule(depths, orders=order, rungs=RUNGS)


def compiled_of(pipe):
    return CompiledCalls(pipe.unet, backend="eager")


def evaluator_of(pipe, compiled=None, race=None, latency=None):
    metrics = [load_metric("psnr", Setup())]
    return Evaluator(pipe, FOUR, SAMPLING, metrics, latency, race=race, compiled=compiled)


@pytest.fixture
def generations(monkeypatch):
    """The number of images of each generation."""
    from dato.evaluation import evaluator

    noted, plain = [], evaluator.generate

    def generate(pipe, prompts, *arguments):
        noted.append(len(prompts))
        return plain(pipe, prompts, *arguments)

    monkeypatch.setattr(evaluator, "generate", generate)
    return noted


def test_images_are_those_of_eager_calls(pipe):
    schedule = schedule_of(6, 1, 6, 1, 1, order=1)
    eager = evaluator_of(pipe)
    images = [eager.generate(method, FOUR[:2], SAMPLING).images for method in (eager.stock_method, schedule)]
    evaluator = evaluator_of(pipe, compiled_of(pipe))
    for method, expected in zip((evaluator.stock_method, schedule), images, strict=True):
        found = evaluator.generate(method, FOUR[:2], SAMPLING).images
        assert torch.allclose(found, expected, atol=1e-4)
    assert evaluator.compiled.count > 1
    assert "forward" not in pipe.unet.__dict__


def test_stock_is_compiled_too(pipe):
    evaluator = evaluator_of(pipe, compiled_of(pipe))
    assert evaluator.baseline.speedup == 1 and evaluator.compiled.count == 1
    assert evaluator.judge(evaluator.stock_method).point.metrics["psnr"] == 100  # its images are stock's, bit for bit


def test_a_generation_in_which_a_call_was_compiled_is_repeated(pipe, generations):
    evaluator = evaluator_of(pipe, compiled_of(pipe))
    evaluator.stock  # noqa: B018
    assert generations == [2, 2, 4]  # warming up, the same again, stock
    evaluator.judge(schedule_of(6, 1, 6, 1, 1))
    assert generations[3:] == [4, 4]
    evaluator.judge(schedule_of(6, 1, 1, 6, 1))  # the same calls in another order
    assert generations[5:] == [4]


def test_candidates_race_by_whole_batches(pipe):
    assert evaluator_of(pipe, race=1, latency=len).race == 1
    evaluator = evaluator_of(pipe, compiled_of(pipe), race=1, latency=len)
    assert evaluator.race == 2  # another number of images would be compiled again


def test_all_is_compiled_before_the_table_is_measured(pipe):
    compiled, counts = compiled_of(pipe), []
    schedules = [
        Schedule.uniform(9, 2, depth, order, rungs=RUNGS, forecast=forecast)
        for depth in (0, 1)
        for order in (0, 1)
        for forecast in ("polynomial", "aligned")
    ]

    def progress(done, total):
        if done >= 1:  # the round before warms up
            counts.append(compiled.count)

    measure_table(pipe, ["a"], Sampling(batch_size=1), schedules, rounds=1, progress=progress, compiled=compiled)
    assert len(counts) > 4 and set(counts) == {compiled.count}
    assert compiled.count > 2


@pytest.mark.thorough
def test_validation_and_the_last_timing_are_compiled(pipe):
    evaluator = evaluator_of(pipe, compiled_of(pipe))
    assert validation_evaluator(evaluator, FOUR[:2]).compiled is evaluator.compiled
    schedule = schedule_of(6, 1, 6, 1, 1)
    point, before = evaluator(schedule), evaluator.compiled.count
    stock, (timed,) = retime(evaluator, {schedule: point}, 1)
    assert timed.speedup == pytest.approx(stock.latency_ms / timed.latency_ms)
    assert evaluator.compiled.count == before


def test_a_machine_without_a_compiler_is_named(pipe, monkeypatch):
    from torch._inductor import cpp_builder, exc

    def missing():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    recipe = Recipe("m", "cpu", "float32", None, ("a",), SAMPLING, (4,), ("psnr",), compile=True)
    with pytest.raises(DatoError, match=r"install g\+\+"):
        recipe.evaluator_of(pipe)
