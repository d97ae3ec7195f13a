"""What other code hangs on a UNet: hooks, forwards, other classes. At full depth it works as without dato."""

import copy
import functools
import io
import multiprocessing
import pickle
import types
import warnings

import pytest
import torch
from conftest import draw, tiny_unet, unet_inputs
from devices import device
from diffusers import UNet2DConditionModel
from which_tests import thorough

import dato
from dato import Schedule
from dato.unet.ladder import Ladder

CALLS = 4
TIMES = torch.arange(990, 0, -250)


def generation(unet, **more):
    """The predictions of one generation."""
    x, text = unet_inputs()
    with torch.no_grad():
        return torch.stack([unet(x, t, text, **more).sample for t in TIMES.to(device())])


def whole(unet):
    return Schedule.full(CALLS, rungs=len(Ladder(unet)))


def scaled(module, args, output):
    """A hook that changes what a block gives."""
    return (output[0] * 0.9, output[1]) if isinstance(output, tuple) else output * 0.9


def own_forward(block):
    inner = block.forward
    block.forward = lambda *args, **kwargs: scaled(None, None, inner(*args, **kwargs))


def other_class(block):
    kind = type(block)
    forward = lambda self, *args, **kwargs: scaled(None, None, kind.forward(self, *args, **kwargs))  # noqa: E731
    block.__class__ = type("Other" + kind.__name__, (kind,), {"forward": forward})


CHANGES = {
    "hook": lambda block: block.register_forward_hook(scaled),
    "pre-hook": lambda block: block.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "hidden_states": kwargs["hidden_states"] * 0.9}),
        with_kwargs=True,
    ),
    "forward": own_forward,
    "class": other_class,
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("place", ["down_blocks.0", "down_blocks.3", "up_blocks.1", *thorough("up_blocks.3")])
def test_what_hangs_on_a_block_runs_in_whole_calls(change, place, when):
    unet = tiny_unet()
    plain = generation(unet)
    changed = tiny_unet()
    CHANGES[change](changed.get_submodule(place))
    stock = generation(changed)
    assert not torch.equal(stock, plain)

    if when == "before":
        CHANGES[change](unet.get_submodule(place))
    dato.apply_patch(unet, whole(unet))
    if when == "after":
        CHANGES[change](unet.get_submodule(place))
    assert torch.equal(generation(unet), stock)
    dato.remove_patch(unet)
    assert torch.equal(generation(unet), stock)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_odd_sizes_residuals_and_every_block(kind):
    """Blocks that carry a hook and the others make the same forward together."""
    unet = tiny_unet(kind)
    for place in [f"{way}.{i}" for way in ("down_blocks", "up_blocks") for i in range(len(getattr(unet, way)))]:
        x, text = unet_inputs(size=(18, 22))
        handle = unet.get_submodule(place).register_forward_hook(scaled)
        with torch.no_grad():
            stock = unet(x, 500, text).sample
            dato.apply_patch(unet, Schedule.full(1, rungs=len(Ladder(unet))))
            assert torch.equal(unet(x, 500, text).sample, stock), place
        dato.remove_patch(unet)
        handle.remove()


def test_calls_beside_the_block_are_shallow_and_calls_through_it_run_it_whole():
    """Depth 9 runs up block 1 (rungs 6 to 8) whole, depth 6 runs nothing of it, and depth 7 would run a part."""
    unet, entered = tiny_unet(), []
    unet.up_blocks[1].register_forward_hook(lambda module, args, output: entered.append(1))
    for depth, count in ((6, 1), (9, 2)):
        dato.apply_patch(unet, Schedule([12, depth]))
        x, text = unet_inputs()
        with torch.no_grad():
            for t in TIMES[:2].clone().to(device()):
                unet(x, t, text)
        assert len(entered) == count, depth
        entered.clear()
    for depth in (7, 8):
        with pytest.raises(dato.DatoError, match=r"up_blocks\.1 carries a forward hook.*depths up to 6 or above 8"):
            dato.apply_patch(unet, Schedule([12, depth]))


def test_a_hook_that_comes_later_is_refused_when_a_generation_begins(make_pipe):
    pipe = make_pipe()
    dato.apply_patch(pipe, Schedule([12, 1, 12, 1]))
    handle = pipe.unet.up_blocks[3].register_forward_hook(scaled)
    with pytest.raises(dato.DatoError, match=r"up_blocks\.3 carries a forward hook.*depth 0, or above 2"):
        draw(pipe, 3)
    handle.remove()
    draw(pipe, 3)


def autocast_like(forward):
    """What accelerate does to a forward for mixed precision."""

    @functools.wraps(forward)
    def run(*args, **kwargs):
        with torch.autocast(device().type, torch.bfloat16):
            result = forward(*args, **kwargs)
        result.sample = result.sample.float()
        return result

    return run


class Louder(UNet2DConditionModel):
    """A subclass whose forward takes one argument more."""

    def forward(self, sample, timestep, encoder_hidden_states, *args, loudness=1.0, **kwargs):
        result = super().forward(sample, timestep, encoder_hidden_states, *args, **kwargs)
        result.sample = result.sample * loudness
        return result


def louder():
    unet = tiny_unet()
    unet.__class__ = Louder
    return unet


@pytest.mark.parametrize("rule", ["polynomial", "aligned", "chebyshev"])
def test_another_forward_of_the_unet_runs_in_whole_calls(rule):
    unet = tiny_unet()
    unet.forward = autocast_like(unet.forward)
    stock = generation(unet)
    dato.apply_patch(unet, whole(unet))
    assert torch.equal(generation(unet), stock)
    dato.apply_patch(unet, Schedule([12, 1, 12, 0], orders=0, forecast=rule))
    with pytest.warns(UserWarning, match="another forward .*autocast_like.*runs in whole calls"):
        ours = generation(unet)
    assert torch.equal(ours[0], stock[0]) and torch.equal(ours[2], stock[2])
    assert (ours[1] - stock[1]).abs().mean() < 0.5 * stock[1].abs().mean()
    dato.remove_patch(unet)
    assert torch.equal(generation(unet), stock)


def test_hooks_fill_the_cache_as_the_ladder_does():
    unet, plain = louder(), tiny_unet()
    schedule = Schedule([12, 3, 12, 1], orders=[0, 1, 0, 1], forecast="aligned")
    dato.apply_patch(plain, schedule)
    dato.apply_patch(unet, schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(generation(unet), generation(plain), rtol=1e-5, atol=1e-5)


def test_an_argument_of_a_subclass_reaches_it():
    unet = louder()
    stock = generation(unet, loudness=2.0)
    dato.apply_patch(unet, whole(unet))
    assert torch.equal(generation(unet, loudness=2.0), stock)
    dato.apply_patch(unet, Schedule([12, 1, 12, 1]))
    assert torch.equal(generation(unet, loudness=2.0), stock)  # calls that the ladder cannot make are whole


def test_a_forward_is_bound_anew_as_accelerate_does():
    """`accelerator.prepare` wraps `forward.__func__`."""
    unet = tiny_unet()
    dato.apply_patch(unet, Schedule([12, 1, 12, 0]))
    ours = generation(unet)
    unet.forward = types.MethodType(functools.wraps(unet.forward.__func__)(unet.forward.__func__), unet)
    assert torch.equal(generation(unet), ours)
    dato.remove_patch(unet)
    assert torch.equal(generation(unet), generation(tiny_unet()))


def test_accelerator_prepare():
    accelerate = pytest.importorskip("accelerate")
    unet = tiny_unet()
    dato.apply_patch(unet, Schedule([12, 1, 12, 0]))
    ours = generation(unet)
    accelerator = accelerate.Accelerator(cpu=device().type == "cpu", mixed_precision="bf16")
    prepared = accelerator.prepare(unet)
    torch.testing.assert_close(generation(prepared).float(), ours, rtol=0.2, atol=0.2)
    accelerator.free_memory()


@pytest.mark.parametrize("speedup", [None, 2.0])
def test_a_patched_unet_can_be_pickled(make_pipe, speedup):
    pipe = make_pipe()
    schedule = None if speedup else Schedule([12, 1, 12, 0], [0, 0.5, 0, 0])
    dato.apply_patch(pipe, schedule, speedup=speedup)
    unet = pipe.unet
    alone = copy.deepcopy(unet)
    file = io.BytesIO()
    torch.save(unet, file)
    file.seek(0)
    for again in (pickle.loads(pickle.dumps(unet)), torch.load(file, weights_only=False)):
        assert dato.current_schedule(again) is not None
        x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).to(device())
        text = torch.randn(2, 7, unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            a, b = (
                torch.stack([one(x, t, text.to(device())).sample for t in TIMES.to(device())]) for one in (again, alone)
            )
        assert torch.equal(a, b)
        dato.remove_patch(again)
        assert dato.current_schedule(again) is None and "_dato_override" not in again.__dict__


def _draw(pipe):
    torch.set_num_threads(1)
    return draw(pipe, 3)


@pytest.mark.skipif("device().type != 'cpu'")
def test_a_patched_pipeline_goes_to_another_process(make_pipe):
    pipe = dato.apply_patch(make_pipe(), Schedule([12, 1, 12, 0], [0, 0.5, 0, 0]))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        theirs = pool.apply(_draw, (pipe,))
    torch.testing.assert_close(theirs, draw(pipe, 3), rtol=1e-4, atol=1e-4)


def test_export_and_tracing_are_refused():
    unet = dato.apply_patch(tiny_unet(), Schedule([12, 1]))
    x, text = unet_inputs()
    inputs = (x, torch.tensor(500, device=device()), text)
    with pytest.raises(dato.DatoError, match="cannot be exported or traced"):
        torch.jit.trace(unet, inputs, strict=False)
    with pytest.raises(Exception, match="cannot be exported or traced"):
        torch.export.export(unet, inputs, strict=False)


def test_deep_cache_beside_it_is_refused(make_pipe):
    deepcache = pytest.importorskip("DeepCache")
    pipe = make_pipe()
    helper = deepcache.DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=0)
    helper.enable()
    with pytest.raises(dato.DatoError, match="DeepCache is enabled"):
        dato.apply_patch(pipe, Schedule([12, 1, 12, 0]))
    helper.disable()
    dato.apply_patch(pipe, Schedule([12, 1, 12, 0]))
    helper.enable()
    with pytest.raises(dato.DatoError, match="DeepCache is enabled"):
        draw(pipe, 3)
    helper.disable()
    draw(pipe, 3)


def test_tome_beside_pruning_is_refused(make_pipe):
    tomesd = pytest.importorskip("tomesd")
    pipe = tomesd.apply_patch(make_pipe(), ratio=0.5)
    dato.apply_patch(pipe, Schedule([12, 1, 12, 0]))  # caching goes with it
    draw(pipe, 3)
    with pytest.raises(dato.DatoError, match="ToMeSD is enabled"):
        dato.apply_patch(pipe, prune_ratio=0.5)


def test_processors_that_read_every_layer_are_refused_beside_shallow_calls(make_pipe):
    from diffusers.pipelines.ledits_pp.pipeline_leditspp_stable_diffusion import LEDITSCrossAttnProcessor

    pipe = make_pipe()
    name = next(name for name in pipe.unet.attn_processors if "attn2" in name)
    ours = LEDITSCrossAttnProcessor(lambda *args, **kwargs: None, "up", None, None)
    pipe.unet.set_attn_processor({**pipe.unet.attn_processors, name: ours})
    dato.apply_patch(pipe, Schedule([12, 1, 12, 0]))
    with pytest.raises(dato.DatoError, match="LEDITSCrossAttnProcessor reads every attention layer"):
        draw(pipe, 3)
