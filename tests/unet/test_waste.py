"""No waste: kernels and module calls are counted, so that extra work is noticed without a clock."""

from collections import Counter

import pytest
import torch
from conftest import draw, tiny_unet, unet_inputs
from devices import device, randn
from torch.utils._python_dispatch import TorchDispatchMode

import dato
from dato import Schedule
from dato.tokens.selection import select_tokens


class Kernels(TorchDispatchMode):
    """Counts the operations that compute or copy; views of tensors cost a GPU nothing."""

    VIEWS = (
        "view",
        "transpose",
        "permute",
        "expand",
        "slice",
        "select",
        "squeeze",
        "unsqueeze",
        "t",
        "detach",
        "split",
    )
    VIEWS += ("as_strided", "alias", "_unsafe_view", "chunk", "unbind", "split_with_sizes", "_reshape_alias")

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in self.VIEWS:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


def kernels(unet, schedule, **options):
    """Kernels of each call of one generation; schedule None: stock, three calls."""
    x, text = unet_inputs()
    counts = []
    if schedule is not None:
        dato.apply_patch(unet, schedule, **options)
    times = 990 - 90 * torch.arange(3 if schedule is None else len(schedule), device=device())
    with torch.no_grad():
        for time in times:
            with Kernels() as counter:
                unet(x, time, text)
            counts.append(counter.names)
    dato.remove_patch(unet)
    return counts


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_whole_call_launches_what_stock_launches(kind):
    unet, rungs = tiny_unet(kind), 12 if kind == "sd" else 9
    stock = kernels(unet, None)
    ours = kernels(unet, Schedule([rungs, rungs, 1, rungs, 0, rungs], rungs=rungs))
    assert ours[0] == ours[1] == ours[3] == ours[5] == stock[1]


def test_depth_zero_hands_back_the_tensor_or_its_forecast():
    unet = tiny_unet()
    assert not kernels(unet, Schedule([12, 12, 0, 0]))[-1]
    assert kernels(unet, Schedule([12, 12, 0, 0], orders=1))[-1] == {"lerp": 1}
    assert kernels(unet, Schedule([12, 12, 12, 0], orders=2))[-1].total() <= 4


def test_a_forecast_costs_a_rung_one_kernel():
    reuse, line = (kernels(tiny_unet(), Schedule([12, 12, 1], orders=order))[-1] for order in (0, 1))
    assert line - reuse == {"lerp": 1} and not reuse - line


def test_a_shallow_call_runs_its_rungs_only():
    unet, ran = tiny_unet(), []
    for name, module in unet.named_modules():
        if type(module).__name__ in ("ResnetBlock2D", "Transformer2DModel", "Downsample2D", "Upsample2D"):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    kernels(unet, Schedule([12, 3]))
    down = ["down_blocks.0.resnets.0", "down_blocks.0.attentions.0", "down_blocks.0.resnets.1"]
    down += ["down_blocks.0.attentions.1"]
    up = [f"up_blocks.3.{part}.{i}" for i in range(3) for part in ("resnets", "attentions")]
    assert ran[-len(down + up) :] == down + up


def test_pruning_gathers_once_in_and_once_out():
    unet = tiny_unet()
    plain, pruned = (kernels(unet, Schedule([12, 12], ratio))[-1] for ratio in (0, [0, 0.5]))
    more = pruned - plain
    # One choice a call, and two gathers for each of the five blocks at the highest resolution.
    with Kernels() as choice:
        select_tokens(randn(2, 256, 8), (16, 16), 128)
    assert pruned["index_select"] - choice.names["index_select"] == 10
    assert more.total() <= choice.names.total() + 10 * 4 + 8
    assert choice.names.total() <= 80


@pytest.mark.parametrize("forecast", ["polynomial", "aligned", "chebyshev"])
def test_the_device_never_waits_for_the_host(make_pipe, forecast):
    """Reading a value of a tensor stops a GPU: the timesteps are read once a generation, and nothing else."""
    pipe = make_pipe()
    pruning = {"score": "dato", "recover_from": "past", "similarity": "local"}
    schedule = Schedule([12, 12, 0, 3, 1, 12, 0, 2, 1], 0.5, 1, forecast=forecast, pruning=dato.Pruning(**pruning))
    with Kernels() as stock:
        draw(pipe, 8)
    dato.apply_patch(pipe, schedule)
    with Kernels() as ours:
        draw(pipe, 8)
    waits = ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero")
    assert all(ours.names[name] <= stock.names[name] for name in waits)
