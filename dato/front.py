"""A front: the schedules of one search that no other beats in both quality and latency, as data to be kept.

The JSON schema, version 1 (`Front.to_dict` writes it, `Front.from_dict` reads it strictly):

    format      "dato.front"
    version     1
    rungs       number of rungs of the UNet that the depths are meant for
    pruning     settings that the ratios are meant with (`Pruning`)
    front       list of points, latency ascending
    baseline    the stock pipeline, as a point
    references  {name: point}, stock with fewer steps, uniform schedules and rivals under the same conditions
    conditions  {name: value}, what is needed to trust and repeat it; `calls` and `quality` at least

    a point     depths, ratios, orders: one entry for each call; quality: higher is better; latency_ms: per image;
                speedup: the baseline's latency / this one's; metrics: {name: number}, further measures; and, where they
                differ from the baseline's: forecast (see `Schedule`), steps and scheduler (a name of
                `dato.samplers.SAMPLERS`)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dato.errors import DatoError
from dato.files import read_json, write_atomic
from dato.pruning import Pruning
from dato.schedule import FORMAT as SCHEDULE_FORMAT
from dato.schedule import Schedule, check_version

FORMAT = "dato.front"
VERSION = 1
FILE = "pareto.json"  # in a run's folder, and in a repository of the hub
_KEYS = ("rungs", "pruning", "front", "baseline", "references", "conditions")
# What the tools read of the conditions.
_CONDITIONS: dict[str, tuple[type, ...]] = {
    "calls": (int,),
    "quality": (str,),
    "model": (str,),
    "config": (str,),
    "dtype": (str,),
    "height": (int,),
    "width": (int,),
    "steps": (int,),
    "batch_size": (int,),
    "guidance_scale": (int, float),
    "scheduler_name": (str, type(None)),
    "prompts": (list,),
    "clip": (str, type(None)),
    "statistics": (str, type(None)),
}
_POINT_KEYS = ("depths", "ratios", "orders", "quality", "latency_ms", "speedup", "metrics")
_OWN_KEYS = ("forecast", "steps", "scheduler")  # a point may have them


@dataclass(frozen=True)
class Point:
    """A schedule with what was measured of it.

    Attributes:
        schedule: What runs.
        quality: The search's quality metric; higher is better.
        latency_ms: Milliseconds per image.
        speedup: Stock's latency divided by this one's.
        metrics: Further measures by name.
        steps: Steps of the sampler for which the schedule is meant; None: the front's.
        scheduler: The sampler, a name of `dato.samplers.SAMPLERS` or diffusers' class; None: the front's.
        conditions: Those of the front that it is in; no part of the point itself.
    """

    schedule: Schedule
    quality: float
    latency_ms: float
    speedup: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    scheduler: str | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def kwargs(self) -> dict[str, Any]:
        """What the pipeline has to be called with for this schedule: `pipe(prompt, **point.kwargs)`."""
        return {} if self.steps is None else {"num_inference_steps": self.steps}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `rungs` and `pruning` stand once in the front."""
        schedule = self.schedule.to_dict()
        return {
            **{key: schedule[key] for key in ("depths", "ratios", "orders", "forecast") if key in schedule},
            **({} if self.steps is None else {"steps": self.steps}),
            **({} if self.scheduler is None else {"scheduler": self.scheduler}),
            "quality": self.quality,
            "latency_ms": self.latency_ms,
            "speedup": self.speedup,
            "metrics": dict(self.metrics),
        }


@dataclass(frozen=True)
class Front:
    """The result of one search.

    Attributes:
        points: Non-dominated points, latency ascending.
        baseline: The stock pipeline under the same conditions.
        references: By name, under the same conditions: stock with fewer steps, uniform schedules, rivals.
        conditions: Everything that is needed to repeat the search.

    Raises:
        DatoError: if there is no point, or the points' schedules differ in rungs, or in length without saying of how
            many steps they are.
    """

    points: tuple[Point, ...]
    baseline: Point
    references: Mapping[str, Point] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.points:
            raise DatoError("front: it has no points")
        calls = self.conditions.get("calls", len(self.baseline.schedule))

        # A point that is taken out of the front still knows what it was searched under.
        def own(point: Point) -> Point:
            return point if point.conditions is self.conditions else replace(point, conditions=self.conditions)

        object.__setattr__(self, "points", tuple(own(point) for point in self.points))
        object.__setattr__(self, "baseline", own(self.baseline))
        object.__setattr__(self, "references", {name: own(point) for name, point in self.references.items()})
        for name, point in self._named():
            if point.steps is None and len(point.schedule) != calls:
                raise DatoError(f"front: {name} has a schedule of {len(point.schedule)} calls, the search had {calls}")
            if point.schedule.pruning != self.baseline.schedule.pruning:
                raise DatoError(f"front: {name} is meant with other pruning settings than the baseline")
            if point.schedule.rungs != self.rungs:
                raise DatoError(f"front: {name} is for {point.schedule.rungs} rungs, the baseline for {self.rungs}")

    @property
    def rungs(self) -> int:
        """The number of rungs of the UNet that was searched."""
        return self.baseline.schedule.rungs

    def __len__(self) -> int:
        """The number of points."""
        return len(self.points)

    def knee(self) -> Point:
        """The point farthest above the line between the fastest and the best point, both axes scaled to 0..1.

        Example:
            >>> front = load_front("emoji-sd-depth")
            >>> front.knee() in front.points
            True
        """
        fastest, best = self.points[0], self.points[-1]
        width = best.latency_ms - fastest.latency_ms
        height = best.quality - fastest.quality
        if width <= 0 or height <= 0:
            return best
        return max(
            self.points,
            key=lambda p: (p.quality - fastest.quality) / height - (p.latency_ms - fastest.latency_ms) / width,
        )

    def pick(self, *, speedup: float | None = None, quality: float | None = None) -> Point:
        """The best point that is at least `speedup` times as fast as stock, or the fastest of at least `quality`.

        Raises:
            DatoError: if no point reaches that; the message names the nearest.

        Example:
            >>> point = load_front("emoji-sd-depth").pick(speedup=5)
            >>> point.speedup >= 5, point.scheduler
            (True, 'dpm++2m')
            >>> load_front("emoji-sd-depth").pick(quality=1000)
            Traceback (most recent call last):
            dato.errors.DatoError: no point of the front has a quality of 1000; the best has 83.55
        """
        if (speedup is None) == (quality is None):
            raise DatoError("pick a point by either speedup= or quality=")
        if speedup is not None:
            enough = [p for p in self.points if p.speedup >= speedup]
            if not enough:
                most = max(p.speedup for p in self.points)
                raise DatoError(
                    f"no point of the front is {speedup:g} times as fast as stock; the fastest is {most:.2f}x"
                )
            return max(enough, key=lambda p: p.quality)
        enough = [p for p in self.points if p.quality >= quality]
        if not enough:
            most = max(p.quality for p in self.points)
            raise DatoError(f"no point of the front has a quality of {quality:g}; the best has {most:.4g}")
        return min(enough, key=lambda p: p.latency_ms)

    def choose(self, *, speedup: float | None = None, quality: float | None = None) -> Point:
        """`pick` if something is asked for, else the knee."""
        return self.knee() if speedup is None and quality is None else self.pick(speedup=speedup, quality=quality)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as described at the top of this module."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "rungs": self.rungs,
            "pruning": self.baseline.schedule.pruning.to_dict(),
            "conditions": dict(self.conditions),
            "baseline": self.baseline.to_dict(),
            "references": {name: point.to_dict() for name, point in self.references.items()},
            "front": [point.to_dict() for point in self.points],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Front:
        """The inverse of `to_dict`. Raises DatoError if anything in it is not valid."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise DatoError(f'not a front: "format" is not "{FORMAT}"')
        check_version(data, FORMAT, VERSION)
        _check_keys("front", data, ("format", "version", *_KEYS))
        if not isinstance(data["conditions"], dict):
            raise DatoError('front: "conditions" must be an object')
        _check_has("conditions", data["conditions"], ("calls", "quality"))
        for key, kinds in _CONDITIONS.items():
            if key in data["conditions"] and not isinstance(data["conditions"][key], kinds):
                raise DatoError(f"front: conditions: {key} cannot be {data['conditions'][key]!r}")
        if not isinstance(data["front"], list) or not isinstance(data["references"], dict):
            raise DatoError('front: "front" must be a list of points and "references" an object of them')
        pruning = Pruning.from_dict(data["pruning"])

        def point(name: str, value: Any) -> Point:
            return point_from_dict(name, value, data["rungs"], pruning)

        return cls(
            tuple(sorted((point(f"point {i}", p) for i, p in enumerate(data["front"])), key=lambda p: p.latency_ms)),
            point("baseline", data["baseline"]),
            {name: point(f"reference {name!r}", p) for name, p in data["references"].items()},
            data["conditions"],
        )

    def save(self, path: str | Path) -> None:
        """Write the front as JSON, atomically. Raises DatoError if the place cannot be written to."""
        write_atomic(path, dumps(self.to_dict()) + "\n")

    def save_pretrained(
        self, folder: str | Path, *, push_to_hub: bool = False, repo_id: str | None = None, **options: Any
    ) -> str | None:
        """Write the front to a folder as it is shared: pareto.json and a model card, README.md.

        A card that somebody has edited stays as it is. Of places on this machine that the conditions name, as a local
        model's, only the last part is written; a front without such comes back equal from `from_pretrained`.

        Args:
            folder: Where to.
            push_to_hub: Upload it, too.
            repo_id: What it is to be called on the hub, as the card has it; None: the folder's name.
            **options: Of `push_to_hub`.

        Returns:
            The address of the commit, if it was uploaded.

        Raises:
            DatoError: if the place cannot be written to, or the hub cannot be reached or refuses.
        """
        from dato.hub import push_front, save_front

        if options and not push_to_hub:
            raise DatoError(f"save_pretrained: {next(iter(options))}= is for push_to_hub=True")
        card = save_front(self, folder, repo_id)
        if not push_to_hub:
            return None
        return push_front(self, repo_id or Path(folder).resolve().name, card=card, **options)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the front with a model card to a repository of the Hugging Face hub, which is made if need be.

        A card there that somebody has edited stays as it is. What is written is what `save_pretrained` writes; the
        conditions, prompts included, are part of it.

        Args:
            repo_id: user/name; a name alone is one of the user who is logged in.
            private: Whether a new repository is; None: as the account or organisation has it.
            token: Instead of that of `hf auth login`.
            commit_message: None: "Upload front with dato".
            revision: The branch; made if there is none. None: the main branch.
            create_pr: Open a pull request instead; to the main branch.

        Returns:
            The address of the commit or pull request.

        Raises:
            DatoError: if the id cannot be one, a pull request is to be to a branch, or the hub cannot be reached or
                refuses.
        """
        from dato.hub import push_front

        options = {"private": private, "token": token, "commit_message": commit_message}
        return push_front(self, repo_id, revision=revision, create_pr=create_pr, **options)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repo_id: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> Front:
        """Load a front from a folder, a run's or one that `save_pretrained` wrote, or else from the Hugging Face hub.

        Args:
            folder_or_repo_id: A folder; or user/name or user/name@revision on the hub.
            revision: A branch, tag or commit there; None: the main branch.
            subfolder: Of the folder or repository.
            token: Instead of that of `hf auth login`; False: none.
            cache_dir: Where the hub's cache is.
            local_files_only: Look into the cache only.
            force_download: Download what the cache has, too.

        Raises:
            DatoError: if there is no such folder or repository, the hub cannot be reached, or what is there is not a
                valid front.
        """
        from dato.hub import fetch, is_name

        if Path(folder_or_repo_id).is_dir():
            path = _file_in(Path(folder_or_repo_id, subfolder or ""))
        elif isinstance(folder_or_repo_id, str) and is_name(folder_or_repo_id):
            options = {"token": token, "cache_dir": cache_dir, "force_download": force_download}
            options |= {"subfolder": subfolder, "local_files_only": local_files_only}
            path = fetch(folder_or_repo_id, revision=revision, **options)
        else:
            raise DatoError(
                f"there is no folder {str(folder_or_repo_id)!r}, and on the hub a front is called user/name"
            )
        return _front(read_strategy(path), folder_or_repo_id)

    def _named(self) -> Iterable[tuple[str, Point]]:
        yield "baseline", self.baseline
        yield from ((f"reference {name!r}", point) for name, point in self.references.items())
        yield from ((f"point {i}", point) for i, point in enumerate(self.points))


def non_dominated(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other one beats in quality and latency, latency ascending; one of equals is kept."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency_ms, -p.quality)):
        if math.isfinite(point.quality) and (not front or point.quality > front[-1].quality):
            front.append(point)
    return tuple(front)


def competing(points: Iterable[Point], floor: float | None) -> tuple[Point, ...]:
    """The non-dominated ones of the points that are good enough and faster than stock; of all, if none is."""
    points = list(points)
    good = [point for point in points if floor is None or point.quality >= floor] or points
    # Against stock itself nothing that is slower can stand, however the clock wandered when both were timed.
    return non_dominated([point for point in good if point.speedup > 1] or good)


def load_front(path_or_name: str | Path) -> Front:
    """Load a front from its JSON file or its run's folder, a shipped one by name, or user/name[@revision] from the hub.

    Raises:
        DatoError: if there is no such file or name, the hub cannot be reached, or what is there is not a valid front.

    Example:
        >>> front = load_front("emoji-sd-depth")
        >>> front.conditions["quality"], front.conditions["scheduler_name"]
        ('psnr', 'dpm++2m')
        >>> all(point.speedup > 1 for point in front.points)
        True
    """
    return _front(load_strategy(path_or_name), path_or_name)


def load_strategy(path_or_name: str | Path) -> Front | Schedule:
    """Load a front or schedule by its file, its folder, or its name: shipped, or the hub's. Raises as `load_front`."""
    path, name = Path(path_or_name), str(path_or_name)
    if path.is_dir() and name not in strategies():
        path = _file_in(path)
    if not path.is_file():
        shipped = strategies()
        if name not in shipped:
            from dato.hub import fetch, is_name  # not before it is needed

            if isinstance(path_or_name, str) and is_name(name):
                return read_strategy(fetch(name))
            raise DatoError(f"no file and no shipped strategy {name!r}; shipped are: {', '.join(sorted(shipped))}")
        path = shipped[name]
    return read_strategy(path)


def read_strategy(path: Path) -> Front | Schedule:
    """Read a front's or schedule's file. Raises DatoError, naming the file, if it is neither, or not a valid one."""
    data = read_json(path)
    kind = data.get("format") if isinstance(data, dict) else None
    if kind not in (FORMAT, SCHEDULE_FORMAT):
        raise DatoError(
            f'{path}: neither a front nor a schedule: its "format" must be "{FORMAT}" or "{SCHEDULE_FORMAT}"'
        )
    try:
        return Front.from_dict(data) if kind == FORMAT else Schedule.from_dict(data)
    except DatoError as error:
        raise DatoError(f"{path}: {error}") from None


def strategies() -> dict[str, Path]:
    """The shipped schedules and fronts: {name: file}."""
    here = Path(__file__).parent
    # In a wheel the folder lies inside the package, in a checkout beside it.
    folder = next((f for f in (here / "strategies", here.parent / "strategies") if f.is_dir()), None)
    return {} if folder is None else {file.stem: file for file in folder.glob("*.json")}


def dumps(data: Any, indent: int = 0) -> str:
    """JSON in which a list of plain values takes one line, so that a person can read a schedule."""
    pad = " " * (indent + 1)
    if isinstance(data, dict) and data:
        items = [f"{pad}{json.dumps(key)}: {dumps(value, indent + 1)}" for key, value in data.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    if isinstance(data, list) and any(isinstance(value, (dict, list)) for value in data):
        return "[\n" + ",\n".join(pad + dumps(value, indent + 1) for value in data) + "\n" + " " * indent + "]"
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def point_from_dict(name: str, data: Any, rungs: Any, pruning: Pruning) -> Point:
    if not isinstance(data, dict):
        raise DatoError(f"front: {name} must be an object")
    _check_keys(name, data, _POINT_KEYS, _OWN_KEYS)
    forecast = data.get("forecast", "polynomial")
    try:
        schedule = Schedule(data["depths"], data["ratios"], data["orders"], rungs, pruning, forecast)
    except DatoError as error:
        raise DatoError(f"front: {name}: {error}") from None
    if not isinstance(data["metrics"], dict):
        raise DatoError(f"front: {name}: metrics must be an object")
    numbers = {key: data[key] for key in ("quality", "latency_ms", "speedup")} | data["metrics"]
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e300 < value < 1e300:
            raise DatoError(f"front: {name}: {key} must be a finite number, not {value!r}")
    if data["latency_ms"] <= 0 or data["speedup"] <= 0:
        raise DatoError(f"front: {name}: latency_ms and speedup must be above 0")
    steps, scheduler = data.get("steps"), data.get("scheduler")
    if not (steps is None or (isinstance(steps, int) and not isinstance(steps, bool) and steps > 0)):
        raise DatoError(f"front: {name}: steps must be a whole number above 0, not {steps!r}")
    if not (scheduler is None or isinstance(scheduler, str)):
        raise DatoError(f"front: {name}: scheduler must be a name, not {scheduler!r}")
    measured = (data["quality"], data["latency_ms"], data["speedup"], data["metrics"])
    return Point(schedule, *measured, steps, scheduler)


def _front(loaded: Front | Schedule, name: str | Path) -> Front:
    if isinstance(loaded, Schedule):
        raise DatoError(f"{name} is one schedule, not a front; apply_patch takes it as it is")
    return loaded


def _file_in(folder: Path) -> Path:
    path = folder / FILE
    if not path.exists():
        raise DatoError(f"{folder} is a folder without {FILE}: no run, or one that has not ended")
    return path


def _check_has(name: str, data: dict[str, Any], keys: Iterable[str]) -> None:
    missing = [key for key in keys if key not in data]
    if missing:
        raise DatoError(f'front: {name}: "{missing[0]}" is missing')


def _check_keys(name: str, data: dict[str, Any], keys: Iterable[str], optional: Iterable[str] = ()) -> None:
    _check_has(name, data, [key for key in keys if key not in ("format", "version")])
    unknown = sorted(set(data) - {*keys, *optional})
    if unknown:
        raise DatoError(f'front: {name}: unknown key "{unknown[0]}"')
