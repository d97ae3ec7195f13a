"""The benchmark: stock, ToMeSD, DeepCache and dato side by side, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import torch
from diffusers import DiffusionPipeline

from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.evaluation.methods import Method, deepcache_method, schedule_method, stock_method, tomesd_method
from dato.experiments.benchmark_parts import PARTS
from dato.experiments.controlnet_speed import time_control
from dato.experiments.progress import Progress, counting, silent
from dato.experiments.selection_speed import time_selection
from dato.experiments.speed import compiled_forward, sample_shape, time_calls, time_images
from dato.front import Front
from dato.generation.pipelines import load_pipeline, loading_conditions
from dato.generation.prompts import read_prompts
from dato.generation.sampling import Sampling
from dato.prediction.latency_check import TableCheck, check_table, measurer, random_schedules
from dato.prediction.latency_measure import measure_table
from dato.pruning import Pruning
from dato.samplers import num_calls
from dato.schedule import Schedule
from dato.strategies import load_strategy
from dato.unet.compiled import CompiledCalls
from dato.unet.ladder import Ladder
from dato.utils.hardware import hardware, versions

PACKAGES = ("DeepCache", "tomesd")  # other packages to compare with
PROMPT = "red apple on a blue background"


@dataclass(frozen=True)
class BenchmarkSettings:
    """What to measure, and how.

    Attributes:
        model: As in `load_pipeline`.
        config: As in `load_pipeline`.
        variant: As in `load_pipeline`.
        parts: Some of `PARTS`.
        compile: Whether stock and our schedules run with torch.compile. The others stay eager.
        compile_mode: Mode of torch.compile; None: its default.
        strategies: Name -> front or schedule to run too. Of a front its knee and its fastest point run.
        methods: Names of the methods that the images are generated with, besides stock; None: all.
        sampling: Steps, guidance and size.
        scheduler: As in `load_pipeline`.
        batch_sizes: Images per generation. Calls and images are measured with each of them.
        rounds: How often everything is measured, in turns. The median counts.
        depths: Depths of the calls; None: all.
        ratios: Prune ratios of the calls.
        pruning: Settings of our pruning.
        memory: Whether to measure peak memory, in one generation more for each method.
        device: Where the pipeline runs.
        dtype: Its dtype.

    Raises:
        DatoError: if a part is unknown, or settings exclude each other.
    """

    model: str = EMBEDDED
    config: str | None = None
    variant: str | None = None
    parts: tuple[str, ...] = tuple(PARTS)
    compile: bool = False
    compile_mode: str | None = None
    strategies: Mapping[str, Front | Schedule] = field(default_factory=dict)
    methods: tuple[str, ...] | None = None
    sampling: Sampling = field(default_factory=lambda: Sampling(steps=50))
    scheduler: str | None = None
    batch_sizes: tuple[int, ...] = (1,)
    rounds: int = 5
    depths: tuple[int, ...] | None = None
    ratios: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7)
    pruning: Pruning = field(default_factory=Pruning)
    memory: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise DatoError(f"`parts`: unknown part {part!r}; known are {', '.join(PARTS)}")
        if self.compile and "table" in self.parts:
            raise DatoError("`compile`: the latency table is of eager calls; leave table out of `parts`")
        if self.compile_mode is not None and not self.compile:
            raise DatoError("`compile_mode` needs `compile`")

    def conditions(self) -> dict[str, Any]:
        """Return what the numbers depend on, as JSON values."""
        return {
            "model": self.model,
            **loading_conditions(self.config, self.variant),
            "compiled": self.compile,
            "compile_mode": self.compile_mode,
            "dtype": str(self.dtype).removeprefix("torch."),
            "steps": self.sampling.steps,
            "guidance_scale": self.sampling.guidance_scale,
            "height": self.sampling.height,
            "width": self.sampling.width,
            "rounds": self.rounds,
            "pruning": self.pruning.to_dict(),
            "hardware": hardware(self.device),
            "versions": versions("dato", "torch", "diffusers", *(p for p in PACKAGES if p not in missing_packages())),
        }


@dataclass(frozen=True)
class Result:
    """What one part gave.

    Attributes:
        part: One of `PARTS`.
        rows: The numbers, as JSON values.
        batch: Images per generation; None: the part does not depend on it.
        check: For the part "table": its summary.
    """

    part: str
    rows: list[dict[str, Any]]
    batch: int | None = None
    check: TableCheck | None = None


def missing_packages() -> list[str]:
    """Return the packages that the benchmark compares with and that are not installed."""
    return [package for package in PACKAGES if not find_spec(package)]


def benchmark(settings: BenchmarkSettings, progress: Progress = silent) -> Iterator[Result]:
    """Measure part by part, and yield each result as soon as it is there.

    Args:
        settings: What to measure.
        progress: Shows how far it is.

    Raises:
        DatoError: if the model cannot be loaded, or a setting does not suit it.
    """
    if {"calls", "images", "table", "control"} & set(settings.parts):
        with progress(f"Loading {settings.model}"):
            bench = _Bench.load(settings, progress)
        for batch in settings.batch_sizes:
            if "calls" in settings.parts:
                yield Result("calls", bench.calls(batch), batch)
            if "images" in settings.parts:
                yield Result("images", bench.images(batch), batch)
        if "table" in settings.parts:
            check = bench.table()
            yield Result("table", [asdict(pair) for pair in check.pairs], check=check)
        if "control" in settings.parts:
            yield Result("control", bench.control())
    if "selection" in settings.parts:
        with progress("Choosing tokens"):
            rows = time_selection(settings.device, settings.dtype, settings.rounds)
        yield Result("selection", rows)


@dataclass
class _Bench:
    """A loaded pipeline and what measures it.

    Attributes:
        forward: Stock's compiled forward; None: eager.
        compiled: Compiled calls; None: eager.
    """

    settings: BenchmarkSettings
    pipe: DiffusionPipeline
    depths: Sequence[int]
    progress: Progress
    forward: Callable | None = None
    compiled: CompiledCalls | None = None

    @classmethod
    def load(cls, settings: BenchmarkSettings, progress: Progress) -> _Bench:
        """Load the pipeline and compile what is to be compiled."""
        scheduler = settings.scheduler or ("dpm++2m" if settings.model == EMBEDDED else None)
        pipe = load_pipeline(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            scheduler=scheduler,
            config=settings.config,
            variant=settings.variant,
        )
        rungs = len(Ladder(pipe.unet))
        depths = settings.depths or range(rungs + 1)
        if not set(depths) <= set(range(rungs + 1)):
            raise DatoError(f"`depths`: this UNet's depths go from 0 to {rungs}")
        bench = cls(settings, pipe, depths, progress)
        if settings.compile:
            options = {} if settings.compile_mode is None else {"mode": settings.compile_mode}
            # All methods share one memory layout. Moving weights between two would be timed as part of a method.
            pipe.unet.to(memory_format=torch.channels_last)
            bench.forward = compiled_forward(pipe.unet, **options)
            bench.compiled = CompiledCalls(pipe.unet, **options)
        return bench

    @property
    def rungs(self) -> int:
        return len(Ladder(self.pipe.unet))

    def calls(self, batch: int) -> list[dict[str, Any]]:
        settings = self.settings
        with self.progress(f"Calls, batch {batch}") as update:
            rows = time_calls(
                self.pipe,
                self.depths,
                settings.ratios,
                replace(settings.sampling, batch_size=batch),
                settings.rounds,
                pruning=settings.pruning,
                compiled=self.compiled,
                forward=self.forward,
                progress=counting(update, settings.rounds + 1),
            )
        return [{"batch": batch, **row} for row in rows]

    def images(self, batch: int) -> list[dict[str, Any]]:
        settings, methods = self.settings, self.methods()
        prompts = ((read_prompts(None, None) if settings.model == EMBEDDED else [PROMPT]) * batch)[:batch]
        with self.progress(f"Images, batch {batch}") as update:
            rows = time_images(
                self.pipe,
                methods,
                prompts,
                settings.sampling,
                settings.rounds,
                memory=settings.memory,
                progress=counting(update, len(methods) * (settings.rounds + 1 + settings.memory)),
            )
        return [{"batch": batch, **row} for row in rows]

    def table(self) -> TableCheck:
        """Compare a latency table with the clock: 20 random schedules of three lengths."""
        settings, pipe, rungs = self.settings, self.pipe, self.rungs
        sampling = replace(settings.sampling, batch_size=settings.batch_sizes[0])
        # With fewer than 3 steps there are too few different schedules.
        steps = {sampling.steps, max(3, sampling.steps // 2), max(3, sampling.steps // 5)}
        lengths = [num_calls(pipe, count) for count in steps]
        kinds = {"depths": range(min(4, rungs)), "orders": (0, 1), "rungs": rungs}
        pruned = {"ratios": settings.ratios, "pruning": settings.pruning}
        schedules = [
            *random_schedules(10, lengths, **kinds, seed=1),
            *random_schedules(10, lengths, **kinds, **pruned, seed=2),
        ]
        prompts = [PROMPT] * sampling.batch_size
        with self.progress("Latency table") as update:
            table = measure_table(pipe, prompts, sampling, schedules, rounds=settings.rounds, progress=update)
        with self.progress("20 random schedules") as update:
            return check_table(
                table,
                schedules,
                measurer(pipe, prompts, sampling),
                stock=Schedule.full(num_calls(pipe, sampling.steps), rungs=rungs),
                rounds=settings.rounds,
                progress=counting(update, settings.rounds * (1 + len(schedules))),
            )

    def control(self) -> list[dict[str, Any]]:
        settings, rungs = self.settings, self.rungs
        uniform = {f"N={n} d={d}": Schedule.uniform(10, n, d, rungs=rungs) for n, d in ((3, 1), (5, 1), (5, 3))}
        shape = sample_shape(self.pipe, settings.sampling, settings.batch_sizes[0])
        with self.progress("ControlNet") as update:
            advance = counting(update, (2 + 3 * len(uniform)) * (settings.rounds + 1))
            return time_control(self.pipe.unet, uniform, shape, settings.rounds, advance)

    def methods(self) -> list[Method]:
        """Return stock first, then other packages' methods, and ours with the same schedules.

        Raises:
            DatoError: if `BenchmarkSettings.methods` has an unknown name.
        """
        stock, *others = self._all_methods()
        wanted = self.settings.methods
        if wanted is None:
            return [stock, *others]
        if unknown := set(wanted) - {method.name for method in others}:
            known = "; ".join(method.name for method in others)
            raise DatoError(f"`methods`: unknown method {min(unknown)!r}; known are {known}")
        return [stock, *(method for method in others if method.name in wanted)]

    def _all_methods(self) -> list[Method]:
        steps, rungs, pruning = self.settings.sampling.steps, self.rungs, self.settings.pruning
        calls = num_calls(self.pipe, steps)
        whole = Schedule.full(calls, rungs=rungs)

        def uniform(interval: int, depth: int, ratio: float = 0.0) -> Schedule:
            return replace(Schedule.uniform(calls, interval, depth, ratio=ratio, rungs=rungs), pruning=pruning)

        published = load_strategy("dato-published").resampled(calls).for_rungs(rungs).with_ratios(0.5)
        ours = {f"N={n} d={d}": uniform(n, d) for n, d in ((3, 1), (5, 1), (5, 0), (10, 0)) if n < calls}
        ours |= {f"pruned {r:.0%}": replace(whole.with_ratios(r), pruning=pruning) for r in (0.5, 0.7)}
        ours["N=3 d=1, pruned 50%"] = uniform(3, 1, 0.5)
        ours["DaTo's vector, pruned 50%"] = replace(published, pruning=pruning)
        return [
            stock_method(whole, steps=steps, forward=self.forward),
            *self._eager_methods(whole, steps),
            *(schedule_method(s, name, steps=steps, compiled=self.compiled) for name, s in ours.items()),
            *(method for name, strategy in self.settings.strategies.items() for method in self._of(name, strategy)),
        ]

    def _eager_methods(self, whole: Schedule, steps: int) -> list[Method]:
        """Return other packages' methods, which are eager; beside compiled ones, eager stock alone."""
        if self.compiled is not None:
            return [stock_method(whole, "stock, eager", steps=steps)]
        methods = [tomesd_method(0.5, whole, steps=steps)]
        methods += [deepcache_method(interval, 0, len(whole), whole.rungs, steps=steps) for interval in (3, 5)]
        return [method for method in methods if method is not None]

    def _of(self, name: str, strategy: Front | Schedule) -> list[Method]:
        """Return the knee and the fastest point of a front, or a schedule for as many calls as are made here."""
        steps = self.settings.sampling.steps
        if not isinstance(strategy, Front):
            schedule = strategy.resampled(num_calls(self.pipe, steps)).for_rungs(self.rungs)
            return [schedule_method(schedule, name, steps=steps, compiled=self.compiled)]
        methods = []
        for label, point in {"knee": strategy.knee(), "fastest": strategy.points[0]}.items():
            count = point.steps or steps
            schedule, calls = point.schedule.for_rungs(self.rungs), num_calls(self.pipe, count)
            if len(schedule) != calls:
                raise DatoError(
                    f"{name} was searched for {len(schedule)} calls in {count} steps, and this sampler makes {calls}: "
                    "use the scheduler of the search"
                )
            methods.append(schedule_method(schedule, f"{name}, {label}", steps=count, compiled=self.compiled))
        return methods
