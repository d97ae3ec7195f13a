"""Recovery from the past, compared with a slow version, token by token, and in UNets of both shapes."""

import gc
import weakref

import pytest
import torch
from conftest import tiny_unet, unet_inputs
from devices import device, put, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from which_tests import thorough

import dato
from dato import Schedule
from dato.pruning import Pruning
from dato.tokens.recovery import TokenPast
from dato.tokens.selection import select_tokens

GRID = (4, 6)
FEW = settings(max_examples=60, deadline=None)


def tokens(seed, batch=2, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return randn(batch, GRID[0] * GRID[1], channels, generator=generator, dtype=torch.float64)


@st.composite
def generations(draw):
    """(timestep, tokens to prune) of each call; timesteps fall, some are used twice."""
    n = draw(st.integers(2, 9))
    falls = draw(st.lists(st.sampled_from([0, 20, 20, 21, 60]), min_size=n, max_size=n))
    prunes = draw(st.lists(st.sampled_from([0, 6, 12, 18]), min_size=n, max_size=n))
    return [(900.0 - sum(falls[:i]), k) for i, k in enumerate(prunes)]


@FEW
@given(generations(), st.booleans())
def test_each_pruned_token_continues_its_own_line_while_that_is_fresh(calls, turns):
    past, history = TokenPast(), {}  # (image, token) -> [(timestep, value)], of one timestep the last
    for i, (time, k) in enumerate(calls):
        truth = tokens(i)
        turn = -len({t for t, _ in calls[: i + 1]})  # timesteps so far
        selection = select_tokens(tokens(100 + i), GRID, k, last=past.last if turns else None) if k else None
        restored = past.restore(truth if selection is None else selection.shorten(truth), selection, time, turn)
        plain = truth if selection is None else selection.restore(selection.shorten(truth))
        for b in range(2):
            pruned = [] if selection is None else selection.pruned[b].tolist()
            for token in range(truth.shape[1]):
                known = history.setdefault((b, token), [])
                if token not in pruned:
                    if known and known[-1][0] == time:
                        known.pop()
                    known.append((time, truth[b, token]))
                    expected = truth[b, token]
                elif len(known) > 1 and (time - known[-1][0]) / (known[-1][0] - known[-2][0]) <= 1:
                    (t0, v0), (t1, v1) = known[-2:]
                    expected = v1 + (time - t1) / (t1 - t0) * (v1 - v0)
                else:
                    expected = plain[b, token]
                # The times are float32.
                assert torch.allclose(restored[b, token], expected, atol=1e-5)
                last = -len({t for t, _ in calls if t >= known[-1][0]}) if known else float("inf")
                assert past.last[b, token].item() == last


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 4e-2)])
def test_a_layer_that_is_linear_in_time_is_recovered_exactly(dtype, tolerance):
    past, start, slope = TokenPast(), tokens(0).float(), tokens(1).float()
    for i, time in enumerate((900.0, 900.0, 850.0, 800.0, 760.0, 710.0, 660.0, 610.0)):
        truth = (start + slope * time / 1000).to(dtype)
        selection = select_tokens(tokens(i), GRID, 12, last=past.last) if i > 2 else None
        restored = past.restore(truth if selection is None else selection.shorten(truth), selection, time, -i)
        assert restored.dtype == dtype
        assert torch.allclose(restored.float(), truth.float(), atol=tolerance)


def test_half_precision_neither_overflows_nor_turns_into_nan():
    past, large = TokenPast(), torch.full((1, 24, 3), 60000.0, dtype=torch.float16, device=device())
    past.restore(-large, None, 900.0, -1)
    past.restore(large, None, 800.0, -2)
    selection = select_tokens(tokens(0, batch=1), GRID, 12)
    restored = past.restore(selection.shorten(large), selection, 700.0, -3)
    largest = torch.full((12, 3), 65504.0, dtype=torch.float16, device=device())
    assert torch.equal(restored[0, selection.pruned[0]], largest)


def test_a_copied_state_is_not_written_over():
    """A compiled call may use its memory again."""
    layers = [TokenPast(), TokenPast()]
    for copied in (False, True):
        past = layers[copied]
        past.copy_state()  # nothing is there yet
        for i, time in enumerate((900.0, 850.0)):
            past.restore(tokens(i), None, time, -i)
        if copied:
            (v0, v1), (t0, t1), turns = past.state
            past.copy_state()
            for tensor in (v0, v1, t0, t1, turns):
                tensor.fill_(torch.nan)
    selection = select_tokens(tokens(2), GRID, 12)
    plain, copy = (past.restore(selection.shorten(tokens(3)), selection, 800.0, -2) for past in layers)
    assert torch.equal(plain, copy) and torch.equal(layers[0].last, layers[1].last)


def test_what_is_forgotten_is_not_continued():
    past = TokenPast()
    for i, time in enumerate((900.0, 850.0)):
        past.restore(tokens(i), None, time, -i)
    state = past.state
    past.clear()
    assert past.last is None and past.state == (None, None, None)
    past.state = state
    assert past.last is not None and past.state == state


@FEW
@given(st.integers(0, 10**6), st.integers(0, 18), st.booleans())
def test_tokens_take_turns(seed, k, anywhere):
    generator = torch.Generator().manual_seed(seed)
    x, score = tokens(seed), randn(2, 24, generator=generator)
    turns = torch.tensor([float("inf"), 900.0, 880.0, 860.0])
    last = put(turns[torch.randint(0, 4, (2, 24), generator=generator)])
    patch = None if anywhere else (2, 2)
    selection = select_tokens(x, GRID, k, patch=patch, score=score, last=last)
    for b in range(2):
        base, pruned = selection.base[b].tolist(), selection.pruned[b].tolist()

        def turn(token, b=b):
            return last[b, token].item(), score[b, token].item()

        if anywhere:
            assert base == sorted(sorted(range(24), key=turn)[-6:])
        else:
            patches = [[6 * y + x, 6 * y + x + 1, 6 * y + x + 6, 6 * y + x + 7] for y in (0, 2) for x in (0, 2, 4)]
            assert base == [max(members, key=turn) for members in patches]
        unit = torch.nn.functional.normalize(x[b], dim=1)
        near = (unit @ unit[base].T).max(1).values
        others = sorted(set(range(24)) - set(base), key=lambda t, b=b, near=near: (last[b, t].item(), -near[t].item()))
        assert pruned == sorted(others[:k])
    same = select_tokens(x, GRID, k, patch=patch, score=score, last=torch.full_like(last, 900.0))
    without = select_tokens(x, GRID, k, patch=patch, score=score)
    assert torch.equal(same.source, without.source)


def test_nothing_looks_at_a_value():
    """What would make a GPU wait fails on tensors that have no values."""
    with FakeTensorMode():
        past, x = TokenPast(), randn(2, 24, 3)
        past.restore(x, None, 900.0, 0)
        for time in (800.0, 700.0):
            selection = select_tokens(x, GRID, 12, last=past.last)
            assert past.restore(selection.shorten(x), selection, time, time - 900).shape == x.shape


def run(unet, inputs, timesteps=(900, 800, 700, 600, 500, 400)):
    with torch.no_grad():
        return [unet(inputs[0], t, inputs[1], **inputs[2]).sample for t in timesteps]


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, *thorough(torch.bfloat16)])
def test_unets_of_both_shapes_leave_nothing_after_a_generation(kind, shared, dtype):
    unet, inputs = tiny_unet(kind).to(dtype), (*(x.to(dtype) for x in unet_inputs(batch=4)), {})
    rungs = 12 if kind == "sd" else 9
    pruning = Pruning(recover_from="past", shared=shared, cross_attention=True, feed_forward=True)
    schedule = Schedule([rungs, rungs, 3, rungs, 1, rungs], [0, 0, 0.5, 0.7, 0.5, 0.5], rungs=rungs, pruning=pruning)
    stock = run(unet, inputs)
    dato.apply_patch(unet, schedule)
    pruner, held = unet._dato_patch.pruner, []
    layer = next(m for n, m in unet.named_modules() if n.endswith("attn1"))
    handle = layer.register_forward_hook(lambda m, a, out: held.append(weakref.ref(out)))
    first = run(unet, inputs)
    handle.remove()
    gc.collect()
    assert held and not any(ref() is not None for ref in held)
    assert all(past.last is None for past in pruner._pasts)
    # A generation that was cut short is not continued by the next one either.
    run(unet, inputs, (900, 800, 700, 600))
    assert any(past.last is not None for past in pruner._pasts) and pruner._time == 600
    assert all(map(torch.equal, run(unet, inputs), first))
    assert all(map(torch.equal, first[:2], stock[:2])) and all(torch.isfinite(x).all() for x in first)
    # The past is really used.
    with dato.patched(unet, schedule, recover_from="base"):
        base = run(unet, inputs)
    assert not torch.equal(base[-1], first[-1])


def test_every_token_is_computed_again_before_others_are_twice():
    unet, inputs, seen = tiny_unet(), (*unet_inputs(), {}), []
    dato.apply_patch(unet, Schedule([12] * 4, 0.75), recover_from="past")
    pruner = unet._dato_patch.pruner
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    block.register_forward_hook(lambda *_: seen.append(pruner._selection.kept))
    run(unet, inputs, (900, 800, 700, 600))
    for image in range(2):
        assert torch.cat([kept[image] for kept in seen]).sort().values.tolist() == list(range(256))


@pytest.mark.parametrize("times", [(300.0, 500.0, 700.0, 900.0), (900.0, 500.0, 700.0, 500.0)])
def test_tokens_take_turns_where_timesteps_rise(times):
    unet, (x, text), seen = tiny_unet(), unet_inputs(), []
    dato.apply_patch(unet, Schedule([12] * 4, 0.75), recover_from="past")
    pruner = unet._dato_patch.pruner
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    block.register_forward_hook(lambda *_: seen.append(pruner._selection.kept))
    with torch.no_grad():
        for time in put(torch.tensor(times)):
            assert unet(x, time, text).sample.isfinite().all()
    for image in range(2):
        assert torch.cat([kept[image] for kept in seen]).sort().values.tolist() == list(range(256))
