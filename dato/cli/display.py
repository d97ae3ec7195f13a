"""What a running search shows: a live picture on a terminal, lines of JSON for other programs, or nothing."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dato.cli.console import err
from dato.metrics import shown
from dato.point import Point
from dato.report.schedule_text import strip

ROWS = 8  # of the best points so far


class Display:
    """Shows nothing: `--quiet`. The others show more.

    Args:
        metric: The objective's name.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def urgent(self, text: str) -> None:
        """Something to be said from within a signal handler."""

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[Callable[[float, float], None]]:
        """While something takes time; yields what is to be called with how much of how much is done."""
        yield lambda done, total: None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While candidates are judged."""
        yield

    def phase(self, name: str, total: int) -> None:
        """So many of something are to be done next."""

    def advance(self) -> None:
        """One of them is done."""

    def judged(self, point: Point, found: Sequence[Point], images: int) -> None:
        """A candidate was judged, `found` is the front now, and so many images were generated since the start."""
        self.advance()


class Lines(Display):
    """One JSON object a line on standard output: `--json`."""

    def _say(self, event: str, **what: Any) -> None:
        print(json.dumps({"event": event, **what}, ensure_ascii=False), flush=True)

    def note(self, text: str) -> None:
        """See `Display`."""
        self._say("note", text=text)

    def phase(self, name: str, total: int) -> None:
        """See `Display`."""
        self._say("phase", name=name, total=total)

    def judged(self, point: Point, found: Sequence[Point], images: int) -> None:
        """See `Display`."""
        ok = math.isfinite(point.quality)
        own = {"quality": point.quality, "latency_ms": point.latency_ms, "speedup": point.speedup} if ok else {}
        self._say("judged", **own, failed=not ok, steps=point.steps, front=len(found), images=images)


class _Picture(Progress):
    """Bars with the best points so far above them."""

    best: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.best is not None:
            yield self.best
        yield from super().get_renderables()


class Live(Display):
    """The best points so far, and bars with images a second and the time left."""

    def __init__(self, metric: str) -> None:
        super().__init__(metric)
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        self._bars = _Picture(*columns, TextColumn("left"), TimeRemainingColumn(), console=err)
        self._task = None
        self._name, self._start = "", 0.0

    def note(self, text: str) -> None:
        """See `Display`."""
        err.print(text, highlight=False, markup=False, soft_wrap=True)

    def urgent(self, text: str) -> None:
        """See `Display`. It goes past all buffers, whose owners a signal may have interrupted."""
        os.write(2, f"\n{text}\n".encode())

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[Callable[[float, float], None]]:
        """See `Display`."""
        with err.status(text) as status:
            yield lambda done, total: status.update(f"{text}: {done / total:.0%}")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """See `Display`."""
        self._start = time.monotonic()
        with self._bars:
            yield

    def phase(self, name: str, total: int) -> None:
        """See `Display`."""
        self._name, self._task = name, self._bars.add_task(name, total=total)

    def advance(self) -> None:
        """See `Display`."""
        self._bars.advance(self._task)

    def judged(self, point: Point, found: Sequence[Point], images: int) -> None:
        """See `Display`."""
        self.advance()
        rate = images / max(1e-9, time.monotonic() - self._start)
        self._bars.update(self._task, description=f"{self._name}, {rate:.2g} images/s" if images else self._name)
        self._bars.best = self._table(found)

    def _table(self, found: Sequence[Point]) -> Table:
        table = Table(box=None, header_style="bold", title=f"Best so far: {len(found)} points", title_justify="left")
        for column in ("speed-up", self.metric, "steps"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("depth by call", no_wrap=True, overflow="ellipsis")
        step = max(1, math.ceil(len(found) / ROWS))
        for point in found[::step]:
            quality = shown(self.metric, point.quality)
            cells = [f"{point.speedup:.2f}x", f"{quality:.4g}", f"{point.steps or ''}", strip(point.schedule)]
            table.add_row(*cells)
        return table


def display_of(metric: str, quiet: bool, lines: bool) -> Display:
    """What `--quiet` and `--json` ask for."""
    return Lines(metric) if lines else Display(metric) if quiet else Live(metric)
