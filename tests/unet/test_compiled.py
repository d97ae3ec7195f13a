"""Compiled calls: they equal eager calls, are compiled once, and are removed completely."""

import copy

import pytest
import torch
from conftest import draw, tiny_unet, unet_inputs
from torch._dynamo.utils import counters
from which_tests import thorough

import dato
from dato import DatoError, Pruning, Schedule
from dato.unet.compiled import CompiledCalls

# Small enough to be compiled in seconds: 6 rungs.
SMALL = {
    "block_out_channels": (8, 8),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def run(unet, calls, **options):
    x, text = unet_inputs(**options)
    with torch.no_grad():
        return [unet(x, t, text).sample for t in torch.arange(990, 0, -990 // calls)[:calls]]


def farthest(ours, others):
    return max((a - b).abs().max().item() for a, b in zip(ours, others, strict=True))


@pytest.mark.parametrize(
    ("forecast", "pruning", "different", "compiled"),
    [
        # Depth 6, with and without pruning, and depths 1 and 3.
        ("polynomial", Pruning(), 4, 4),
        # Depths 1 and 3 each from two and from three known values; pruning while layers have no past, and then.
        *thorough(("aligned", Pruning(recover_from="past", similarity="local"), 6, 7)),
        *thorough(
            ("chebyshev", Pruning(shared=False, cross_attention=True, feed_forward=True, reduction="merge"), 4, 4)
        ),
    ],
)
def test_nothing_is_compiled_after_the_first_generation(forecast, pruning, different, compiled):
    unet = tiny_unet(**SMALL)
    depths, ratios = (
        [6, 6, 1, 3, 0, 6, 1, 3, 0, 6, 6, 1, 3, 0],
        [0, 0.5, 0.5, 0.5, 0, 0, 0.5, 0.5, 0, 0.5, 0, 0.5, 0.5, 0],
    )
    schedule = Schedule(depths, ratios, orders=1, rungs=6, forecast=forecast, pruning=pruning)
    with dato.patched(unet, schedule):
        eager = run(unet, 14)
    steps = CompiledCalls(unet, backend="eager")
    dato.apply_patch(unet, schedule, compile=steps)
    first = run(unet, 14)
    assert steps.count == different
    assert counters["stats"]["unique_graphs"] == compiled and not counters["graph_break"]
    again = run(unet, 14)
    # Taken off and put on again, with another schedule of the same kinds of calls.
    dato.remove_patch(unet)
    dato.apply_patch(unet, schedule, compile=steps)
    later = run(unet, 14)
    assert counters["stats"]["unique_graphs"] == compiled
    assert farthest(eager, first) < 1e-5 and farthest(again, first) == 0 == farthest(later, first)


@pytest.mark.thorough
def test_compiled_code_agrees_with_eager_and_leaves_stock():
    unet = tiny_unet(**SMALL)
    stock, state = run(unet, 6), set(unet.__dict__)
    strides = [p.stride() for p in unet.parameters()]
    schedule = Schedule([6, 1, 0, 6, 1, 1], [0.5, 0.5, 0, 0.5, 0.5, 0.5], rungs=6)
    eager = run(dato.apply_patch(unet, schedule), 6)
    dato.apply_patch(unet, schedule, compile=True)
    assert farthest(run(unet, 6), eager) < 1e-4 < farthest(eager, stock)
    dato.remove_patch(unet)
    assert farthest(run(unet, 6), stock) == 0
    assert set(unet.__dict__) == state and [p.stride() for p in unet.parameters()] == strides


def test_pipelines_of_any_length_and_plain_numbers_as_timesteps(make_pipe):
    pipe = make_pipe()
    schedule = Schedule.uniform(9, 3, 1, 1, ratio=0.25)
    eager = draw(dato.apply_patch(pipe, schedule), 8)
    steps = CompiledCalls(pipe.unet, backend="eager")
    dato.apply_patch(pipe, schedule, compile=steps)
    assert torch.allclose(draw(pipe, 8), eager, atol=1e-4)
    known = counters["stats"]["unique_graphs"]
    with pytest.warns(UserWarning, match="resampled"):
        draw(pipe, 5)
    assert counters["stats"]["unique_graphs"] == known == steps.count

    unet = tiny_unet(**SMALL)
    x, text = unet_inputs()
    with torch.no_grad():
        eager = [unet(x, t, text).sample for t in (900, 500)]
        dato.apply_patch(unet, Schedule.full(2, rungs=6), compile={"backend": "eager"})
        assert farthest([unet(x, t, text).sample for t in (900, 500)], eager) < 1e-5


@pytest.mark.thorough
def test_sizes_and_modules_may_change_any_number_of_times():
    unet = tiny_unet(**SMALL)
    dato.apply_patch(unet, Schedule.full(2, rungs=6), compile={"backend": "eager"})
    with torch._dynamo.config.patch(recompile_limit=2), torch.no_grad():
        for size, slope in [(8, 0.1), (12, 0.1), (16, 0.1), (16, 0.2), (16, 0.3), (16, 0.4)]:
            unet.conv_act = torch.nn.LeakyReLU(slope)  # another module each time, as adapters are
            x, text = unet_inputs(size=(size, size))
            stock = type(unet).forward(unet, x, 990, text).sample
            assert (unet(x, 990, text).sample - stock).abs().max() < 1e-5


@pytest.mark.thorough
def test_what_cannot_be_compiled_whole_runs_in_pieces():
    unet = tiny_unet(**SMALL)
    stock = run(unet, 2)
    hook = unet.mid_block.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    dato.apply_patch(unet, Schedule.full(2, rungs=6), compile={"backend": "eager"})
    with pytest.warns(UserWarning, match="compiled in pieces"):
        assert farthest(run(unet, 2), stock) < 1e-5
    assert counters["graph_break"]
    dato.apply_patch(unet, Schedule.full(2, rungs=6), compile={"backend": "eager", "fullgraph": False})
    assert farthest(run(unet, 2), stock) < 1e-5
    hook.remove()


def test_steps_belong_to_one_unet(monkeypatch):
    unet = tiny_unet(**SMALL)
    with pytest.raises(DatoError, match="another UNet"):
        dato.apply_patch(copy.deepcopy(unet), Schedule.full(2, rungs=6), compile=CompiledCalls(unet, backend="eager"))

    from torch._inductor import cpp_builder, exc

    def missing():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(DatoError, match=r"install g\+\+"):
        dato.apply_patch(unet, Schedule.full(2, rungs=6), compile=True)
