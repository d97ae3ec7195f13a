"""What a ControlNet costs beside a UNet that runs a schedule: whole at every call, or following the schedule."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from dato.evaluation.methods import STOCK
from dato.prediction.flops import example_inputs
from dato.schedule import Schedule
from dato.unet.patch import patched
from dato.utils.timing import Stopwatch


@dataclass
class _Pair:
    """The parts of a pipeline that are patched."""

    unet: UNet2DConditionModel
    controlnet: ControlNetModel


@dataclass(frozen=True)
class _Case:
    """One thing to time.

    Attributes:
        name: Of the schedule.
        schedule: None: stock.
        controlled: Whether the ControlNet runs.
        follow: As `controlnet` of `patched`: "follow", or None for a whole ControlNet at every call.
    """

    name: str
    schedule: Schedule | None
    controlled: bool
    follow: str | None = None

    @property
    def title(self) -> str:
        if not self.controlled:
            return f"{self.name}, no ControlNet"
        return f"{self.name}, ControlNet{' that follows' if self.follow else ''}"


def time_control(
    unet: UNet2DConditionModel,
    schedules: Mapping[str, Schedule],
    sample_shape: tuple[int, int, int, int],
    rounds: int,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Time loops of ControlNet and UNet calls, in turns: once to warm up, then `rounds` times.

    The ControlNet has the UNet's size and weights. Its output is zero, as before any training, which makes no
    difference to the time.

    Args:
        unet: The UNet.
        schedules: Name -> schedule, all of the same number of calls.
        sample_shape: (B, C, H, W) of the UNet's input.
        rounds: Number of timed loops of each kind.
        progress: Called after each loop.

    Returns:
        For stock and each schedule, without a ControlNet, with a whole one, and (schedules only) with one that follows:
        `method`, `call_ms` (mean over calls, ControlNet and UNet) and `speedup` over stock, which has a ControlNet too
        if the schedule ran with one.
    """
    both = _Pair(unet, ControlNetModel.from_unet(unet).to(unet.device, unet.dtype).eval())
    calls = len(next(iter(schedules.values())))
    cases = [_Case(STOCK, None, False), _Case(STOCK, None, True)]
    for name, schedule in schedules.items():
        cases += [_Case(name, schedule, False), _Case(name, schedule, True), _Case(name, schedule, True, "follow")]
    loop = _loop_of(both, sample_shape, calls)
    times: dict[_Case, list[float]] = {case: [] for case in cases}
    watch = Stopwatch(unet.device)
    with torch.no_grad():
        for turn in range(rounds + 1):
            for case in cases:
                patch = nullcontext() if case.schedule is None else patched(both, case.schedule, controlnet=case.follow)
                with patch:
                    watch.start()
                    loop(case.controlled)
                    watch.stop()
                (ms,) = watch.read()
                if turn:
                    times[case].append(ms / calls)
                progress()
    medians = {case: statistics.median(values) for case, values in times.items()}
    stock_ms = {case.controlled: ms for case, ms in medians.items() if case.schedule is None}
    return [
        {"method": case.title, "call_ms": ms, "speedup": stock_ms[case.controlled] / ms} for case, ms in medians.items()
    ]


def _loop_of(both: _Pair, sample_shape: tuple[int, int, int, int], calls: int) -> Callable[[bool], None]:
    """Return a function that makes `calls` calls, with the ControlNet or without."""
    unet, net = both.unet, both.controlnet
    inputs = example_inputs(unet, sample_shape)
    batch, _, height, width = sample_shape
    strides = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    image = torch.rand(batch, 3, height * strides, width * strides, device=unet.device, dtype=unet.dtype)

    def loop(controlled: bool) -> None:
        for call in range(calls):
            time = 999.0 * (1 - call / calls)
            residuals = {}
            if controlled:
                down, mid = net(timestep=time, controlnet_cond=image, return_dict=False, **inputs)
                residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            unet(timestep=time, **inputs, **residuals)

    return loop
