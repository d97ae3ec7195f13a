"""Speed measured side by side: methods, calls and the choice of tokens, in one process, in turn, by medians.

Nothing here depends on what the weights are, so models with random weights (`dato.generation.random_models`) will do.
The speed-up that the remaining FLOPs allow stands beside each measured one; their quotient is the *efficiency*: 1 means
that nothing but arithmetic costs time.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from dato.errors import DatoError
from dato.evaluation.methods import Peer, tomesd_peer
from dato.experiments.plain_selection import plain_select_tokens
from dato.generation.sampling import Generated, Sampling, generate
from dato.prediction.flops import call_flops, example_inputs, schedule_flops
from dato.pruning import Pruning
from dato.schedule import Schedule
from dato.tokens.selection import select_tokens
from dato.unet.compiled import CompiledCalls
from dato.unet.ladder import Ladder
from dato.unet.patch import patched
from dato.utils.memory import peak_memory
from dato.utils.timing import Stopwatch, forward_times


@dataclass(frozen=True)
class Method:
    """One way of running a pipeline.

    Attributes:
        name: What tables call it.
        steps: Steps of the sampler.
        schedule: What is computed, for counting FLOPs; None: they are not known.
        apply: Makes a pipeline run it for the length of a `with` block.
    """

    name: str
    steps: int
    schedule: Schedule | None
    apply: Callable[[DiffusionPipeline], AbstractContextManager]


def ours(name: str, steps: int, schedule: Schedule, compiled: CompiledCalls | None = None) -> Method:
    """A schedule, eager or with compiled calls."""
    return Method(name, steps, schedule, partial(patched, schedule=schedule, compile=compiled or False))


def stock(name: str, steps: int, schedule: Schedule, forward: Callable | None = None) -> Method:
    """The pipeline as it is; `forward`, where given, is the UNet's own, compiled."""

    @contextlib.contextmanager
    def apply(pipe: DiffusionPipeline) -> Iterator[None]:
        if forward is not None:
            pipe.unet.forward = forward
        try:
            yield
        finally:
            if forward is not None:
                del pipe.unet.forward

    return Method(name, steps, schedule, apply)


def compiled_forward(unet: UNet2DConditionModel, **options: Any) -> Callable:
    """Stock's forward as users compile it: in one graph, of fixed shapes."""
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
    """Generate one batch with each method, in turn, `rounds` times after a first that warms up.

    Args:
        pipe: The pipeline.
        methods: The first is stock, which the others are compared with.
        prompts: One batch.
        sampling: How; `Method.steps` takes the place of its steps.
        rounds: How often.
        memory: Measure peak memory too, in one generation more.
        progress: Called after each generation.

    Returns:
        For each method: `image_ms` (end to end, per image), `loop_ms` (sampler and UNet), `unet_ms`, their `speedup`
        and `loop_speedup` over stock, `allowed` (by FLOPs), `efficiency` (of the loop) and `peak_mb`.
    """
    runs: list[list[Generated]] = [[] for _ in methods]
    peaks: list[float | None] = [None for _ in methods]

    def once(method: Method) -> Generated:
        with method.apply(pipe):
            result = generate(pipe, prompts, replace(sampling, steps=method.steps, batch_size=len(prompts)))
        progress()
        return result

    for turn in range(rounds + 1):
        for method, results in zip(methods, runs, strict=True):
            result = once(method)
            if turn:
                results.append(result)
    for index, method in enumerate(methods if memory else ()):
        with peak_memory(pipe.unet.device) as peak:
            once(method)
        peaks[index] = peak.bytes / 2**20

    shape = sample_shape(pipe, sampling, len(prompts))
    flops = [None if m.schedule is None else schedule_flops(pipe.unet, m.schedule, sample_shape=shape) for m in methods]
    rows = []
    for method, results, computed, peak in zip(methods, runs, flops, peaks, strict=True):
        row: dict[str, Any] = {"method": method.name, "steps": method.steps}
        row["image_ms"] = statistics.median(r.latency_ms[0] for r in results)
        row["loop_ms"] = statistics.median(r.loop_ms[0] for r in results)
        row["unet_ms"] = statistics.median(r.unet_ms[0] for r in results)
        first = rows[0] if rows else row
        row["speedup"] = first["image_ms"] / row["image_ms"]
        row["loop_speedup"] = first["loop_ms"] / row["loop_ms"]
        row["allowed"] = None if computed is None else flops[0] / computed
        row["efficiency"] = None if computed is None else row["loop_speedup"] / row["allowed"]
        row["peak_mb"] = peak
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
    steps: CompiledCalls | None = None,
    forward: Callable | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Time one UNet call of stock, of ToMeSD, and of every depth and ratio, in turn, `rounds` times.

    Args:
        pipe: The pipeline; only its UNet runs.
        depths: Depths, the whole UNet's among them or not.
        ratios: Prune ratios; ToMeSD runs with those above 0.
        sampling: Says the latents' shape: size, batch, guidance.
        rounds: How often, after a first time that warms up.
        pruning: What the ratios are meant with.
        steps: Compiled calls of this UNet, to be used.
        forward: Stock's forward, compiled.
        progress: Called after each round.

    Returns:
        For each call: `method` ("stock", "ToMeSD 50%", "dato"), `depth`, `ratio`, `call_ms`, `speedup` over stock,
        `allowed` (by FLOPs), `efficiency`.
    """
    unet, rungs = pipe.unet, len(Ladder(pipe.unet))
    shape = sample_shape(pipe, sampling, sampling.batch_size)
    inputs = example_inputs(unet, shape)
    sample = inputs.pop("sample")  # ToMeSD looks for it in the first place
    kinds = [(depth, ratio) for depth in sorted(depths, reverse=True) for ratio in (ratios if depth else ratios[:1])]
    pruning = pruning or Pruning()
    # A first whole call fills the cache; from then on every kind follows upon every other.
    schedule = Schedule((rungs, *(d for d, _ in kinds)), (0.0, *(r for _, r in kinds)), rungs=rungs, pruning=pruning)
    whole = Schedule.full(1, rungs=rungs)
    peers = (
        {ratio: peer for ratio in ratios if ratio and (peer := tomesd_peer(ratio, whole))} if forward is None else {}
    )
    times: dict[tuple[str, int, float], list[float]] = {}

    def run(timestep: float) -> None:
        unet(sample, timestep, **inputs)

    with torch.no_grad(), forward_times(unet) as watch:
        for turn in range(rounds + 1):
            found: list[tuple[str, int, float]] = [("stock", rungs, 0.0)]
            with stock("", 1, whole, forward).apply(pipe):
                run(999)
            for ratio, peer in peers.items():
                with peer.apply(pipe):
                    run(999)
                found.append((peer.name, rungs, ratio))
            with patched(unet, schedule, compile=steps or False):
                for call in range(len(schedule)):
                    run(999 - call)
            found += [("", 0, 0.0), *(("dato", depth, ratio) for depth, ratio in kinds)]
            for key, ms in zip(found, watch.read(), strict=True):
                if turn and key[0]:
                    times.setdefault(key, []).append(ms)
            progress()

    medians = {key: statistics.median(values) for key, values in times.items()}
    base_ms = medians["stock", rungs, 0.0]
    base = call_flops(unet, rungs, sample_shape=shape, pruning=pruning)
    rows = []
    for (method, depth, ratio), ms in medians.items():
        row = {"method": method, "depth": depth, "ratio": ratio, "call_ms": ms, "speedup": base_ms / ms}
        if method in ("stock", "dato") and depth:
            row["allowed"] = base / call_flops(unet, depth, ratio, sample_shape=shape, pruning=pruning)
            row["efficiency"] = row["speedup"] / row["allowed"]
        rows.append(row)
    return rows


def time_selection(
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    *,
    size: int = 64,
    channels: int = 320,
    batches: Sequence[int] = (2, 8),
    ratio: float = 0.5,
) -> list[dict[str, Any]]:
    """Time the choice of tokens alone, in turn: ours, ToMeSD's matching, and SiTo's steps with the N x N matrix.

    Args:
        device: Where.
        dtype: Of the tokens.
        rounds: How often, after a first time that warms up.
        size: Side of the grid of tokens: N = size * size.
        channels: C.
        batches: Batch sizes B.
        ratio: Share of tokens to prune.

    Returns:
        For each batch size and method `select_ms`, `peak_mb` (extra memory), and how they compare with the plain steps:
        `speedup` and `memory_share`.
    """
    rows = []
    watch = Stopwatch(device)
    for batch in batches:
        # Tokens that resemble their neighbours, as a UNet's do.
        image = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))
        x = torch.nn.functional.avg_pool2d(image, 3, 1, 1).flatten(2).transpose(1, 2).to(device, dtype).contiguous()
        ways = _selections(x, size, int(size * size * ratio))
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name, select in ways.items():
                watch.start()
                select()
                watch.stop()
                measured = watch.read()
                if turn:
                    times[name] += measured
        peaks = {}
        for name, select in ways.items():
            with peak_memory(device) as peak:
                select()
            peaks[name] = peak.bytes / 2**20
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, ms in medians.items():
            rows.append(
                {
                    "method": name,
                    "batch": batch,
                    "tokens": size * size,
                    "channels": channels,
                    "select_ms": ms,
                    "peak_mb": peaks[name],
                    "speedup": medians["plain N x N"] / ms,
                    "memory_share": peaks[name] / peaks["plain N x N"],
                }
            )
    return rows


def _selections(x: Tensor, size: int, count: int) -> dict[str, Callable[[], object]]:
    grid = (size, size)
    ways: dict[str, Callable[[], object]] = {
        "plain N x N": lambda: plain_select_tokens(x, grid, count),
        "dato": lambda: select_tokens(x, grid, count),
        "dato, local": lambda: select_tokens(x, grid, count, similarity="local"),
    }
    with contextlib.suppress(ImportError):
        from tomesd.merge import bipartite_soft_matching_random2d as match

        generator = torch.Generator(x.device).manual_seed(0)
        ways["ToMeSD"] = lambda: match(x, size, size, 2, 2, count, generator=generator)
    return ways


def sample_shape(pipe: DiffusionPipeline, sampling: Sampling, images: int) -> tuple[int, int, int, int]:
    """(B, C, H, W) of the UNet's input."""
    side, scale = pipe.unet.config.sample_size, pipe.vae_scale_factor
    if not isinstance(side, int):
        raise DatoError(f"give --height and --width: this UNet's sample size is {side}")
    h, w = ((pixels or side * scale) // scale for pixels in (sampling.height, sampling.width))
    return images * (2 if sampling.guidance_scale > 1 else 1), pipe.unet.config.in_channels, h, w


def peer(method: Peer, steps: int, computes: Schedule | None) -> Method:
    """Another package's method; `computes` is what remains of the FLOPs, where a schedule says so."""
    return Method(method.name, steps, computes, method.apply)
