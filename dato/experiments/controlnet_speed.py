"""What a ControlNet costs beside a UNet that runs a schedule, whole or following it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from dato.prediction.flops import example_inputs
from dato.schedule import Schedule
from dato.unet.patch import patched
from dato.utils.timing import Stopwatch


@dataclass
class _Pair:
    """What of a pipeline is patched."""

    unet: UNet2DConditionModel
    controlnet: ControlNetModel


def time_control(
    unet: UNet2DConditionModel,
    schedules: Mapping[str, Schedule],
    sample_shape: tuple[int, int, int, int],
    rounds: int,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Time loops of ControlNet and UNet calls, in turn, `rounds` times after a first that warms up.

    The ControlNet has the UNet's size and weights, and zeros where a trained one has learned: time does not depend on
    that.

    Args:
        unet: The UNet.
        schedules: By name, all of as many calls.
        sample_shape: (B, C, H, W) of the UNet's input.
        rounds: How often.
        progress: Called after each loop.

    Returns:
        For stock and each schedule, with the ControlNet whole and following, and without it: `method`, `call_ms` (the
        mean call's, ControlNet and UNet) and `speedup` over stock of the same kind, with a ControlNet or without.
    """
    net = ControlNetModel.from_unet(unet).to(unet.device, unet.dtype).eval()
    inputs = example_inputs(unet, sample_shape)
    batch, _, height, width = sample_shape
    strides = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    image = torch.rand(batch, 3, height * strides, width * strides, device=unet.device, dtype=unet.dtype)
    both = _Pair(unet, net)
    calls = len(next(iter(schedules.values())))

    def loop(controlled: bool) -> None:
        for call in range(calls):
            time = 999.0 * (1 - call / calls)
            residuals = {}
            if controlled:
                down, mid = net(timestep=time, controlnet_cond=image, return_dict=False, **inputs)
                residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            unet(timestep=time, **inputs, **residuals)

    ways = [("stock", None, False, None), ("stock", None, True, None)]
    for name, schedule in schedules.items():
        ways += [(name, schedule, False, None), (name, schedule, True, None), (name, schedule, True, "follow")]
    times: list[list[float]] = [[] for _ in ways]
    watch = Stopwatch(unet.device)
    with torch.no_grad():
        for turn in range(rounds + 1):
            for (_, schedule, controlled, follow), found in zip(ways, times, strict=True):
                running = nullcontext() if schedule is None else patched(both, schedule, controlnet=follow)
                with running:
                    watch.start()
                    loop(controlled)
                    watch.stop()
                (ms,) = watch.read()
                if turn:
                    found.append(ms / calls)
                progress()
    medians = [statistics.median(found) for found in times]
    kinds = {(False, None): "no ControlNet", (True, None): "ControlNet", (True, "follow"): "ControlNet that follows"}
    return [
        {
            "method": f"{name}, {kinds[controlled, follow]}",
            "call_ms": ms,
            "speedup": medians[1 if controlled else 0] / ms,
        }
        for (name, _, controlled, follow), ms in zip(ways, medians, strict=True)
    ]
