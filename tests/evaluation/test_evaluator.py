"""The evaluator leaves a pipeline as it was."""

import pytest
import torch
from conftest import PROMPTS

from dato import Schedule
from dato.evaluation.evaluator import Evaluator
from dato.evaluation.pool import InProcess
from dato.evaluation.safety_checker import without_safety_checker
from dato.generation.sampling import Sampling
from dato.metrics import Setup, load_metric


class BlackensAll(torch.nn.Module):
    """A safety checker that finds something in every image."""

    def forward(self, images, clip_input):
        raise AssertionError("the safety checker ran")


@pytest.fixture
def guarded(make_pipe):
    """A pipeline of a user who has a safety checker."""
    pipe = make_pipe()
    pipe.register_modules(safety_checker=BlackensAll())
    return pipe


def evaluator_of(pipe):
    return Evaluator(pipe, PROMPTS[:1], Sampling(2, 3.0, batch_size=1), [load_metric("psnr", Setup())])


def test_the_safety_checker_is_off_while_images_are_made_and_back_afterwards(guarded):
    checker, config = guarded.safety_checker, dict(guarded.config)
    evaluator = evaluator_of(guarded)
    assert guarded.safety_checker is checker  # making an evaluator changes nothing
    assert evaluator.judge(Schedule.uniform(evaluator.calls, 2, 1)).failure is None
    assert guarded.safety_checker is checker and dict(guarded.config) == config
    seen = InProcess(evaluator).ask(lambda evaluator: evaluator.pipe.safety_checker)
    assert seen is None and guarded.safety_checker is checker


def test_the_safety_checker_is_back_after_an_exception(guarded, monkeypatch):
    checker, evaluator = guarded.safety_checker, evaluator_of(guarded)
    monkeypatch.setattr(guarded.unet, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluator.stock  # noqa: B018
    with pytest.raises(KeyboardInterrupt), without_safety_checker(guarded), without_safety_checker(guarded):
        assert guarded.safety_checker is None
        raise KeyboardInterrupt
    assert guarded.safety_checker is checker
