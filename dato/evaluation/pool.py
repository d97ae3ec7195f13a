"""Who judges schedules: an evaluator in this process, or one on each of many GPUs, as long-lived Ray actors.

pymoo's own parallel evaluation would send the problem, a pipeline with it, along with every candidate. Here each worker
makes its pipeline and metrics once, from a recipe of a few hundred bytes, and gets schedules.
"""

from __future__ import annotations

import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch

from dato.errors import DatoError, first_line
from dato.evaluation.evaluator import Evaluator, Stock
from dato.evaluation.judgement import Judgement, failed
from dato.evaluation.racing import Rival
from dato.generation.pipelines import load_pipeline
from dato.generation.sampling import Sampling
from dato.metrics import Setup, load_metric
from dato.prediction.latency_table import LatencyTable
from dato.samplers import SAMPLERS, num_calls, sampler_name
from dato.schedule import Schedule
from dato.tokens.pruner import downsamplings
from dato.utils.hardware import hardware

T = TypeVar("T")
DEATHS = 3  # a candidate that so many workers did not survive is given up


@dataclass(frozen=True)
class Recipe:
    """All that is needed to make an evaluator, here or on another machine.

    Attributes:
        model: As in `load_pipeline`.
        device: Where it runs, as "cuda".
        dtype: As "float16".
        scheduler: As in `load_pipeline`.
        prompts: One image each.
        sampling: How images are generated; its steps are the reference's.
        steps: Further numbers of steps for which schedules are judged.
        metrics: Names; the first is the objective.
        setup: What the metrics are made from; their device is that of the pipeline.
        race: As in `Evaluator`.
        interleave: As in `Evaluator`.
        config: As in `load_pipeline`.
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

    def evaluator(self) -> Evaluator:
        """Load everything."""
        device = torch.device(self.device)
        setup = self.setup.on(device)
        metrics = [load_metric(name, setup) for name in self.metrics]
        dtype = getattr(torch, self.dtype)
        pipe = load_pipeline(self.model, device=device, dtype=dtype, scheduler=self.scheduler, config=self.config)
        return Evaluator(
            pipe,
            self.prompts,
            self.sampling,
            metrics,
            steps=self.steps,
            race=self.race,
            interleave=self.interleave,
        )


@dataclass(frozen=True)
class Facts:
    """What a search has to know of a pipeline that another process holds.

    Attributes:
        rungs: Rungs of the UNet.
        calls: UNet calls of the reference.
        calls_of: Number of steps -> UNet calls.
        scheduler: The sampler's class.
        scheduler_name: The sampler as a name of `dato.samplers.SAMPLERS`, if it is one.
        pixels: The model's own height and width.
        downsamplings: At which it has attention.
        hardware: As in a front's conditions.
    """

    rungs: int
    calls: int
    calls_of: dict[int, int]
    scheduler: str
    scheduler_name: str | None
    pixels: int
    downsamplings: tuple[int, ...]
    hardware: dict[str, Any] | str

    @property
    def steps_of(self) -> dict[int, int]:
        """UNet calls -> number of steps."""
        return {calls: steps for steps, calls in self.calls_of.items()}


def facts_of(evaluator: Evaluator) -> Facts:
    """What there is to know of an evaluator's pipeline."""
    pipe, name = evaluator.pipe, sampler_name(evaluator.pipe.scheduler)
    return Facts(
        evaluator.rungs,
        evaluator.calls,
        {steps: num_calls(pipe, steps) for steps in evaluator.steps_of.values()},
        type(pipe.scheduler).__name__,
        name if name in SAMPLERS else None,
        pipe.unet.config.sample_size * pipe.vae_scale_factor,
        downsamplings(pipe.unet),
        hardware(pipe.unet.device),
    )


class Judges(Protocol):
    """One or more evaluators that are made from one recipe.

    Attributes:
        facts: Of the pipeline.
        stock: What all compare with; generated when it is first asked for, or given.
        table: What predicts latencies; None: they are measured.
    """

    facts: Facts
    stock: Stock
    table: LatencyTable | None

    def ask(self, function: Callable[..., T], *arguments: Any, progress: Callable[..., None] | None = None) -> T:
        """`function(evaluator, *arguments)` by one of the evaluators; `progress` is passed on where that can be."""
        ...

    def judge(self, schedules: Sequence[Schedule], rivals: Sequence[Rival] = ()) -> Iterator[Judgement]:
        """The judgement of each schedule, in the order in which they are ready."""
        ...

    def each(self, function: Callable[..., T], tasks: Sequence[tuple]) -> Iterator[tuple[int, T]]:
        """(number of the task, `function(evaluator, *task)`), in the order in which they are ready.

        Raises:
            DatoError: if a task was the end of several workers.
        """
        ...

    def close(self) -> None:
        """Let them go."""
        ...


class InProcess:
    """One evaluator, here."""

    def __init__(self, recipe: Recipe) -> None:
        self.evaluator = recipe.evaluator()
        self.facts = facts_of(self.evaluator)
        self._table: LatencyTable | None = None

    @property
    def stock(self) -> Stock:
        """See `Judges`."""
        return self.evaluator.stock

    @stock.setter
    def stock(self, stock: Stock) -> None:
        self.evaluator.stock = stock

    @property
    def table(self) -> LatencyTable | None:
        """See `Judges`."""
        return self._table

    @table.setter
    def table(self, table: LatencyTable | None) -> None:
        self._table = table
        self.evaluator.latency = None if table is None else table.predict

    def ask(self, function: Callable[..., T], *arguments: Any, progress: Callable[..., None] | None = None) -> T:
        """See `Judges`."""
        return function(self.evaluator, *arguments, **({} if progress is None else {"progress": progress}))

    def judge(self, schedules: Sequence[Schedule], rivals: Sequence[Rival] = ()) -> Iterator[Judgement]:
        """See `Judges`."""
        for schedule in schedules:
            yield self.evaluator.judge(schedule, rivals)

    def each(self, function: Callable[..., T], tasks: Sequence[tuple]) -> Iterator[tuple[int, T]]:
        """See `Judges`."""
        for number, task in enumerate(tasks):
            yield number, function(self.evaluator, *task)

    def close(self) -> None:
        """See `Judges`."""


class Worker:
    """What a Ray actor does: an evaluator that learns of stock and table along with the first schedule."""

    def __init__(self, recipe: Recipe, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._recipe = recipe

    @cached_property
    def evaluator(self) -> Evaluator:
        """Made at the first task, whose exceptions reach the caller as they are; an actor's own making hides them."""
        return self._recipe.evaluator()

    def facts(self) -> Facts:
        """Of its pipeline."""
        return facts_of(self.evaluator)

    def ask(self, known: Known, function: Callable[..., T], *arguments: Any) -> T:
        """`function(evaluator, *arguments)`."""
        self._learn(known)
        return function(self.evaluator, *arguments)

    def _learn(self, known: Known) -> None:
        if known.stock is not None and not self.evaluator.has_stock:
            self.evaluator.stock = known.stock
        self.evaluator.latency = None if known.table is None else known.table.predict


@dataclass(frozen=True)
class Known:
    """What all workers have to share."""

    stock: Stock | None = None
    table: LatencyTable | None = None


class RayJudges:
    """One evaluator on each of several GPUs (or shares of a CPU), as Ray actors that stay.

    A worker that is lost, with its machine or by the system's hand, is replaced, and its candidate is judged again.

    Args:
        recipe: What each of them makes.
        workers: How many.
        address: Of a Ray cluster, as "auto"; None: this machine alone.

    Raises:
        DatoError: if Ray is not installed, the cluster is not there, or has too few GPUs.
    """

    def __init__(self, recipe: Recipe, workers: int, address: str | None = None) -> None:
        try:
            import ray
        except ImportError:
            raise DatoError("--workers and --ray-address need Ray: pip install 'dato[ray]'") from None
        gpu = torch.device(recipe.device).type == "cuda"
        # A worker sees one GPU, whichever it is.
        self._ray, self._recipe = ray, replace(recipe, device="cuda") if gpu else recipe
        cores = os.cpu_count() or 1
        self._threads = None if gpu else max(1, cores // workers)
        if address:
            _check_answers(address)
        # Without an address Ray would look for a cluster by itself, and not take what this machine is to have.
        local = {} if address else {"num_cpus": max(cores, workers), "include_dashboard": False}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level="error", **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = first_line(error)
            raise DatoError(f"{f'--ray-address {address}' if address else 'Ray'}: {reason}") from None
        self._lost = (
            ray.exceptions.RayActorError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.NodeDiedError,
        )
        try:
            there = ray.cluster_resources().get("GPU", 0)
            if gpu and there < workers:
                raise DatoError(f"--workers {workers}: there are {there:g} GPUs; give fewer, or --device cpu")
            needs = {"num_gpus": 1} if gpu else {"num_cpus": self._threads}
            self._actor = ray.remote(**needs)(Worker)
            self._workers = [self._start() for _ in range(workers)]
            self._starting: dict[Any, int] = {}  # what tells that a worker is there again -> which
            self._stock: Stock | None = None
            self._table: LatencyTable | None = None
            self._share()
            self.facts = self._get(self._workers[0].facts.remote())
        except self._lost as error:
            ray.shutdown()
            raise DatoError(f"a worker died while it loaded {recipe.model}: {first_line(error)}") from None
        except BaseException:
            ray.shutdown()
            raise

    def _start(self) -> Any:
        return self._actor.remote(self._recipe, self._threads)

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DatoError):
                raise DatoError(str(error.cause)) from None
            raise

    @property
    def stock(self) -> Stock:
        """See `Judges`."""
        if self._stock is None:
            self.stock = self.ask(_stock_of)
        return self._stock

    @stock.setter
    def stock(self, stock: Stock) -> None:
        self._stock = stock
        self._share()

    @property
    def table(self) -> LatencyTable | None:
        """See `Judges`."""
        return self._table

    @table.setter
    def table(self, table: LatencyTable | None) -> None:
        self._table = table
        self._share()

    def _share(self) -> None:
        self._known = self._ray.put(Known(self._stock, self._table))

    def ask(self, function: Callable[..., T], *arguments: Any, progress: Callable[..., None] | None = None) -> T:
        """See `Judges`; a worker that is lost meanwhile is replaced. Progress stays on the worker's side."""
        for attempt in range(DEATHS):
            try:
                return self._get(self._workers[0].ask.remote(self._known, function, *arguments))
            except self._lost as error:
                if attempt + 1 == DEATHS:
                    raise DatoError(f"{DEATHS} workers were lost, one after the other: {first_line(error)}") from None
                self._workers[0] = self._start()
        raise AssertionError

    def judge(self, schedules: Sequence[Schedule], rivals: Sequence[Rival] = ()) -> Iterator[Judgement]:
        """See `Judges`."""
        tasks = [(schedule, rivals) for schedule in schedules]
        for number, judgement in self._spread(Evaluator.judge, tasks):
            if judgement is None:
                judgement = failed(schedules[number], f"{DEATHS} workers did not survive it", 0)
            yield judgement

    def each(self, function: Callable[..., T], tasks: Sequence[tuple]) -> Iterator[tuple[int, T]]:
        """See `Judges`."""
        for number, result in self._spread(function, tasks):
            if result is None:
                raise DatoError(f"{DEATHS} workers did not survive the same piece of work: out of memory, perhaps?")
            yield number, result

    def _spread(self, function: Callable[..., T], tasks: Sequence[tuple]) -> Iterator[tuple[int, T | None]]:
        """(number of the task, result) as they are ready; None for a task that several workers did not survive."""
        waiting = deque(range(len(tasks)))
        idle = deque(set(range(len(self._workers))) - set(self._starting.values()))
        running: dict[Any, tuple[int, int]] = {}
        deaths: Counter[int] = Counter()
        while waiting or running:
            while waiting and idle:
                worker, number = idle.popleft(), waiting.popleft()
                reference = self._workers[worker].ask.remote(self._known, function, *tasks[number])
                running[reference] = worker, number
            # One that is to replace a lost worker gets work when it is there: its machine may never come back.
            [ready], _ = self._ray.wait([*running, *self._starting], num_returns=1)
            if ready in self._starting:
                idle.append(self._restarted(ready))
                continue
            worker, number = running.pop(ready)
            try:
                result = self._get(ready)
            except self._lost:
                self._restart(worker)
                deaths[number] += 1
                if deaths[number] == DEATHS:
                    yield number, None
                else:
                    waiting.appendleft(number)
                continue
            idle.append(worker)
            yield number, result

    def _restart(self, worker: int) -> None:
        self._workers[worker] = self._start()
        self._starting[self._workers[worker].facts.remote()] = worker

    def _restarted(self, ready: Any) -> int:
        worker = self._starting.pop(ready)
        try:
            self._get(ready)
        except self._lost as error:
            raise DatoError(f"a worker died again while it loaded {self._recipe.model}: {first_line(error)}") from None
        return worker

    def close(self) -> None:
        """See `Judges`."""
        self._ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise DatoError where nobody listens at an address: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return  # as auto; Ray finds it, or says that there is none
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise DatoError(f"--ray-address {address}: nobody answers there ({error})") from None


def _stock_of(evaluator: Evaluator) -> Stock:
    return evaluator.stock


def make_judges(recipe: Recipe, workers: int = 1, address: str | None = None) -> Judges:
    """Evaluators in this process (one worker, no cluster) or on Ray. Raises DatoError as these do."""
    if workers == 1 and address is None:
        return InProcess(recipe)
    return RayJudges(recipe, workers, address)
