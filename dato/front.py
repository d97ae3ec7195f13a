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

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dato.errors import DatoError
from dato.point import Point, check_has, check_keys, point_from_dict
from dato.pruning import Pruning
from dato.schedule import FORMAT as SCHEDULE_FORMAT
from dato.schedule import Schedule, check_version
from dato.utils.files import dumps, read_json, write_atomic

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
            >>> import dato
            >>> front = dato.load_front("emoji-sd-depth")
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
            >>> import dato
            >>> point = dato.load_front("emoji-sd-depth").pick(speedup=5)
            >>> point.speedup >= 5, point.scheduler
            (True, 'dpm++2m')
            >>> dato.load_front("emoji-sd-depth").pick(quality=1000)
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
        check_keys("front", data, ("format", "version", *_KEYS))
        if not isinstance(data["conditions"], dict):
            raise DatoError('front: "conditions" must be an object')
        check_has("conditions", data["conditions"], ("calls", "quality"))
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
        from dato.hub.repository import push_front, save_front

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
        from dato.hub.repository import push_front

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
        from dato.hub.repository import fetch, is_name

        if Path(folder_or_repo_id).is_dir():
            path = file_in(Path(folder_or_repo_id, subfolder or ""))
        elif isinstance(folder_or_repo_id, str) and is_name(folder_or_repo_id):
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


def front_of(loaded: Front | Schedule, name: str | Path) -> Front:
    if isinstance(loaded, Schedule):
        raise DatoError(f"{name} is one schedule, not a front; apply_patch takes it as it is")
    return loaded


def file_in(folder: Path) -> Path:
    path = folder / FILE
    if not path.exists():
        raise DatoError(f"{folder} is a folder without {FILE}: no run, or one that has not ended")
    return path
