"""Where a run's files lie."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from dato.pruning import Pruning
from dato.schedule import Schedule


@dataclass(frozen=True)
class Folder:
    """The files of one run.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def front(self) -> Path:
        """The result."""
        return self.path / "pareto.json"

    @property
    def journal(self) -> Path:
        """Everything that was judged, line by line."""
        return self.path / "journal.jsonl"

    @property
    def stock(self) -> Path:
        """Stock's images as numbers, which fidelity is measured against."""
        return self.path / "stock.safetensors"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"

    def sample(self, schedule: Schedule) -> Path:
        """The first images that a schedule gave, side by side."""
        if not any(schedule.ratios):
            schedule = replace(schedule, pruning=Pruning())  # it has no say, and stock's is another in a front
        return self.path / "samples" / f"{hashlib.sha256(schedule.to_json().encode()).hexdigest()[:20]}.webp"
