"""A front: the non-dominated schedules of one search, with what is needed to trust and repeat it.

The format, version 1 (`Front.to_dict` writes it, `Front.from_dict` reads it strictly). `dato.schemas` has it as a JSON
Schema, which describes every key with its unit:

    format      "dato.front"
    version     1
    rungs       number of rungs of the UNet that was searched
    pruning     settings of token pruning for all ratios (`Pruning`)
    front       list of points, latency ascending
    baseline    the stock pipeline, as a point
    references  {name: point}, stock with fewer steps, uniform schedules and rival methods, under the same conditions
    conditions  {name: value}, what is needed to repeat the search; `calls` and `quality` at least

    a point     depths, ratios, orders: one entry for each call. quality: higher is better. latency_ms: per image.
                speedup: the baseline's latency / this point's. metrics: {name: number}, further measures.
                Optional, where they differ from the baseline's: forecast (see `Schedule`), steps, and scheduler (a
                name of `dato.samplers.SAMPLERS`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dato.errors import DatoError
from dato.hub.names import FRONT_FILE as FILE
from dato.hub.names import is_name
from dato.plain_steps import PlainSteps, plain_steps
from dato.point import Point, check_has, check_keys, point_from_dict
from dato.pruning import Pruning
from dato.schedule import FORMAT as SCHEDULE_FORMAT
from dato.schedule import Schedule, check_version
from dato.utils.files import dumps, finite, read_json, write_atomic

FORMAT = "dato.front"
VERSION = 1
_KEYS = ("rungs", "pruning", "front", "baseline", "references", "conditions")
# The conditions that dato itself reads, and their types.
_CONDITIONS: dict[str, tuple[type, ...]] = {
    "calls": (int,),
    "quality": (str,),
    "model": (str,),
    "config": (str,),
    "variant": (str,),
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


@dataclass(frozen=True)
class Front:
    """The result of one search.

    Attributes:
        points: Non-dominated points, latency ascending.
        baseline: The stock pipeline under the same conditions.
        references: By name, under the same conditions: stock with fewer steps, uniform schedules, rival methods.
        conditions: Everything that is needed to repeat the search.

    Raises:
        DatoError: if there is no point, or the schedules differ in rungs or pruning settings, or a schedule has
            another number of calls than the search and its point does not say its steps.
    """

    points: tuple[Point, ...]
    baseline: Point
    references: Mapping[str, Point] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.points:
            raise DatoError("front: it has no points")
        calls = self.conditions.get("calls", len(self.baseline.schedule))

        # Each point carries the conditions. So a point that is taken out of the front still has them.
        def with_conditions(point: Point) -> Point:
            return point if point.conditions is self.conditions else replace(point, conditions=self.conditions)

        references = {name: with_conditions(point) for name, point in self.references.items()}
        object.__setattr__(self, "points", tuple(with_conditions(point) for point in self.points))
        object.__setattr__(self, "baseline", with_conditions(self.baseline))
        object.__setattr__(self, "references", references)
        for name, point in self._named():
            if point.steps is None and len(point.schedule) != calls:
                raise DatoError(f"front: {name} has a schedule of {len(point.schedule)} calls, the search had {calls}")
            if point.schedule.pruning != self.baseline.schedule.pruning:
                raise DatoError(f"front: {name} has other pruning settings than the baseline")
            if point.schedule.rungs != self.rungs:
                raise DatoError(f"front: {name} is for {point.schedule.rungs} rungs, the baseline for {self.rungs}")

    @property
    def rungs(self) -> int:
        """Return the number of rungs of the UNet that was searched."""
        return self.baseline.schedule.rungs

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.points)

    @property
    def knee_index(self) -> int:
        """Return the index of the knee among the points."""
        fastest, best = self.points[0], self.points[-1]
        width = best.latency_ms - fastest.latency_ms
        height = best.quality - fastest.quality
        if width <= 0 or height <= 0:
            return len(self.points) - 1

        def above_the_line(index: int) -> float:
            point = self.points[index]
            return (point.quality - fastest.quality) / height - (point.latency_ms - fastest.latency_ms) / width

        return max(range(len(self.points)), key=above_the_line)

    def knee(self) -> Point:
        """Return the point farthest above the line between the fastest and the best point, both axes scaled to 0..1.

        Example:
            >>> import dato
            >>> front = dato.load_front("emoji-sd-depth")
            >>> front.knee() in front.points
            True
        """
        return self.points[self.knee_index]

    def pick(self, *, speedup: float | None = None, quality: float | None = None) -> Point:
        """Return the best point that is at least `speedup` times as fast as stock, or the fastest of `quality` or more.

        Args:
            speedup: The least speed-up.
            quality: The least quality, in the sign of `Point.quality`. Give one of the two.

        Raises:
            DatoError: if no point reaches that. The message names the nearest.

        Example:
            >>> import dato
            >>> point = dato.load_front("emoji-sd-depth").pick(speedup=5)
            >>> point.speedup >= 5, point.scheduler
            (True, 'dpm++2m')
            >>> dato.load_front("emoji-sd-depth").pick(quality=1000)
            Traceback (most recent call last):
            dato.errors.DatoError: no point of the front has a quality of 1000; the best has 68.87
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
        """Return `pick(...)` if speedup or quality is given, else the knee."""
        return self.knee() if speedup is None and quality is None else self.pick(speedup=speedup, quality=quality)

    def plain_steps(self, point: Point) -> PlainSteps | None:
        """Return how many plain steps of the sampler are as good as a point, and its speed-up over those.

        It is interpolated between the references that are stock with fewer steps (see `dato.plain_steps`). None if
        there are none, or if more steps are not better by this front's quality.

        Example:
            >>> import dato
            >>> front = dato.load_front("emoji-sd-depth")
            >>> plain = front.plain_steps(front.pick(speedup=7))
            >>> round(plain.steps), round(plain.speedup, 1)
            (20, 3.2)
        """
        return plain_steps(point, self.references.values(), self.baseline)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, as described at the top of this module.

        Conditions that are not finite become None, because JSON has no such numbers.

        Raises:
            DatoError: if the quality, latency or speed-up of a point is not finite.
        """
        for name, point in self._named():
            for key in ("quality", "latency_ms", "speedup"):
                if not math.isfinite(value := getattr(point, key)):
                    raise DatoError(f"front: {name}: {key} must be a finite number, not {value!r}")
        return {
            "format": FORMAT,
            "version": VERSION,
            "rungs": self.rungs,
            "pruning": self.baseline.schedule.pruning.to_dict(),
            "conditions": finite(dict(self.conditions)),
            "baseline": self.baseline.to_dict(),
            "references": {name: point.to_dict() for name, point in self.references.items()},
            "front": [point.to_dict() for point in self.points],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Front:
        """Return the front of a dictionary that `to_dict` made. Raise DatoError if anything in it is not valid."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise DatoError(f'not a front: "format" is not "{FORMAT}"')
        check_version(data, FORMAT, VERSION)
        check_keys("front", data, ("format", "version", *_KEYS))
        if not isinstance(data["conditions"], dict):
            raise DatoError('front: "conditions" must be an object')
        check_has("conditions", data["conditions"], ("calls", "quality"))
        conditions = finite(data["conditions"])
        for key, kinds in _CONDITIONS.items():
            # To Python true is a whole number. To JSON it is not.
            if key in conditions and (isinstance(conditions[key], bool) or not isinstance(conditions[key], kinds)):
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
            conditions,
        )

    def save(self, path: str | Path) -> None:
        """Write the front as JSON, atomically. Raise DatoError if the file cannot be written, or as `to_dict` does."""
        write_atomic(path, dumps(self.to_dict()) + "\n")

    def save_pretrained(
        self, folder: str | Path, *, push_to_hub: bool = False, repo_id: str | None = None, **options: Any
    ) -> str | None:
        """Write the front to a folder that can be shared: pareto.json and a model card, README.md.

        A card that somebody has edited stays as it is. If the conditions hold a path on this machine, such as that of a
        local model, only its last part is written. A front without such paths comes back equal from `from_pretrained`.

        Args:
            folder: Where to write.
            push_to_hub: Whether to upload it, too.
            repo_id: The repository on the hub, also the name in the card. None: the folder's name.
            **options: Further arguments of `push_to_hub`.

        Returns:
            The address of the commit. None if nothing was uploaded.

        Raises:
            DatoError: if the folder cannot be written to, or the hub cannot be reached or refuses.
        """
        from dato.hub.repository import push_front, save_front

        if options and not push_to_hub:
            raise DatoError(f"save_pretrained: {next(iter(options))}= is for push_to_hub=True")
        data = self.to_dict()
        card = save_front(data, self.knee_index, folder, repo_id)
        if not push_to_hub:
            return None
        return push_front(data, self.knee_index, repo_id or Path(folder).resolve().name, card=card, **options)

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
        """Upload the front with a model card to the Hugging Face hub. Make the repository if it does not exist.

        A card on the hub that somebody has edited stays as it is. The files are those that `save_pretrained` writes,
        so the conditions are public in a public repository, prompts included.

        Args:
            repo_id: user/name, or the name alone for a repository of the user who is logged in.
            private: Whether a new repository is private. None: the default of the account.
            token: A token. None: that of `hf auth login`.
            commit_message: None: "Upload front with dato".
            revision: The branch, made if it does not exist. None: the main branch.
            create_pr: Open a pull request to the main branch instead.

        Returns:
            The address of the commit or pull request.

        Raises:
            DatoError: if `repo_id` is not valid, a pull request is asked for on another branch than main, or the hub
                cannot be reached or refuses.
        """
        from dato.hub.repository import push_front

        options = {"private": private, "token": token, "commit_message": commit_message}
        return push_front(self.to_dict(), self.knee_index, repo_id, revision=revision, create_pr=create_pr, **options)

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
        """Load a front from a folder (a run's, or one that `save_pretrained` wrote), else from the Hugging Face hub.

        Args:
            folder_or_repo_id: A folder. Or user/name or user/name@revision on the hub.
            revision: A branch, tag or commit on the hub. None: the main branch.
            subfolder: The folder inside the folder or repository.
            token: A token, or False for none. None: that of `hf auth login`.
            cache_dir: The folder of the hub's cache. None: the hub's own.
            local_files_only: Look into the cache only.
            force_download: Download the file even if the cache has it.

        Raises:
            DatoError: if there is no such folder or repository, the hub cannot be reached, or its file is not a valid
                front.
        """
        if Path(folder_or_repo_id).is_dir():
            path = file_in(Path(folder_or_repo_id, subfolder or ""))
        elif isinstance(folder_or_repo_id, str) and is_name(folder_or_repo_id):
            from dato.hub.repository import fetch

            options = {"token": token, "cache_dir": cache_dir, "force_download": force_download}
            options |= {"subfolder": subfolder, "local_files_only": local_files_only}
            path = fetch(folder_or_repo_id, revision=revision, **options)
        else:
            raise DatoError(
                f"there is no folder {str(folder_or_repo_id)!r}, and on the hub a front is called user/name"
            )
        return front_of(read_strategy(path), folder_or_repo_id)

    def _named(self) -> Iterable[tuple[str, Point]]:
        yield "baseline", self.baseline
        yield from ((f"reference {name!r}", point) for name, point in self.references.items())
        yield from ((f"point {i}", point) for i, point in enumerate(self.points))


def read_strategy(path: Path) -> Front | Schedule:
    """Read the file of a front or a schedule. Raise DatoError, with the file's name, if it is not a valid one."""
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


def front_of(loaded: Front | Schedule, name: str | Path) -> Front:
    """Return what was loaded under a name, if it is a front. Raise DatoError if it is a schedule."""
    if isinstance(loaded, Schedule):
        raise DatoError(f"{name} is one schedule, not a front; apply_patch takes it as it is")
    return loaded


def file_in(folder: Path) -> Path:
    """Return the path of the front in a run's folder. Raise DatoError if there is none."""
    path = folder / FILE
    if not path.exists():
        raise DatoError(f"{folder} is a folder without {FILE}: it is not a run's folder, or the run has not ended")
    return path
