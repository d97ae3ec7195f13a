"""`benchmark`: how fast everything is, beside stock and the peers, as tables, JSON and a bar chart."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import asdict, replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import DiffusionPipeline
from rich import box
from rich.table import Table

from dato.cli import options as opt
from dato.cli.console import err, out, progress
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.evaluation.methods import deepcache_peer, tomesd_peer
from dato.experiments import speed as bench
from dato.experiments.controlnet_speed import time_control
from dato.front import Front
from dato.generation.pipelines import load_pipeline
from dato.generation.prompts import read_prompts
from dato.generation.sampling import Sampling
from dato.point import Point
from dato.prediction.latency_check import TableCheck, check_table, measurer, random_schedules
from dato.prediction.latency_measure import measure_table
from dato.pruning import Pruning
from dato.report.tables import speed_chart
from dato.samplers import num_calls
from dato.schedule import Schedule
from dato.strategies import load_strategy
from dato.unet.compiled import CompiledCalls
from dato.unet.ladder import Ladder
from dato.utils.files import dumps, write_atomic
from dato.utils.hardware import hardware, versions

PARTS = ("calls", "images", "table", "control", "selection")
PEERS = ("DeepCache", "tomesd")
PROMPT = "red apple on a blue background"


def run_benchmark(
    model: opt.Model = EMBEDDED,
    config: opt.Config = None,
    parts: Annotated[
        str | None,
        typer.Option(
            help=f"What to measure: {', '.join(PARTS)} (calls at each depth and ratio; images with each method; 20 "
            "random schedules against the latency table; schedules beside a ControlNet; the choice of tokens alone).",
            show_default="all; with --compile without table",
        ),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Stock and our schedules with torch.compile; the others stay eager.")
    ] = False,
    compile_mode: Annotated[
        str | None, typer.Option(help="torch.compile's mode, as reduce-overhead.", show_default="its default")
    ] = None,
    strategies: Annotated[
        str | None,
        typer.Option(
            help="Fronts and schedules to run too, by comma; of a front its knee and its fastest point.",
            show_default="emoji-sd: emoji-sd-depth",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Sampler steps.")] = 50,
    scheduler: Annotated[
        str | None, typer.Option(help="Sampler.", show_default="the model's own; emoji-sd: dpm++2m")
    ] = None,
    guidance_scale: Annotated[float, typer.Option(min=1, help="Classifier-free guidance; 1 is off.")] = 3.0,
    height: opt.Height = None,
    width: opt.Width = None,
    batch_size: Annotated[str, typer.Option("--batch-size", help="Images per generation, as in 1,4.")] = "1",
    rounds: Annotated[int, typer.Option(min=1, help="Measure everything this often, in turn; the median counts.")] = 5,
    depths: Annotated[str | None, typer.Option(help="Depths of the calls, as in 1,3,12.", show_default="all")] = None,
    ratios: Annotated[str, typer.Option(help="Prune ratios of the calls.")] = "0,0.3,0.5,0.7",
    similarity: Annotated[str, typer.Option(help="How our pruning compares tokens: global or local.")] = "global",
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in one generation more for each method.")] = True,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="JSON file.", show_default="benchmarks/<hardware>-<model>-<mode>-<date>.json"),
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="Write the bar chart of the methods to this PNG.")] = None,
) -> None:
    """Measure speed: stock, ToMeSD, DeepCache and dato, side by side in one process.

    With no option it measures the embedded model. sd15-random, sd21-random and sdxl-random are the published
    configurations with random weights, for time does not depend on weights.
    """
    chosen = parts.split(",") if parts else [part for part in PARTS if part != "table" or not compile]
    for part in chosen:
        if part not in PARTS:
            raise DatoError(f"--parts: unknown part {part!r}; known are {', '.join(PARTS)}")
    batches = opt.whole_numbers("--batch-size", batch_size)
    if min(batches) < 1:
        raise DatoError(f"--batch-size {batch_size!r}: the numbers must be at least 1")
    if compile and "table" in chosen:
        raise DatoError("--compile: the latency table is of eager calls; leave table out of --parts")
    if chart is not None and "images" not in chosen:
        raise DatoError("--chart shows the methods: it needs --parts images")
    options = {} if compile_mode is None else {"mode": compile_mode}
    if options and not compile:
        raise DatoError("--compile-mode needs --compile")
    sampling = Sampling(steps, guidance_scale, height, width)
    where = opt.device_of(device)
    kind = opt.dtype_of(dtype, where)
    pruning = Pruning(similarity=similarity)
    loaded = [name for name in (strategies or ("emoji-sd-depth" if model == EMBEDDED else "")).split(",") if name]
    fronts = {name: load_strategy(name) for name in loaded}
    path = out_file or Path("benchmarks") / _file_name(where, model, compile)
    installed = [package for package in PEERS if find_spec(package)]

    conditions = {
        "command": shlex.join(["python", "scripts/benchmark.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "model": model,
        **({} if config is None else {"config": config}),
        "compiled": compile,
        "compile_mode": compile_mode,
        "dtype": str(kind).removeprefix("torch."),
        "steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "rounds": rounds,
        "pruning": pruning.to_dict(),
        "hardware": hardware(where),
        "versions": versions("dato", "torch", "diffusers", *installed),
    }
    if missing := [package for package in PEERS if package not in installed]:
        err.print(f"Not installed, so left out: {', '.join(missing)} (pip install -e '.\\[bench]')")
    found: dict[str, Any] = {}

    def save() -> None:  # after every part, so that none is lost if a later one fails
        write_atomic(path, dumps({"format": "dato.benchmark", "version": 1, "conditions": conditions, **found}))

    if {"calls", "images", "table", "control"} & set(chosen):
        with err.status(f"Loading {model}"):
            sampler = scheduler or ("dpm++2m" if model == EMBEDDED else None)
            pipe = load_pipeline(model, device=where, dtype=kind, scheduler=sampler, config=config)
        rungs = len(Ladder(pipe.unet))
        some = opt.numbers("--depths", depths, int) or list(range(rungs + 1))
        if not set(some) <= set(range(rungs + 1)):
            raise DatoError(f"--depths: this UNet's depths go from 0 to {rungs}")
        shares = opt.numbers("--ratios", ratios, float)
        forward = compiled = None
        if compile:
            # For all methods alike, and once: weights that move between two layouts would not time the method.
            pipe.unet.to(memory_format=torch.channels_last)
            forward, compiled = bench.compiled_forward(pipe.unet, **options), CompiledCalls(pipe.unet, **options)
        for batch in batches:
            sized = replace(sampling, batch_size=batch)
            if "calls" in chosen:
                with progress() as bar:
                    task = bar.add_task(f"Calls, batch {batch}", total=rounds + 1)
                    rows = bench.time_calls(
                        pipe,
                        some,
                        shares,
                        sized,
                        rounds,
                        pruning=pruning,
                        steps=compiled,
                        forward=forward,
                        progress=lambda bar=bar, task=task: bar.advance(task),
                    )
                found.setdefault("calls", []).extend({"batch": batch, **row} for row in rows)
                save()
                out.print(_table(f"One UNet call, batch {batch}", rows, _CALLS))
            if "images" in chosen:
                methods = _methods(pipe, sampling, fronts, pruning, forward, compiled)
                prompts = ((read_prompts(None, None) if model == EMBEDDED else [PROMPT]) * batch)[:batch]
                with progress() as bar:
                    task = bar.add_task(f"Images, batch {batch}", total=len(methods) * (rounds + 1 + memory))
                    rows = bench.time_images(
                        pipe,
                        methods,
                        prompts,
                        sampling,
                        rounds,
                        memory=memory,
                        progress=lambda bar=bar, task=task: bar.advance(task),
                    )
                found.setdefault("images", []).extend({"batch": batch, **row} for row in rows)
                save()
                out.print(_table(f"Per image, batch {batch}", rows, _IMAGES))
        if "table" in chosen:
            check = _check_table(pipe, replace(sampling, batch_size=batches[0]), shares, pruning, rounds)
            found["table"] = [asdict(pair) for pair in check.pairs]
            save()
            out.print(f"{check}", highlight=False, soft_wrap=True)
        if "control" in chosen:
            uniform = {f"N={n} d={d}": Schedule.uniform(10, n, d, rungs=rungs) for n, d in ((3, 1), (5, 1), (5, 3))}
            shape = bench.sample_shape(pipe, sampling, batches[0])
            with progress() as bar:
                task = bar.add_task("ControlNet", total=(2 + 3 * len(uniform)) * (rounds + 1))
                found["control"] = time_control(pipe.unet, uniform, shape, rounds, lambda: bar.advance(task))
            save()
            out.print(_table("A call's mean of ten, with a ControlNet and without", found["control"], _CONTROL))
    if "selection" in chosen:
        with err.status("Choosing tokens"):
            found["selection"] = bench.time_selection(where, kind, rounds)
        save()
        out.print(_table("Choosing the tokens of one call, ratio 0.5", found["selection"], _SELECTION))

    out.print(f"{hardware(where)}; written to {path}", highlight=False, soft_wrap=True, markup=False)
    if chart is not None:
        speed_chart(found["images"], f"{model}, {conditions['hardware']}", chart)


# Column title, key of the row, how it is shown.
_SPEEDS = [
    ("speed-up", "speedup", "{:.2f}x"),
    ("FLOPs allow", "allowed", "{:.2f}x"),
    ("efficiency", "efficiency", "{:.2f}"),
]
_CALLS = [
    ("", "method", "{}"),
    ("depth", "depth", "{}"),
    ("ratio", "ratio", "{:g}"),
    ("ms", "call_ms", "{:.2f}"),
    *_SPEEDS,
]
_IMAGES = [
    ("", "method", "{}"),
    ("steps", "steps", "{}"),
    ("ms", "image_ms", "{:.1f}"),
    ("speed-up", "speedup", "{:.2f}x"),
    ("loop ms", "loop_ms", "{:.1f}"),
    ("loop speed-up", "loop_speedup", "{:.2f}x"),
    *_SPEEDS[1:],
    ("peak MB", "peak_mb", "{:.0f}"),
]
_CONTROL = [("", "method", "{}"), ("ms", "call_ms", "{:.1f}"), ("speed-up", "speedup", "{:.2f}x")]
_SELECTION = [
    ("", "method", "{}"),
    ("batch", "batch", "{}"),
    ("ms", "select_ms", "{:.3f}"),
    ("speed-up", "speedup", "{:.1f}x"),
    ("extra MB", "peak_mb", "{:.1f}"),
    ("of plain's", "memory_share", "{:.3f}"),
]


def _table(title: str, rows: list[dict[str, Any]], columns: list[tuple[str, str, str]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, header_style="bold", padding=(0, 1, 0, 0))
    for heading, key, _ in columns:
        table.add_column(heading, justify="left" if key == "method" else "right", no_wrap=True)
    for row in rows:
        cells = [(form, row.get(key)) for _, key, form in columns]
        table.add_row(*("" if value is None else form.format(value) for form, value in cells))
    return table


def _methods(
    pipe: DiffusionPipeline,
    sampling: Sampling,
    fronts: dict[str, Any],
    pruning: Pruning,
    forward: Any,
    compiled: CompiledCalls | None,
) -> list[bench.Method]:
    """Stock first; the peers' methods beside ours with the same schedules."""
    steps, rungs = sampling.steps, len(Ladder(pipe.unet))
    calls = num_calls(pipe, steps)
    whole = Schedule.full(calls, rungs=rungs)

    def ours(name: str, schedule: Schedule, count: int = steps) -> bench.Method:
        return bench.ours(name, count, schedule, compiled)

    def uniform(interval: int, depth: int, ratio: float = 0.0) -> Schedule:
        return replace(Schedule.uniform(calls, interval, depth, ratio=ratio, rungs=rungs), pruning=pruning)

    methods = [bench.stock("stock", steps, whole, forward)]
    if compiled is not None:
        methods.append(bench.stock("stock, eager", steps, whole))
    else:
        if tome := tomesd_peer(0.5, whole):
            methods.append(bench.peer(tome, steps, None))
        for interval in (3, 5):
            if package := deepcache_peer(interval, 0, whole):
                methods.append(bench.peer(package, steps, uniform(interval, 1)))
    methods += [ours(f"N={n} d={d}", uniform(n, d)) for n, d in ((3, 1), (5, 1), (5, 0), (10, 0)) if n < calls]
    methods += [ours(f"pruned {r:.0%}", replace(whole.with_ratios(r), pruning=pruning)) for r in (0.5, 0.7)]
    methods.append(ours("N=3 d=1, pruned 50%", uniform(3, 1, 0.5)))
    published = load_strategy("dato-published").resampled(calls).for_rungs(rungs).with_ratios(0.5)
    methods.append(ours("DaTo's vector, pruned 50%", replace(published, pruning=pruning)))
    for name, loaded in fronts.items():
        if isinstance(loaded, Front):
            points: dict[str, Point] = {"knee": loaded.knee(), "fastest": loaded.points[0]}
        else:
            methods.append(ours(name, loaded.resampled(calls).for_rungs(rungs)))
            continue
        for label, point in points.items():
            count = point.steps or steps
            schedule = point.schedule.for_rungs(rungs)
            if len(schedule) != num_calls(pipe, count):
                raise DatoError(
                    f"{name} was searched for {len(schedule)} calls in {count} steps, and this sampler makes "
                    f"{num_calls(pipe, count)}: give its --scheduler"
                )
            methods.append(ours(f"{name}, {label}", schedule, count))
    return methods


def _check_table(
    pipe: DiffusionPipeline, sampling: Sampling, ratios: list[float], pruning: Pruning, rounds: int
) -> TableCheck:
    """A latency table against the clock: 20 random schedules of three lengths."""
    rungs = len(Ladder(pipe.unet))
    counts = [
        num_calls(pipe, steps) for steps in {sampling.steps, max(2, sampling.steps // 2), max(2, sampling.steps // 5)}
    ]
    kinds = {"depths": range(min(4, rungs)), "orders": (0, 1), "rungs": rungs}
    schedules = [
        *random_schedules(10, counts, **kinds, seed=1),
        *random_schedules(10, counts, **kinds, ratios=ratios, pruning=pruning, seed=2),
    ]
    prompts = [PROMPT] * sampling.batch_size
    with progress() as bar:
        task = bar.add_task("Latency table", total=None)
        table = measure_table(
            pipe,
            prompts,
            sampling,
            schedules,
            rounds=rounds,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
        task = bar.add_task("20 random schedules", total=rounds * (1 + len(schedules)))
        return check_table(
            table,
            schedules,
            measurer(pipe, prompts, sampling),
            stock=Schedule.full(num_calls(pipe, sampling.steps), rungs=rungs),
            rounds=rounds,
            progress=lambda: bar.advance(task),
        )


def _file_name(device: torch.device, model: str, compile: bool) -> str:
    name = hardware(device).split(",")[0]
    words = [name, Path(model).name, "compiled" if compile else "eager", date.today().isoformat()]
    return "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words) + ".json"
