"""Report the progress of an experiment to a function that the caller gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

Update = Callable[[float, float], None]  # called with what is done and what there is to do
Progress = Callable[[str], AbstractContextManager[Update]]  # called with what is done now, for the `with` block


@contextlib.contextmanager
def silent(description: str) -> Iterator[Update]:
    """Show nothing. This is the default of every experiment."""
    yield lambda done, total: None


def counting(update: Update, total: int) -> Callable[[], None]:
    """Return a function. Each call of it reports one more of `total` pieces of work to `update`."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        update(done, total)

    update(0, total)
    return advance
