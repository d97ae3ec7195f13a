"""What a running search shows: a live picture on a terminal, lines of JSON for other programs, or nothing.

Ctrl-C or SIGTERM ends a search after the candidate that is being judged.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.progress import Progress
from rich.table import Table

from dato.cli.console import err, flag_of, with_flags
from dato.metrics import shown
from dato.point import Point
from dato.report.schedule_text import strip
from dato.search.progress import ProgressBar, SearchProgress
from dato.utils.files import finite

ROWS = 8  # of the best points so far


class _StopOnSignals(SearchProgress):
    """Asks the search to stop after a signal. A second signal stops at once."""

    _asked = False

    def should_stop(self) -> bool:
        """See `SearchProgress`."""
        return self._asked

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """See `SearchProgress`."""

        def handle(number: int, frame: Any) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True
            self.stopping()

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with super().running():
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stopping(self) -> None:
        """React to the first signal. This runs in the signal's handler."""


class Quiet(_StopOnSignals):
    """Shows nothing: `--quiet`."""


class Lines(_StopOnSignals):
    """Writes one JSON object a line on standard output: `--json`."""

    def _say(self, event: str, **what: Any) -> None:
        print(json.dumps(finite({"event": event, **what})), flush=True)  # ASCII, which every output can hold

    def note(self, text: str) -> None:
        """See `SearchProgress`."""
        self._say("note", text=_in_words_of_the_command(text))

    def phase(self, name: str, total: int) -> None:
        """See `SearchProgress`."""
        self._say("phase", name=name, total=total)

    def judged(self, point: Point, front: Sequence[Point], images: int) -> None:
        """See `SearchProgress`."""
        ok = math.isfinite(point.quality)
        values = {"quality": point.quality, "latency_ms": point.latency_ms, "speedup": point.speedup} if ok else {}
        self._say("judged", **values, failed=not ok, steps=point.steps, front=len(front), images=images)


class _Picture(Progress):
    """Bars with the best points so far above them."""

    best: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.best is not None:
            yield self.best
        yield from super().get_renderables()


class Live(_StopOnSignals, ProgressBar):
    """Shows the best points so far, and bars with images a second and the time left.

    Args:
        metric: The objective's name.
    """

    bars_class = _Picture

    def __init__(self, metric: str) -> None:
        super().__init__(err)
        self.metric = metric

    def note(self, text: str) -> None:
        """See `SearchProgress`."""
        super().note(_in_words_of_the_command(text))

    def stopping(self) -> None:
        """Say so without any buffer, because the signal may have interrupted the code that holds it."""
        os.write(2, b"\nStopping after this candidate; Ctrl-C once more stops at once.\n")

    def judged(self, point: Point, front: Sequence[Point], images: int) -> None:
        """See `SearchProgress`."""
        super().judged(point, front, images)
        self.bars.best = self._table(front)

    def _table(self, front: Sequence[Point]) -> Table:
        table = Table(box=None, header_style="bold", title=f"Best so far: {len(front)} points", title_justify="left")
        for column in ("speed-up", self.metric, "steps"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("depth by call", no_wrap=True, overflow="ellipsis")
        step = max(1, math.ceil(len(front) / ROWS))
        for point in front[::step]:
            quality = shown(self.metric, point.quality)
            cells = [f"{point.speedup:.2f}x", f"{quality:.4g}", f"{point.steps or ''}", strip(point.schedule)]
            table.add_row(*cells)
        return table


def display_of(metric: str, quiet: bool, lines: bool) -> SearchProgress:
    """Return what `--quiet` and `--json` ask for."""
    return Lines() if lines else Quiet() if quiet else Live(metric)


def _in_words_of_the_command(text: str) -> str:
    return with_flags(text, {"min_quality": flag_of("min_quality")})
