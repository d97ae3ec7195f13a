"""A pool of evaluators that judge schedules: one in this process, or several on Ray (`dato.evaluation.ray_pool`).

pymoo's own parallel evaluation sends the problem, and the pipeline in it, along with every candidate. A pool makes each
pipeline and its metrics once, from a `Recipe` of a few hundred bytes. After that only schedules are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import nn

from dato.errors import DatoError
from dato.evaluation.evaluator import Evaluator
from dato.evaluation.judgement import Judgement
from dato.evaluation.racing import Rival
from dato.evaluation.stock import Stock
from dato.evaluation.validation import OTHER_NOISE, validation_evaluator
from dato.generation.pipelines import load_pipeline
from dato.generation.sampling import Sampling, image_size
from dato.metrics import Metric, Setup, load_metric
from dato.prediction.latency_table import LatencyTable
from dato.samplers import SAMPLERS, num_calls, sampler_name
from dato.schedule import Schedule
from dato.tokens.places import downsamplings
from dato.unet.compiled import CompiledCalls
from dato.utils.hardware import hardware
from dato.utils.memory import weights_bytes

T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """All that is needed to make an evaluator, in this process or on another machine.

    Attributes:
        model: As in `load_pipeline`.
        device: The device it runs on, for example "cuda".
        dtype: Name of a torch dtype, for example "float16".
        scheduler: As in `load_pipeline`.
        prompts: One image is generated for each.
        sampling: How images are generated. Its steps are the reference's.
        steps: Further numbers of steps for which schedules are judged.
        metrics: Names of metrics. The first one is the objective.
        setup: What the metrics are made from. Their device is that of the pipeline.
        race: As in `Evaluator`.
        interleave: As in `Evaluator`.
        config: As in `load_pipeline`.
        variant: As in `load_pipeline`.
        validation: Prompts of the finalists' validation, which no candidate is judged by before.
        compile: Whether the UNet's calls are compiled.
        instead: What an error adds if the objective cannot be loaded: how to do without it. Empty: nothing.

    Raises:
        DatoError: if the seed of an image is too large.
    """

    model: str
    device: str
    dtype: str
    scheduler: str | None
    prompts: tuple[str, ...]
    sampling: Sampling
    steps: tuple[int, ...]
    metrics: tuple[str, ...]
    setup: Setup = Setup()
    race: int | None = None
    interleave: bool = False
    config: str | None = None
    variant: str | None = None
    validation: tuple[str, ...] = ()
    compile: bool = False
    instead: str = ""

    def __post_init__(self) -> None:
        # Before anything is generated. Else a search would fail at its end, in its validation.
        self.sampling.check_seeds(max(len(self.prompts), OTHER_NOISE + len(self.validation) if self.validation else 0))

    def evaluator(self) -> Evaluator:
        """Load the pipeline and the metrics, and make an evaluator of them."""
        device, dtype = torch.device(self.device), getattr(torch, self.dtype)
        options = {"scheduler": self.scheduler, "config": self.config, "variant": self.variant}
        pipe = load_pipeline(self.model, device=device, dtype=dtype, **options)
        return self.evaluator_of(pipe)

    def evaluator_of(self, pipe: DiffusionPipeline) -> Evaluator:
        """Load the metrics, and make an evaluator of them and of a pipeline that is already loaded."""
        metrics = self._load_metrics()
        evaluator = Evaluator(
            pipe,
            self.prompts,
            self.sampling,
            metrics,
            steps=self.steps,
            race=self.race,
            interleave=self.interleave,
            compiled=CompiledCalls(pipe.unet) if self.compile else None,
        )
        if self.validation:
            evaluator.validation = validation_evaluator(evaluator, self.validation)
        return evaluator

    def _load_metrics(self) -> list[Metric]:
        setup = self.setup.on(torch.device(self.device))
        objective, *others = self.metrics
        try:
            first = load_metric(objective, setup)
        except DatoError as error:
            raise DatoError(f"{error}; {self.instead}" if self.instead else str(error)) from None
        return [first, *(load_metric(name, setup) for name in others)]


@dataclass(frozen=True)
class Facts:
    """What a search has to know of a pipeline that another process may hold.

    Attributes:
        rungs: Rungs of the UNet.
        calls: UNet calls of the reference.
        calls_of: Number of steps -> UNet calls.
        scheduler: The sampler's class.
        scheduler_name: The sampler's name in `dato.samplers.SAMPLERS`, or None if it has none.
        size: Height and width of the images in pixels.
        downsamplings: The downsampling factors at which the UNet has attention.
        hardware: As in a front's conditions.
        weights_bytes: What all weights and buffers of the pipeline take.
    """

    rungs: int
    calls: int
    calls_of: dict[int, int]
    scheduler: str
    scheduler_name: str | None
    size: tuple[int, int]
    downsamplings: tuple[int, ...]
    hardware: dict[str, Any] | str
    weights_bytes: int = 0

    @property
    def steps_of(self) -> dict[int, int]:
        """UNet calls -> number of steps."""
        return {calls: steps for steps, calls in self.calls_of.items()}


def facts_of(evaluator: Evaluator) -> Facts:
    """Return the facts of an evaluator's pipeline."""
    pipe, name = evaluator.pipe, sampler_name(evaluator.pipe.scheduler)
    return Facts(
        evaluator.rungs,
        evaluator.calls,
        {steps: num_calls(pipe, steps) for steps in evaluator.steps_of.values()},
        type(pipe.scheduler).__name__,
        name if name in SAMPLERS else None,
        image_size(pipe, evaluator.sampling),
        downsamplings(pipe.unet),
        hardware(pipe.unet.device),
        weights_bytes([part for part in pipe.components.values() if isinstance(part, nn.Module)]),
    )


class Pool(Protocol):
    """Evaluators, wherever they run.

    Attributes:
        facts: The facts of their pipeline.
        stock: What every schedule is compared with. It is generated when it is first read, or it can be set.
        table: The latency table that predicts latencies. None: latencies are measured.
    """

    facts: Facts
    stock: Stock
    table: LatencyTable | None

    def ask(self, function: Callable[..., T], *arguments: Any, progress: Callable[..., None] | None = None) -> T:
        """Return `function(evaluator, *arguments)`, computed by one of the evaluators.

        `progress` is passed on as a keyword if the evaluator runs in this process.
        """
        ...

    def judge(self, schedules: Sequence[Schedule], rivals: Sequence[Rival] = ()) -> Iterator[Judgement]:
        """Yield the judgement of each schedule as soon as it is ready, in any order."""
        ...

    def each(self, function: Callable[..., T], tasks: Sequence[tuple]) -> Iterator[tuple[int, T]]:
        """Yield (index of the task, `function(evaluator, *task)`) as soon as it is ready, in any order.

        Raises:
            DatoError: if several workers died at the same task.
        """
        ...

    def close(self) -> None:
        """Release the evaluators."""
        ...


class InProcess:
    """A pool of one evaluator, in this process.

    Args:
        evaluator: Any evaluator. For a pipeline that is already loaded, pass an `Evaluator` around it.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.facts = facts_of(evaluator)
        self._table: LatencyTable | None = None

    @property
    def stock(self) -> Stock:
        """See `Pool`."""
        return self.evaluator.stock

    @stock.setter
    def stock(self, stock: Stock) -> None:
        self.evaluator.stock = stock

    @property
    def table(self) -> LatencyTable | None:
        """See `Pool`."""
        return self._table

    @table.setter
    def table(self, table: LatencyTable | None) -> None:
        self._table = table
        self.evaluator.latency = None if table is None else table.predict

    def ask(self, function: Callable[..., T], *arguments: Any, progress: Callable[..., None] | None = None) -> T:
        """See `Pool`."""
        return self.evaluator.run(function, *arguments, **({} if progress is None else {"progress": progress}))

    def judge(self, schedules: Sequence[Schedule], rivals: Sequence[Rival] = ()) -> Iterator[Judgement]:
        """See `Pool`."""
        for schedule in schedules:
            yield self.evaluator.judge(schedule, rivals)

    def each(self, function: Callable[..., T], tasks: Sequence[tuple]) -> Iterator[tuple[int, T]]:
        """See `Pool`."""
        for index, task in enumerate(tasks):
            yield index, self.evaluator.run(function, *task)

    def close(self) -> None:
        """See `Pool`."""
