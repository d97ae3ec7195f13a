"""A pool of evaluators on Ray: one on each of several GPUs (or shares of a CPU), as actors that stay."""

from __future__ import annotations

import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from dato.errors import DatoError, first_line
from dato.evaluation.evaluator import Evaluator
from dato.evaluation.judgement import Judgement, failed
from dato.evaluation.pool import Facts, InProcess, Pool, Recipe, facts_of
from dato.evaluation.racing import Rival
from dato.evaluation.stock import Stock
from dato.prediction.latency_table import LatencyTable
from dato.schedule import Schedule

T = TypeVar("T")
DEATHS = 3  # a task is given up after this number of workers died at it


@dataclass(frozen=True)
class Shared:
    """What all workers have to share: stock and the latency table, as far as they exist."""

    stock: Stock | None = None
    table: LatencyTable | None = None


class Worker:
    """What a Ray actor does: it holds an evaluator, and receives stock and the latency table with each task."""

    def __init__(self, recipe: Recipe, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._recipe = recipe

    @cached_property
    def evaluator(self) -> Evaluator:
        """The evaluator.

        It is made at the first task. Ray passes a task's exceptions on as they are, but hides those of `__init__`.
        """
        return self._recipe.evaluator()

    def facts(self) -> Facts:
        """Return the facts of its pipeline."""
        return facts_of(self.evaluator)

    def ask(self, shared: Shared, function: Callable[..., T], *arguments: Any) -> T:
        """Return `function(evaluator, *arguments)`."""
        if shared.stock is not None and not self.evaluator.has_stock:
            self.evaluator.stock = shared.stock
        self.evaluator.latency = None if shared.table is None else shared.table.predict
        return self.evaluator.run(function, *arguments)


class RayPool:
    """A pool of evaluators as Ray actors.

    If a worker dies, because its machine is gone or the system killed it, another one replaces it and its task is done
    again.

    Args:
        recipe: What each worker makes its evaluator from.
        workers: Number of workers.
        ray_address: Address of a Ray cluster, for example "auto". None: this machine alone.

    Raises:
        DatoError: if Ray is not installed, or the cluster cannot be reached or has too few GPUs.
    """

    def __init__(self, recipe: Recipe, workers: int, ray_address: str | None = None) -> None:
        try:
            import ray
        except ImportError:
            raise DatoError(
                "more than one of `workers`, and `ray_address`, need Ray: pip install 'dato[ray]'"
            ) from None
        gpu = torch.device(recipe.device).type == "cuda"
        # A worker sees only the GPU that Ray gives it, so its name is "cuda" without an index.
        self._ray, self._recipe = ray, replace(recipe, device="cuda") if gpu else recipe
        cores = os.cpu_count() or 1
        self._threads = None if gpu else max(1, cores // workers)
        self._connect(ray_address, max(cores, workers))
        self._lost = (
            ray.exceptions.RayActorError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.NodeDiedError,
        )
        try:
            gpus = ray.cluster_resources().get("GPU", 0)
            if gpu and gpus < workers:
                raise DatoError(f"`workers` {workers}: they need as many GPUs and there are {gpus:g}, so ask for fewer")
            needs = {"num_gpus": 1} if gpu else {"num_cpus": self._threads}
            self._actor = ray.remote(**needs)(Worker)
            self._workers = [self._start() for _ in range(workers)]
            self._starting: dict[Any, int] = {}  # reference, ready when a replacement runs -> worker's index
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

    def _connect(self, address: str | None, cpus: int) -> None:
        """Start Ray on this machine, or connect to the cluster at an address."""
        if address:
            _check_answers(address)
        # Without "local" Ray would look for a running cluster and ignore num_cpus.
        local = {} if address else {"num_cpus": cpus, "include_dashboard": False}
        try:
            self._ray.init(address=address or "local", log_to_driver=False, logging_level="error", **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = first_line(error)
            raise DatoError(f"{f'`ray_address` {address}' if address else 'Ray'}: {reason}") from None

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
        """See `Pool`."""
        if self._stock is None:
            self.stock = self.ask(_stock_of)
        return self._stock

    @stock.setter
    def stock(self, stock: Stock) -> None:
        self._stock = stock
        self._share()

    @property
    def table(self) -> LatencyTable | None:
        """See `Pool`."""
        return self._table

    @table.setter
    def table(self, table: LatencyTable | None) -> None:
        self._table = table
        self._share()

    def _share(self) -> None:
        self._shared = self._ray.put(Shared(self._stock, self._table))

    def ask(self, function: Callable[..., T], *arguments: Any, progress: Callable[..., None] | None = None) -> T:
        """See `Pool`. `progress` is not called: the worker is another process."""
        for attempt in range(DEATHS):
            try:
                return self._get(self._workers[0].ask.remote(self._shared, function, *arguments))
            except self._lost as error:
                if attempt + 1 == DEATHS:
                    raise DatoError(f"{DEATHS} workers died one after the other: {first_line(error)}") from None
                self._workers[0] = self._start()
        raise AssertionError

    def judge(self, schedules: Sequence[Schedule], rivals: Sequence[Rival] = ()) -> Iterator[Judgement]:
        """See `Pool`."""
        tasks = [(schedule, rivals) for schedule in schedules]
        for index, judgement in self._spread(Evaluator.judge, tasks):
            if judgement is None:
                judgement = failed(schedules[index], f"{DEATHS} workers did not survive it", 0)
            yield judgement

    def each(self, function: Callable[..., T], tasks: Sequence[tuple]) -> Iterator[tuple[int, T]]:
        """See `Pool`."""
        for index, result in self._spread(function, tasks):
            if result is None:
                raise DatoError(f"{DEATHS} workers died at the same task: they may be out of memory")
            yield index, result

    def _spread(self, function: Callable[..., T], tasks: Sequence[tuple]) -> Iterator[tuple[int, T | None]]:
        """Yield (index of the task, result) as soon as it is ready; None for a task at which `DEATHS` workers died."""
        waiting = deque(range(len(tasks)))
        idle = deque(set(range(len(self._workers))) - set(self._starting.values()))
        running: dict[Any, tuple[int, int]] = {}
        deaths: Counter[int] = Counter()
        while waiting or running:
            while waiting and idle:
                worker, index = idle.popleft(), waiting.popleft()
                reference = self._workers[worker].ask.remote(self._shared, function, *tasks[index])
                running[reference] = worker, index
            # A replacement gets tasks only after it has started: the machine that it waits for may never come back.
            [ready], _ = self._ray.wait([*running, *self._starting], num_returns=1)
            if ready in self._starting:
                idle.append(self._restarted(ready))
                continue
            worker, index = running.pop(ready)
            try:
                result = self._get(ready)
            except self._lost:
                self._restart(worker)
                deaths[index] += 1
                if deaths[index] == DEATHS:
                    yield index, None
                else:
                    waiting.appendleft(index)
                continue
            idle.append(worker)
            yield index, result

    def _restart(self, worker: int) -> None:
        self._workers[worker] = self._start()
        self._starting[self._workers[worker].facts.remote()] = worker

    def _restarted(self, ready: Any) -> int:
        """Return the index of the worker whose replacement is ready. Raise DatoError if the replacement died, too."""
        worker = self._starting.pop(ready)
        try:
            self._get(ready)
        except self._lost as error:
            raise DatoError(f"a worker died again while it loaded {self._recipe.model}: {first_line(error)}") from None
        return worker

    def close(self) -> None:
        """See `Pool`."""
        self._ray.shutdown()


def make_pool(recipe: Recipe, workers: int = 1, ray_address: str | None = None) -> Pool:
    """Make a pool in this process (one worker and no address), or else on Ray. Raise DatoError as `RayPool` does."""
    if workers == 1 and ray_address is None:
        return InProcess(recipe.evaluator())
    return RayPool(recipe, workers, ray_address)


def _check_answers(address: str) -> None:
    """Raise DatoError if nothing listens at an address. Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return  # as "auto": Ray finds the cluster, or says that there is none
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise DatoError(f"`ray_address` {address}: nothing answers there ({error})") from None


def _stock_of(evaluator: Evaluator) -> Stock:
    return evaluator.stock
