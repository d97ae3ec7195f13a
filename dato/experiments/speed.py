"""Speed of methods and of single UNet calls, measured in turns in one process; medians count.

The weights do not matter to speed, so models with random weights (`dato.generation.random_models`) will do. Beside each
measured speed-up stands the one that the remaining FLOPs allow. Their quotient is the *efficiency*: 1 means that only
arithmetic costs time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from dato.evaluation.methods import Method, stock_method, tomesd_method
from dato.generation.sampling import Generated, Sampling, generate, image_size
from dato.prediction.flops import call_flops, example_inputs, schedule_flops
from dato.pruning import Pruning
from dato.schedule import Schedule
from dato.unet.compiled import CompiledCalls
from dato.unet.ladder import Ladder
from dato.unet.patch import patched
from dato.utils.memory import peak_memory
from dato.utils.timing import forward_times

Kind = tuple[str, int, float]  # (method, depth, ratio) of a call


def compiled_forward(unet: UNet2DConditionModel, **options: Any) -> Callable:
    """Return stock's forward as users compile it: in one graph, of fixed shapes. Options as for `torch.compile`."""
    return torch.compile(type(unet).forward.__get__(unet), fullgraph=True, dynamic=False, **options)


def time_images(
    pipe: DiffusionPipeline,
    methods: Sequence[Method],
    prompts: Sequence[str],
    sampling: Sampling,
    rounds: int,
    *,
    memory: bool = True,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Generate one batch with each method, in turns: once to warm up, then `rounds` times.

    Args:
        pipe: The pipeline.
        methods: The first one is stock, with which the others are compared.
        prompts: One batch.
        sampling: How images are generated. `Method.steps` replaces its steps.
        rounds: Number of timed generations of each method.
        memory: Whether to measure peak memory, too, in one further generation.
        progress: Called after each generation.

    Returns:
        For each method: `image_ms` (end to end, per image), `loop_ms` (sampler and UNet), `unet_ms`, their `speedup`
        and `loop_speedup` over stock, `allowed` (by FLOPs), `efficiency` (of the loop) and `peak_mb`. The last three
        are None if they are not known.
    """

    def once(method: Method) -> Generated:
        steps = sampling.steps if method.steps is None else method.steps
        with method.apply(pipe):
            result = generate(pipe, prompts, replace(sampling, steps=steps, batch_size=len(prompts)))
        progress()
        return result

    generations: list[list[Generated]] = [[] for _ in methods]
    for turn in range(rounds + 1):
        for method, timed in zip(methods, generations, strict=True):
            result = once(method)
            if turn:
                timed.append(result)
    peaks: list[float | None] = [None] * len(methods)
    for index, method in enumerate(methods if memory else ()):
        with peak_memory(pipe.unet.device) as peak:
            once(method)
        peaks[index] = peak.bytes / 2**20
    shape = sample_shape(pipe, sampling, len(prompts))
    rows: list[dict[str, Any]] = []
    for method, timed, peak_mb in zip(methods, generations, peaks, strict=True):
        flops = schedule_flops(pipe.unet, method.schedule, sample_shape=shape) if method.flops_known else None
        steps = sampling.steps if method.steps is None else method.steps
        row: dict[str, Any] = {"method": method.name, "steps": steps}
        row["image_ms"] = statistics.median(g.latency_ms[0] for g in timed)
        row["loop_ms"] = statistics.median(g.loop_ms[0] for g in timed)
        row["unet_ms"] = statistics.median(g.unet_ms[0] for g in timed)
        if not rows:
            stock, stock_flops = row, flops
        row["speedup"] = stock["image_ms"] / row["image_ms"]
        row["loop_speedup"] = stock["loop_ms"] / row["loop_ms"]
        row["allowed"] = None if flops is None else stock_flops / flops
        row["efficiency"] = None if flops is None else row["loop_speedup"] / row["allowed"]
        row["peak_mb"] = peak_mb
        rows.append(row)
    return rows


def time_calls(
    pipe: DiffusionPipeline,
    depths: Sequence[int],
    ratios: Sequence[float],
    sampling: Sampling,
    rounds: int,
    *,
    pruning: Pruning | None = None,
    compiled: CompiledCalls | None = None,
    forward: Callable | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Time one UNet call of stock, of ToMeSD, and of every depth and ratio, in turns.

    Args:
        pipe: The pipeline. Only its UNet runs.
        depths: Depths of the calls.
        ratios: Prune ratios of the calls. ToMeSD runs with those above 0.
        sampling: Says the shape of the latents: size, batch, guidance.
        rounds: Number of timed rounds, after one to warm up.
        pruning: The settings of token pruning that belong to the ratios.
        compiled: Compiled calls of this UNet, for dato's calls; None: eager ones.
        forward: Stock's forward, compiled; None: the eager one. With it ToMeSD, which stays eager, is left out.
        progress: Called after each round.

    Returns:
        For each call: `method` ("stock", "ToMeSD 50%", "dato"), `depth`, `ratio`, `call_ms` (of the batch), `speedup`
        over stock; for stock and dato also `allowed` (by FLOPs) and `efficiency`.
    """
    pruning, rungs = pruning or Pruning(), len(Ladder(pipe.unet))
    shape = sample_shape(pipe, sampling, sampling.batch_size)
    kinds = [(depth, ratio) for depth in sorted(depths, reverse=True) for ratio in (ratios if depth else ratios[:1])]
    whole = Schedule.full(1, rungs=rungs)
    others = [] if forward is not None else [(ratio, tomesd_method(ratio, whole)) for ratio in ratios if ratio]
    singles = [("stock", 0.0, stock_method(whole, forward=forward))]
    singles += [(method.name, ratio, method) for ratio, method in others if method is not None]
    turn = _Turn(pipe, shape, kinds, pruning, singles, compiled)
    times: dict[Kind, list[float]] = {kind: [] for kind in turn.kinds if kind is not None}
    with torch.no_grad(), forward_times(pipe.unet) as watch:
        for number in range(rounds + 1):
            turn.run()
            for kind, ms in zip(turn.kinds, watch.read(), strict=True):
                if number and kind is not None:
                    times[kind].append(ms)
            progress()
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    return _call_rows(pipe.unet, medians, shape, pruning)


class _Turn:
    """One turn of `time_calls`: a call of each method, then one of every kind of ours.

    Attributes:
        kinds: What each call of a turn is, in order; None: it is not timed.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        shape: tuple[int, int, int, int],
        kinds: Sequence[tuple[int, float]],
        pruning: Pruning,
        singles: Sequence[tuple[str, float, Method]],
        compiled: CompiledCalls | None,
    ) -> None:
        self._pipe, self._singles, self._compiled = pipe, singles, compiled
        self._inputs = example_inputs(pipe.unet, shape)
        self._sample = self._inputs.pop("sample")  # ToMeSD looks for it among the positional arguments
        rungs = singles[0][2].schedule.rungs
        # The first call is whole and fills the cache. After it the kinds may come in any order.
        self._schedule = Schedule(
            (rungs, *(depth for depth, _ in kinds)), (0.0, *(ratio for _, ratio in kinds)), rungs=rungs, pruning=pruning
        )
        self.kinds: list[Kind | None] = [(name, rungs, ratio) for name, ratio, _ in singles]
        self.kinds += [None, *(("dato", depth, ratio) for depth, ratio in kinds)]

    def run(self) -> None:
        for _, _, method in self._singles:
            with method.apply(self._pipe):
                self._call(999)
        with patched(self._pipe.unet, self._schedule, compile=self._compiled or False):
            for call in range(len(self._schedule)):
                self._call(999 - call)

    def _call(self, timestep: float) -> None:
        self._pipe.unet(self._sample, timestep, **self._inputs)


def _call_rows(
    unet: UNet2DConditionModel, medians: dict[Kind, float], shape: tuple[int, int, int, int], pruning: Pruning
) -> list[dict[str, Any]]:
    stock_kind, stock_ms = next(iter(medians.items()))
    stock_flops = call_flops(unet, stock_kind[1], sample_shape=shape, pruning=pruning)
    rows = []
    for (method, depth, ratio), ms in medians.items():
        row = {"method": method, "depth": depth, "ratio": ratio, "call_ms": ms, "speedup": stock_ms / ms}
        if method in ("stock", "dato") and depth:
            row["allowed"] = stock_flops / call_flops(unet, depth, ratio, sample_shape=shape, pruning=pruning)
            row["efficiency"] = row["speedup"] / row["allowed"]
        rows.append(row)
    return rows


def sample_shape(pipe: DiffusionPipeline, sampling: Sampling, images: int) -> tuple[int, int, int, int]:
    """Return (B, C, H, W) of the UNet's input for this many images.

    Raises:
        DatoError: if the sampling gives no size and the model has none of its own.
    """
    height, width = (pixels // pipe.vae_scale_factor for pixels in image_size(pipe, sampling))
    return images * (2 if sampling.guidance_scale > 1 else 1), pipe.unet.config.in_channels, height, width
