"""Token pruning makes all its tensors where the tokens are. Stand-ins for a GPU have no values, only a place."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dato import Pruning
from dato.pruning import SCORES
from dato.tokens.recovery import TokenPast
from dato.tokens.scores import base_score
from dato.tokens.selection import select_tokens

GRIDS = [(8, 8), (7, 9)]  # patches fill the first one


@pytest.fixture
def gpu():
    """A GPU. An operation on tensors of two devices fails on it, as on a real one."""
    with FakeTensorMode():
        yield torch.device("cuda:0")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("settings", [{}, {"similarity": "local"}, {"recover_from": "kept"}, {"merge": True}])
@pytest.mark.parametrize("turns", [False, True])
def test_tokens_are_chosen_on_the_gpu(gpu, grid, settings, turns):
    x = torch.empty(2, grid[0] * grid[1], 8, device=gpu)
    selection = select_tokens(x, grid, 20, last=x[..., 0] if turns else None, align_cfg=True, **settings)
    short = selection.shorten(x)
    made = (selection.base, selection.pruned, selection.kept, selection.source, short, selection.restore(short))
    assert {tensor.device for tensor in made} == {gpu}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("noise", ["absolute", "relative"])
def test_scores_are_computed_on_the_gpu(gpu, score, noise):
    x, pruning = torch.empty(2, 64, 8, device=gpu), Pruning(score=score, noise=noise)
    drawn = torch.empty(2, 64, device=gpu)
    value = base_score(x, pruning, drawn, drawn, (8, 8))
    assert value.device == gpu and value.shape == (2, 64)
    assert select_tokens(x, (8, 8), 20, patch=pruning.base_patch, score=value).base.device == gpu


def test_a_past_stays_on_the_gpu(gpu):
    x, past = torch.empty(2, 64, 8, device=gpu), TokenPast()
    past.restore(x, None, 900.0, 0)
    selection = select_tokens(x, (8, 8), 20, last=past.last)
    assert past.restore(selection.shorten(x), selection, 800.0, -1).device == past.last.device == gpu
