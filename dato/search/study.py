"""A study: what was asked of a search's judges and what they said, in a journal that can be gone on from.

A search asks for schedules; a study answers from its journal, or has them judged and writes that down before it hands
it on. A seeded search that asks a study again gets the same answers in the same order, so it comes to where it was, and
goes on from there: resuming is asking once more.
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
from dato.point import Point, non_dominated, point_from_dict
from dato.prediction.error_measure import final_latent, measure_sensitivity
from dato.prediction.error_model import Sensitivity
from dato.prediction.error_model_file import sensitivity_from_dict, sensitivity_to_dict
from dato.prediction.latency_measure import measure_table
from dato.prediction.latency_table import LatencyTable
from dato.pruning import Pruning
from dato.samplers import num_calls
from dato.schedule import Schedule
from dato.search.journal import FORMAT, VERSION, Journal, check_header
from dato.search.run_folder import Folder
from dato.utils.files import write_atomic
from dato.utils.hardware import versions

LIBRARIES = ("dato", "torch", "diffusers", "transformers", "pymoo", "numpy")


class Study:
    """One search's judgements.

    The journal's first line says what was searched; then come, each on a line of its own, stock, the latency table,
    and every judgement.

    Args:
        folder: The run's files.
        judges: Who judges schedules.

    Attributes:
        judged: All judgements, by schedule, in the order in which they were made.
        replayed: How many of them came from the journal.
        torn: Whether the journal's last line was torn, and dropped.
        other_versions: Libraries that have changed since the journal was begun: name -> what was and what is.

    Raises:
        DatoError: if the journal cannot be read or written, or holds another kind of search.
    """

    def __init__(self, folder: Folder, judges: Pool) -> None:
        self.folder, self.judges = folder, judges
        self.journal = Journal(folder.journal)
        self.torn = self.journal.torn
        self.judged: dict[Schedule, Judgement] = {}
        self.replayed = 0
        self._floor: float | None = None
        self.table: LatencyTable | None = None
        self._point: Point | None = None
        self._models: list[tuple[list[int], Sensitivity | None, Any]] = []
        self._timed: list[tuple[Any, list[Point]]] = []
        self.other_versions: dict[str, str] = {}
        self._told: dict[Schedule, Judgement] = {}  # what the search was told since it began or began again
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
        """Write down what is searched, or compare it with what the journal says and take in what that holds.

        Args:
            command: As "depth".
            options: The command line's, for who resumes it.
            settings: Everything that the judgements depend on.
            pruning: The settings that ratios are meant with.
            floor: Points below this quality are no rivals.

        Raises:
            DatoError: if the journal is of other settings; the message names them.
        """
        self._rungs, self._pruning = self.judges.facts.rungs, pruning
        self._floor = floor
        header = {
            "format": FORMAT,
            "version": VERSION,
            "command": command,
            "rungs": self._rungs,
            "pruning": pruning.to_dict(),
            "options": dict(options),
            "settings": json.loads(json.dumps(settings)),  # as they come back from the file
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
            self.judges.stock, self._stored = stock, True

    @property
    def stock(self) -> Stock:
        """Stock; generated and written down when it is first asked for, or where its images were lost."""
        if not self._stored:
            stock = self.judges.stock
            self._write(self.folder.stock, save({"images": stock.images.contiguous()}))
            self._write(self.folder.sample(stock.point.schedule), stock.sample)
            if self._point is None:
                self._point = stock.point
                self.journal.append({"stock": stock.point.to_dict()})
            self.judges.stock = replace(stock, point=self._point)
            self._stored = True
        return self.judges.stock

    def measured_table(self, schedules: Sequence[Schedule], progress: Any = None) -> LatencyTable:
        """The journal's latency table; where it has none, it is measured for these schedules' calls."""
        if self.table is None:
            self.table = self.judges.ask(_measure_table, schedules, progress=progress)
            self.journal.append({"latency_table": self.table.to_dict()})
        return self.table

    def use_table(self, table: LatencyTable) -> None:
        """Have latencies predicted from now on; to be said before anything is judged."""
        self.table = self.judges.table = table

    def sensitivity(
        self, steps: Sequence[int], depths: Sequence[int], prompts: Sequence[str] | None = None
    ) -> list[Sensitivity]:
        """Sensitivity models, one for each number of steps, against the reference; measured if the journal has none.

        Args:
            steps: Of the sampler; the reference's are measured in any case, and the others read off it.
            depths: To know.
            prompts: To measure on; None: the first of those that candidates are judged by.

        Returns:
            The models; none if what was measured is not finite.
        """
        key = [*steps, 0, *depths]
        if key not in [known for known, _, _ in self._models]:
            model, finals = self.judges.ask(_measure_sensitivity, steps, depths, prompts)
            try:
                # As it will come back from the file, where numbers are rounded.
                model = sensitivity_from_dict(data := sensitivity_to_dict(model))
            except DatoError:
                model, data = None, None  # half precision may overflow where a cache is too old
            self.journal.append({"sensitivity": data, "finals": finals if data else [], "of": key})
            self._models.append((key, model, finals))
        model, finals = next((model, finals) for known, model, finals in self._models if known == key)
        return [] if model is None else self.judges.ask(_models_of, model, finals)

    def __call__(self, schedules: Sequence[Schedule], race: bool = False) -> Iterator[Point]:
        """Yield the points of these schedules, in their order, each as soon as it and those before it are judged.

        Args:
            schedules: What is asked for.
            race: Whether candidates that are surely dominated may be given up early. Their rivals are among the points
                that were handed on before this call, so that neither the order in which workers finish makes a
                difference, nor what a journal already knows.
        """
        self.stock  # noqa: B018  it comes first, whoever asks
        rivals = self._rivals() if race else ()
        unknown = [schedule for schedule in dict.fromkeys(schedules) if schedule not in self.judged]
        arriving = self.judges.judge(unknown, rivals)
        for schedule in schedules:
            while schedule not in self.judged:
                self._keep(next(arriving))
            self._told[schedule] = self.judged[schedule]
            yield self.judged[schedule].point

    def retime(
        self, points: Mapping[Schedule, Point], rounds: int, progress: Callable[[], None]
    ) -> tuple[Point, list[Point]]:
        """Stock's and these points, timed side by side (see `side_by_side.retime`), or as the journal says."""
        if not rounds:
            return self.stock.point, list(points.values())
        asked = {"rounds": rounds, "of": [point.to_dict() for point in points.values()]}
        for known, result in self._timed:
            if known == asked:
                return result[0], result[1:]
        stock, timed = self.judges.ask(retime, points, rounds, progress=progress)
        self.journal.append({"timed": asked, "points": [point.to_dict() for point in (stock, *timed)]})
        return stock, timed

    def _keep(self, judgement: Judgement) -> None:
        self.journal.append(judgement.to_dict())
        self.judged[judgement.schedule] = judgement
        if judgement.sample is not None:
            self._write(self.folder.sample(judgement.schedule), judgement.sample)

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_atomic(path, data)
        except DatoError as error:
            reason = str(error).partition(";")[0]
            raise DatoError(f"{reason}; make room, then --resume {self.folder.path}") from None

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
        elif "judged" in entry or "failed" in entry:
            judgement = Judgement.from_dict(entry, self._rungs, self._pruning)
            self.judged[judgement.schedule] = judgement

    def _stored_stock(self, point: Point) -> Stock | None:
        try:
            images = load_file(self.folder.stock)["images"]
            return Stock(point, images, self.folder.sample(point.schedule).read_bytes())
        except (OSError, SafetensorError, KeyError):
            return None  # they are generated again, from the same noise

    def close(self) -> None:
        """Let others have the journal, and the workers go."""
        self.journal.close()
        self.judges.close()


def _measure_table(evaluator: Evaluator, schedules: Sequence[Schedule], **progress: Any) -> LatencyTable:
    return measure_table(evaluator.pipe, evaluator.prompts, evaluator.sampling, schedules, **progress)


def _measure_sensitivity(
    evaluator: Evaluator, steps: Sequence[int], depths: Sequence[int], prompts: Sequence[str] | None
) -> tuple[Sensitivity, list[tuple[int, list[float]]]]:
    """The reference's model, and stock's final latent for other numbers of steps, whose calls count in its cost."""
    pipe, sampling = evaluator.pipe, replace(evaluator.sampling, batch_size=1)
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
    """(name, old value, new value) of everything that differs; objects are compared by their entries."""
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
