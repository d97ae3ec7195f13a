"""Overriding a forward that other libraries override too: in any order the patch runs, and everything is restored."""

import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import UNet2DConditionModel
from tiny_pipelines import sample, tiny
from which_tests import thorough

import dato
from dato import Schedule
from dato.unet.forward_override import Overridden

SCHEDULE = Schedule([8, 1, 0, 2, 1], rungs=8)
ORDERS = (
    "patch offload",
    "offload patch",
    "compile offload patch",
    "compile patch offload",
    "offload compile patch",
    "patch compile offload",
    "patch offload compile",
    "offload patch compile",
)


@pytest.fixture
def counts(monkeypatch):
    """How often offloading brought the UNet, and how often the patch ran."""
    found = {"offload": 0, "patch": 0}
    bring, run = CpuOffload.pre_forward, dato.unet.patch.Patch._run

    def pre_forward(self, module, *args, **kwargs):
        found["offload"] += isinstance(getattr(module, "_orig_mod", module), UNet2DConditionModel)
        return bring(self, module, *args, **kwargs)

    def counted(self, *args):
        found["patch"] += 1
        return run(self, *args)

    monkeypatch.setattr(CpuOffload, "pre_forward", pre_forward)
    monkeypatch.setattr(dato.unet.patch.Patch, "_run", counted)
    with torch.compiler.set_stance("force_eager"):  # who calls whom is what matters here
        yield found


def prepared(order):
    pipe, kwargs = tiny("SD 1.x")
    for step in order.split():
        if step == "compile":
            pipe.unet = torch.compile(pipe.unet, backend="eager")
        elif step == "offload":
            pipe.enable_model_cpu_offload(device="cpu")
        else:
            dato.apply_patch(pipe, SCHEDULE)
    return pipe, kwargs


@pytest.mark.parametrize("order", [*ORDERS[::3], *thorough(*(o for o in ORDERS if o not in ORDERS[::3]))])
def test_offloading_and_compiling_in_any_order(order, counts):
    pipe, kwargs = prepared(order)
    first = sample(pipe, kwargs)
    assert counts == {"offload": 5, "patch": 5}
    assert torch.equal(sample(pipe, kwargs), first)  # diffusers puts its hooks on anew after every generation
    assert counts == {"offload": 10, "patch": 10}
    dato.remove_patch(pipe)
    assert torch.equal(sample(pipe, kwargs), sample(*tiny("SD 1.x")))
    assert counts == {"offload": 15, "patch": 10}


@pytest.mark.parametrize("order", ORDERS)
def test_a_patch_that_never_ran_leaves_offloading_alone(order, counts):
    pipe, kwargs = prepared(order)
    dato.remove_patch(pipe)
    assert torch.equal(sample(pipe, kwargs), sample(*tiny("SD 1.x")))
    assert counts == {"offload": 5, "patch": 0}


def test_a_second_patch_compiles_as_the_first_did():
    pipe, _ = tiny("SD 1.x")
    pipe.unet.compile(backend="eager")
    for _ in range(2):
        dato.apply_patch(pipe, SCHEDULE)
        assert pipe.unet._dato_patch._compiled_calls is not None
    with dato.patched(pipe, SCHEDULE):
        assert pipe.unet._dato_patch._compiled_calls is not None
    dato.remove_patch(pipe)
    assert pipe.unet._compiled_call_impl is not None


def test_what_was_taken_off_does_not_come_back():
    one, _ = tiny("ControlNet")
    other, _ = tiny("ControlNet")
    other.register_modules(controlnet=one.controlnet)
    for pipe in (one, other):
        dato.apply_patch(pipe, SCHEDULE, controlnet="follow")
    dato.remove_patch(one)
    assert isinstance(one.controlnet.forward, Overridden) and "forward" in one.controlnet.__dict__
    dato.remove_patch(other)
    assert "forward" not in one.controlnet.__dict__


@pytest.mark.parametrize("compile", ["reduce-overhead", 3])
def test_what_is_no_way_to_compile_is_refused(compile):
    with pytest.raises(dato.DatoError, match="options, or CompiledCalls"):
        dato.apply_patch(tiny("SD 1.x").pipe, SCHEDULE, compile=compile)
