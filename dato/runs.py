"""A run: one search as it lies in its folder, which is what reports are made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dato.front import Front, Point
from dato.schedule import Schedule


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

    @property
    def strategy(self) -> str:
        """What `--strategy` and `dato.load_front` are given for this run."""
        return f"{self.name}/pareto.json" if self.file is None else self.file

    @property
    def failures(self) -> int:
        """How many candidates gave images that are not finite."""
        return sum(not math.isfinite(point.quality) for point in self.history)
