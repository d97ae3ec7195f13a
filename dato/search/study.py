"""A study: it has schedules judged by a pool, and keeps every judgement in a journal.

A search asks a study for the points of schedules. The study returns the points that its journal holds. It has the other
schedules judged, and writes each judgement into the journal before the search gets it. A search with the same seed asks
for the same schedules and gets the same points. So a search that is started again reaches the place where it was
stopped, and continues from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from dato.errors import DatoError
from dato.evaluation.evaluator import Evaluator
from dato.evaluation.judgement import Judgement
from dato.evaluation.pool import Pool
from dato.evaluation.racing import Rival, rivals_of
from dato.evaluation.side_by_side import retime
from dato.evaluation.stock import Stock
from dato.evaluation.validation import validated, validation_stock
from dato.point import Point, non_dominated, point_from_dict
from dato.prediction.error_measure import final_latent, measure_sensitivity
from dato.prediction.error_model import Sensitivity
from dato.prediction.error_model_file import sensitivity_from_dict, sensitivity_to_dict
from dato.prediction.latency_measure import measure_table
from dato.prediction.latency_table import LatencyTable
from dato.pruning import Pruning
from dato.samplers import num_calls
from dato.schedule import Schedule
from dato.search.budget import Budget
from dato.search.journal import FORMAT, VERSION, Journal, check_header
from dato.search.run_folder import Folder
from dato.utils.files import write_atomic
from dato.utils.hardware import versions

LIBRARIES = ("dato", "torch", "diffusers", "transformers", "pymoo", "numpy")


class Study:
    """The judgements of one search.

    The first line of the journal says what is searched. Then come stock, the latency table, sensitivity models, every
    judgement, and final timings, each on a line of its own.

    Args:
        folder: The run's files.
        pool: What judges schedules. `close` closes it, too.

    Attributes:
        judged: All judgements by schedule, in the order in which they were made.
        replayed: How many of them came from the journal.
        table: The latency table, once it was measured or read from the journal.
        torn: Whether the journal's last line was torn, and was dropped.
        other_versions: Libraries that have changed since the journal was begun: name -> both versions, in words.

    Raises:
        DatoError: if the journal cannot be read or written, or holds another kind of search.
    """

    def __init__(self, folder: Folder, pool: Pool) -> None:
        self.folder, self.pool = folder, pool
        self.journal = Journal(folder.journal)
        self.torn = self.journal.torn
        self.judged: dict[Schedule, Judgement] = {}
        self.replayed = 0
        self._floor: float | None = None
        self.table: LatencyTable | None = None
        self._point: Point | None = None
        self._models: list[tuple[list[int], Sensitivity | None, Any]] = []
        self._timed: list[tuple[Any, list[Point]]] = []
        self._validated: dict[Schedule, Judgement] = {}
        self._validated_stock: Point | None = None
        self._budget: Budget | None = None
        self.other_versions: dict[str, str] = {}
        # What the search has got since it began or was resumed: of the candidates, and of those that were validated.
        self._told: dict[Schedule, Judgement] = {}
        self._told_validated: dict[Schedule, Judgement] = {}
        self._stored = False
        self._rungs, self._pruning = 0, Pruning()

    def begin(
        self,
        command: str,
        options: Mapping[str, Any],
        settings: Mapping[str, Any],
        pruning: Pruning,
        floor: float | None = None,
    ) -> None:
        """Write down what is searched. If the journal exists, compare it with that and read what it holds.

        Args:
            command: The kind of search, for example "depth".
            options: What was asked for. It is kept for whoever resumes the search, and is not compared.
            settings: Everything that the judgements depend on.
            pruning: The settings of token pruning that belong to the ratios.
            floor: Points below this quality are no rivals in a race.

        Raises:
            DatoError: if the journal has other settings; the message names them.
        """
        self._rungs, self._pruning = self.pool.facts.rungs, pruning
        self._floor = floor
        header = {
            "format": FORMAT,
            "version": VERSION,
            "command": command,
            "rungs": self._rungs,
            "pruning": pruning.to_dict(),
            "options": dict(options),
            "settings": json.loads(json.dumps(settings)),  # as JSON gives them back
            "versions": versions(*LIBRARIES),
        }
        if not self.journal.entries:
            self.journal.append(header)
            return
        first, *others = self.journal.entries
        check_header(first, self.journal.path)
        old = {"command": first["command"], "rungs": first["rungs"], "pruning": first["pruning"], **first["settings"]}
        new = {"command": command, "rungs": self._rungs, "pruning": header["pruning"], **header["settings"]}
        differing = [f"{name}: {_short(a)} there, {_short(b)} here" for name, a, b in _differences(old, new)]
        if differing:
            raise DatoError(f"{self.folder.path} was begun with other settings ({'; '.join(differing)})")
        self.other_versions = {
            name: f"{old} there, {header['versions'][name]} here"
            for name, old in first.get("versions", {}).items()
            if header["versions"].get(name) != old
        }
        for entry in others:
            self._take(entry)
        self.replayed = len(self.judged)
        if self._point is not None and (stock := self._stored_stock(self._point)) is not None:
            self.pool.stock, self._stored = stock, True

    @property
    def stock(self) -> Stock:
        """Stock. It is generated and written down if the run does not hold it, or if its images were lost."""
        if not self._stored:
            stock = self.pool.stock
            self._write(self.folder.stock, save({"images": stock.images.contiguous()}))
            self._write(self.folder.sample(stock.point.schedule), stock.sample)
            if self._point is None:
                self._point = stock.point
                self.journal.append({"stock": stock.point.to_dict()})
            self.pool.stock = replace(stock, point=self._point)
            self._stored = True
        return self.pool.stock

    def measured_table(self, schedules: Sequence[Schedule], progress: Any = None) -> LatencyTable:
        """Return the journal's latency table. If there is none, measure one for the calls of these schedules."""
        if self.table is None:
            self.table = self.pool.ask(_measure_table, schedules, progress=progress)
            self.journal.append({"latency_table": self.table.to_dict()})
        return self.table

    def use_table(self, table: LatencyTable) -> None:
        """Predict latencies by a table from now on. Call it before anything is judged."""
        self.table = self.pool.table = table

    def sensitivity(
        self, steps: Sequence[int], depths: Sequence[int], prompts: Sequence[str] | None = None
    ) -> list[Sensitivity]:
        """Return sensitivity models against the reference, one for each number of steps.

        They are measured if the journal has none.

        Args:
            steps: Numbers of steps. Only the reference's is measured. The others are derived from it.
            depths: The partial depths that the models know.
            prompts: What to measure on; None: the first prompt that candidates are judged by.

        Returns:
            The models, or [] if what was measured is not finite.
        """
        key = [*steps, 0, *depths]
        if key not in [measured for measured, _, _ in self._models]:
            model, finals = self.pool.ask(_measure_sensitivity, steps, depths, prompts)
            try:
                # Use it as it is read from the journal, where numbers are rounded.
                model = sensitivity_from_dict(data := sensitivity_to_dict(model))
            except DatoError:
                model, data = None, None  # half precision may overflow if a cache is too old
            self.journal.append({"sensitivity": data, "finals": finals if data else [], "of": key})
            self._models.append((key, model, finals))
        model, finals = next((model, finals) for measured, model, finals in self._models if measured == key)
        return [] if model is None else self.pool.ask(_models_of, model, finals)

    def __call__(self, schedules: Sequence[Schedule], race: bool = False) -> Iterator[Point]:
        """Yield the points of schedules in their order, each as soon as it and those before it are judged.

        Args:
            schedules: The schedules to judge.
            race: Whether candidates that are surely dominated may be given up early. Their rivals are points that were
                yielded before this call. So the result depends neither on the order in which workers finish nor on what
                a journal already holds.
        """
        self.stock  # noqa: B018  stock comes first in every journal
        rivals = self._rivals() if race else ()
        unknown = [schedule for schedule in dict.fromkeys(schedules) if schedule not in self.judged]
        arriving = self.pool.judge(unknown, rivals)
        for schedule in schedules:
            while schedule not in self.judged:
                self._keep(next(arriving))
            self._told[schedule] = self.judged[schedule]
            yield self.judged[schedule].point

    def retime(
        self, points: Mapping[Schedule, Point], rounds: int, progress: Callable[[], None]
    ) -> tuple[Point, list[Point]]:
        """Return stock's point and these points, timed side by side (see `dato.evaluation.side_by_side.retime`).

        If the journal holds that timing, it is read from there. With 0 rounds the points stay as they are.

        Args:
            points: The points to time, by schedule.
            rounds: How often each is timed.
            progress: Called after each generation.
        """
        if not rounds:
            return self.stock.point, list(points.values())
        asked = {"rounds": rounds, "of": [point.to_dict() for point in points.values()]}
        for earlier, result in self._timed:
            if earlier == asked:
                return result[0], result[1:]
        stock, timed = self.pool.ask(retime, points, rounds, progress=progress)
        self.journal.append({"timed": asked, "points": [point.to_dict() for point in (stock, *timed)]})
        return stock, timed

    def budget(self, of_time: Callable[[], Budget]) -> Budget:
        """Return what the search may spend. It is asked for once, and the journal keeps it."""
        if self._budget is None:
            self._budget = of_time()
            self.journal.append({"budget": self._budget.candidates, "finalists": self._budget.finalists})
        return self._budget

    def validated_stock(self) -> Point:
        """Return stock on the validation prompts."""
        if self._validated_stock is None:
            stock = self.pool.ask(validation_stock)
            self._write(self.folder.sample(stock.point.schedule), stock.sample)
            self.journal.append({"validated_stock": stock.point.to_dict()})
            self._validated_stock = stock.point
        return self._validated_stock

    @property
    def validated_images(self) -> int:
        """How many images were generated for validation, stock's not counted."""
        return sum(judgement.images for judgement in self._validated.values())

    def validate(self, schedules: Sequence[Schedule], race: bool = False) -> Iterator[Judgement]:
        """Yield the judgements of schedules by the validation prompts, in their order, each as soon as it is known.

        Args:
            schedules: The schedules.
            race: Whether those that are surely dominated are given up early. Their rivals are what was yielded before
                this call, as in `__call__`.
        """
        stock = self.validated_stock()
        whole = [judgement for schedule, judgement in self._told_validated.items() if self.is_validated(schedule)]
        front = {p.schedule for p in non_dominated(j.point for j in whole if j.point.latency_ms < stock.latency_ms)}
        rivals = rivals_of([(j.point.latency_ms, j.per_image) for j in whole if j.schedule in front]) if race else ()
        unknown = [schedule for schedule in dict.fromkeys(schedules) if schedule not in self._validated]
        arriving = self.pool.each(validated, [(stock, schedule, rivals) for schedule in unknown])
        for schedule in schedules:
            while schedule not in self._validated:
                _, judgement = next(arriving)
                self.journal.append({"validated": judgement.to_dict()})
                self._validated[judgement.schedule] = judgement
                self._write_sample(judgement)
            self._told_validated[schedule] = self._validated[schedule]
            yield self._validated[schedule]

    def is_validated(self, schedule: Schedule) -> bool:
        """Return whether a schedule was judged by all validation prompts, and did not fail."""
        total = max((len(judgement.per_image) for judgement in self._validated.values()), default=0)
        judgement = self._validated.get(schedule)
        return judgement is not None and judgement.failure is None and len(judgement.per_image) == total

    def _keep(self, judgement: Judgement) -> None:
        self.journal.append(judgement.to_dict())
        self.judged[judgement.schedule] = judgement
        self._write_sample(judgement)

    def _write_sample(self, judgement: Judgement) -> None:
        if judgement.sample is not None:
            self._write(self.folder.sample(judgement.schedule), judgement.sample)

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_atomic(path, data)
        except DatoError as error:
            reason = str(error).partition(";")[0]
            raise DatoError(f"{reason}; make room, then resume the search in {self.folder.path}") from None

    def _rivals(self) -> tuple[Rival, ...]:
        whole = {s: j for s, j in self._told.items() if len(j.per_image) == len(self.stock.images)}
        front = non_dominated(j.point for j in whole.values() if self._floor is None or j.point.quality >= self._floor)
        return rivals_of([(point.latency_ms, whole[point.schedule].per_image) for point in front])

    def _take(self, entry: Mapping[str, Any]) -> None:
        if "stock" in entry:
            self._point = point_from_dict("stock", entry["stock"], self._rungs, Pruning())
        elif "latency_table" in entry:
            self.table = LatencyTable.from_dict(entry["latency_table"])
        elif "sensitivity" in entry:
            model = None if entry["sensitivity"] is None else sensitivity_from_dict(entry["sensitivity"])
            self._models.append((entry["of"], model, [tuple(final) for final in entry["finals"]]))
        elif "timed" in entry:
            points = [
                point_from_dict("a timed point", p, self._rungs, Pruning() if number == 0 else self._pruning)
                for number, p in enumerate(entry["points"])
            ]
            self._timed.append((entry["timed"], points))
        elif "budget" in entry:
            self._budget = Budget(float(entry["budget"]), entry.get("finalists"))
        elif "validated_stock" in entry:
            self._validated_stock = point_from_dict("stock", entry["validated_stock"], self._rungs, Pruning())
        elif "validated" in entry:
            judgement = Judgement.from_dict(entry["validated"], self._rungs, self._pruning)
            self._validated[judgement.schedule] = judgement
        elif "judged" in entry or "failed" in entry:
            judgement = Judgement.from_dict(entry, self._rungs, self._pruning)
            self.judged[judgement.schedule] = judgement

    def _stored_stock(self, point: Point) -> Stock | None:
        try:
            images = load_file(self.folder.stock)["images"]
            return Stock(point, images, self.folder.sample(point.schedule).read_bytes())
        except (OSError, SafetensorError, KeyError):
            return None  # it is generated again, from the same noise

    def close(self) -> None:
        """Close the journal, so that another process can open it, and the pool."""
        self.journal.close()
        self.pool.close()


def _measure_table(evaluator: Evaluator, schedules: Sequence[Schedule], **progress: Any) -> LatencyTable:
    options = {"rounds": 1} if evaluator.sampling.batch_size > 2 else {}  # a large batch has less noise
    options |= {"compiled": evaluator.compiled, **progress}
    return measure_table(evaluator.pipe, evaluator.prompts, evaluator.sampling, schedules, **options)


def _measure_sensitivity(
    evaluator: Evaluator, steps: Sequence[int], depths: Sequence[int], prompts: Sequence[str] | None
) -> tuple[Sensitivity, list[tuple[int, list[float]]]]:
    """Return the reference's model, and stock's final latent for each other number of steps.

    The calls of the other generations count in the model's cost.
    """
    pipe, sampling = evaluator.pipe, evaluator.sampling
    prompts = evaluator.prompts[:1] if prompts is None else prompts
    model = measure_sensitivity(pipe, prompts, sampling, depths)
    others = [count for count in steps if count != sampling.steps]
    finals = [(count, final_latent(pipe, prompts, replace(sampling, steps=count)).tolist()) for count in others]
    spent = len(prompts) * sum(num_calls(pipe, count) for count in others)
    return replace(model, unet_calls=model.unet_calls + spent), finals


def _models_of(
    evaluator: Evaluator, model: Sensitivity, finals: Sequence[tuple[int, Sequence[float]]]
) -> list[Sensitivity]:
    scheduler = evaluator.pipe.scheduler
    others = [model.for_steps(scheduler, steps, np.array(final)) for steps, final in finals]
    return [model, *(other.against(model) for other in others)]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, old value, new value) of everything that differs. Objects are compared by their entries."""
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            yield prefix + name, a, b


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = f"{value}"
    return text if len(text) <= 60 else f"{len(value)} of them" if isinstance(value, list) else text[:12] + "..."
