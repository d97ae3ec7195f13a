"""A run's folder: the files that a search writes, and reading them for a report."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dato.errors import DatoError
from dato.front import FILE, Front
from dato.point import Point
from dato.pruning import Pruning
from dato.schedule import Schedule
from dato.search.journal import read_judgements
from dato.strategies import load_front

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile


@dataclass(frozen=True)
class Folder:
    """The files of one run.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def front(self) -> Path:
        """The front."""
        return self.path / FILE

    @property
    def journal(self) -> Path:
        """Everything that was judged, a line each."""
        return self.path / "journal.jsonl"

    @property
    def stock(self) -> Path:
        """Stock's images as numbers. Fidelity is measured against them."""
        return self.path / "stock.safetensors"

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.path / "report.html"

    def sample(self, schedule: Schedule) -> Path:
        """Return the file of the first images that a schedule gave, side by side."""
        if not any(schedule.ratios):
            schedule = replace(schedule, pruning=Pruning())  # it has no effect then, and differs for stock in a front
        return self.path / "samples" / f"{hashlib.sha256(schedule.to_json().encode()).hexdigest()[:20]}.webp"


@dataclass(frozen=True)
class Run:
    """One search as it lies in its folder. Reports are made from it.

    Attributes:
        name: The folder's name.
        front: What the search found.
        history: Every candidate in the order in which it was judged; () if there is no journal. The quality of a
            candidate that failed is not finite.
        samples: For each schedule a strip of up to four images side by side (WebP, PNG or JPEG). They are those of
            the first `sample_prompts`. Stock's strip is that of `front.baseline.schedule`.
        file: The front's name in commands: its file, or a shipped front's name; None: pareto.json in the folder `name`.
    """

    name: str
    front: Front
    history: tuple[Point, ...] = ()
    samples: Mapping[Schedule, bytes] = field(default_factory=dict)
    file: str | None = None

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a run from its folder, or a front alone from its file or by its name.

        Raises:
            DatoError: if there is no front, or what is there cannot be read.
        """
        folder = Folder(Path(path) if Path(path).is_dir() else Path(path).parent)
        front = load_front(path)
        if not Path(path).is_dir() and (Path(path).name != folder.front.name or not folder.journal.exists()):
            return cls(Path(path).stem, front, file=str(path))
        points = [front.baseline, *front.points, *front.references.values()]
        strips = {point.schedule: folder.sample(point.schedule) for point in points}
        samples = {schedule: strip.read_bytes() for schedule, strip in strips.items() if strip.exists()}
        judgements = read_judgements(folder.journal) if folder.journal.exists() else []
        history = tuple(judgement.point for judgement in judgements)
        return cls(folder.path.resolve().name, front, history, samples, str(folder.front))

    @property
    def strategy(self) -> str:
        """What `dato.load_front` is given for this run."""
        return f"{self.name}/{FILE}" if self.file is None else self.file

    @property
    def sample_prompts(self) -> list[str]:
        """The prompts of the samples, in their order: those of the validation if the front was validated."""
        conditions = self.front.conditions
        return [str(prompt) for prompt in conditions.get("validation_prompts", conditions.get("prompts", []))]

    @property
    def failures(self) -> int:
        """How many candidates could not be judged."""
        return sum(not math.isfinite(point.quality) for point in self.history)

    def strip(self, schedule: Schedule) -> ImageFile | None:
        """Return the sample images of a schedule, side by side, or None if none were kept.

        Raises:
            DatoError: if what was kept is no PNG, WebP or JPEG image.
        """
        from PIL import Image

        data = self.samples.get(schedule)
        if data is None:
            return None
        try:
            image = Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "JPEG"))
            image.load()
        except (OSError, ValueError):
            raise DatoError(f"run {self.name}: a sample is no PNG, WebP or JPEG image") from None
        return image

    def images_in(self, strip: Image) -> int:
        """Return how many images stand side by side in a strip, by the shape of the search's images."""
        height, width = (self.front.conditions.get(key) for key in ("height", "width"))
        shape = width / height if height and width else 1
        return max(1, round(strip.width / strip.height / shape))
