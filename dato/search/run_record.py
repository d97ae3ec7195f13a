"""A run: one search as it lies in its folder, which is what reports are made from."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from PIL.ImageFile import ImageFile

from dato.errors import DatoError
from dato.front import Front
from dato.point import Point
from dato.schedule import Schedule
from dato.search.journal import read_judgements
from dato.search.run_folder import Folder
from dato.strategies import load_front


@dataclass(frozen=True)
class Run:
    """One search, as it lies in its folder.

    Attributes:
        name: The folder's name.
        front: What the search found.
        history: Every candidate in the order in which it was judged; () where there is no journal. A point whose
            quality is not finite failed.
        samples: For each schedule a strip of up to four images side by side (WebP, PNG or JPEG), made for the front's
            first prompts in their order; stock's is that of `front.baseline.schedule`.
        file: What commands call the front's file, or a shipped front's name; None: pareto.json in the folder `name`.
    """

    name: str
    front: Front
    history: tuple[Point, ...] = ()
    samples: Mapping[Schedule, bytes] = field(default_factory=dict)
    file: str | None = None

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """A run from its folder, or a front alone from its file or by a shipped one's name.

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
        history = (
            tuple(judgement.point for judgement in read_judgements(folder.journal)) if folder.journal.exists() else ()
        )
        return cls(folder.path.resolve().name, front, history, samples, str(folder.front))

    @property
    def strategy(self) -> str:
        """What `--strategy` and `dato.load_front` are given for this run."""
        return f"{self.name}/pareto.json" if self.file is None else self.file

    @property
    def failures(self) -> int:
        """How many candidates could not be judged."""
        return sum(not math.isfinite(point.quality) for point in self.history)

    def strip(self, schedule: Schedule) -> ImageFile | None:
        """The sample images of a schedule, side by side; None where none were kept.

        Raises:
            DatoError: if what was kept is no PNG, WebP or JPEG image.
        """
        data = self.samples.get(schedule)
        if data is None:
            return None
        try:
            image = Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "JPEG"))
            image.load()
        except (OSError, ValueError):
            raise DatoError(f"run {self.name}: a sample is no PNG, WebP or JPEG image") from None
        return image

    def images_in(self, strip: Image.Image) -> int:
        """How many images stand side by side in a strip, going by the shape that the search's images have."""
        height, width = (self.front.conditions.get(key) for key in ("height", "width"))
        shape = width / height if height and width else 1
        return max(1, round(strip.width / strip.height / shape))
