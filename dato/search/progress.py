"""What a running search tells: a protocol that does nothing, and a bar for a notebook or a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dato.point import Point


class SearchProgress:
    """What a search calls while it runs. Every method does nothing: override those that matter.

    Example:
        >>> class Count(SearchProgress):
        ...     candidates = 0
        ...     def judged(self, point, front, images):
        ...         self.candidates += 1
        ...     def should_stop(self):
        ...         return self.candidates >= 100
    """

    def note(self, text: str) -> None:
        """Show a message of one sentence."""

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[Callable[[float, float], None]]:
        """Announce work that takes time. Yield a function that is called with the work done and the whole work."""
        yield lambda done, total: None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the block in which candidates are judged and timed."""
        yield

    def phase(self, name: str, total: int) -> None:
        """Begin a phase of `total` parts."""

    def advance(self) -> None:
        """Count one part of the phase as done."""

    def judged(self, point: Point, front: Sequence[Point], images: int) -> None:
        """Count one judged candidate, which is a part of the phase.

        Args:
            point: The candidate. Its quality is not finite if it failed.
            front: The front so far.
            images: Number of images generated since the search was begun or resumed.
        """
        self.advance()

    def should_stop(self) -> bool:
        """Return whether the search is to end after this candidate, with the front that it has."""
        return False


class ProgressBar(SearchProgress):
    """Bars with images a second and the time left.

    Args:
        console: Where to; None: standard output, or the notebook.

    Attributes:
        bars_class: The kind of rich bars. A subclass of this one may show more.
    """

    bars_class: type[Progress] = Progress

    def __init__(self, console: Console | None = None) -> None:
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        columns += [TextColumn("left"), TimeRemainingColumn()]
        self.console = Console() if console is None else console
        self.bars = self.bars_class(*columns, console=self.console)
        self._task: TaskID | None = None
        self._name, self._start = "", 0.0

    def note(self, text: str) -> None:
        """See `SearchProgress`."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[Callable[[float, float], None]]:
        """See `SearchProgress`."""
        with self.console.status(text) as status:
            yield lambda done, total: status.update(f"{text}: {done / total:.0%}")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """See `SearchProgress`."""
        self._start = time.monotonic()
        with self.bars:
            yield

    def phase(self, name: str, total: int) -> None:
        """See `SearchProgress`."""
        self._name, self._task = name, self.bars.add_task(name, total=total)

    def advance(self) -> None:
        """See `SearchProgress`."""
        self.bars.advance(self._task)

    def judged(self, point: Point, front: Sequence[Point], images: int) -> None:
        """See `SearchProgress`."""
        self.advance()
        rate = images / max(1e-9, time.monotonic() - self._start)
        self.bars.update(self._task, description=f"{self._name}, {rate:.2g} images/s" if images else self._name)


def progress_of(progress: SearchProgress | bool | None) -> SearchProgress:
    """Return the object that a search reports to. True: a bar. False or None: an object that shows nothing."""
    if isinstance(progress, bool) or progress is None:
        return ProgressBar() if progress else SearchProgress()
    return progress
