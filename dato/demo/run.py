"""A job under way: one thread works on it, others watch it and may stop it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from dato.demo.job import Job, Snapshot

PAUSE = 0.3  # seconds between two looks at the calls; showing them takes time from generating


class Stopped(Exception):
    """The job was stopped."""


class Run:
    """A job that waits, is worked on, or is over.

    Args:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._snapshot = Snapshot()
        self._changed = threading.Condition()

    @property
    def snapshot(self) -> Snapshot:
        """What is known of it now."""
        return self._snapshot

    def update(self, **changes: Any) -> None:
        """Change the snapshot. One that is over stays as it is."""
        with self._changed:
            if not self._snapshot.over:
                self._snapshot = replace(self._snapshot, **changes)
                self._changed.notify_all()

    def stop(self) -> None:
        """Stop it. Whoever watches it sees that at once. The work on it ends at the next UNet call."""
        self.update(stopped=True, over=True, doing="")

    def at_call(self, call: int) -> None:
        """Say which UNet call begins. Raise Stopped if the job was stopped."""
        if self._snapshot.stopped:
            raise Stopped
        self.update(call=call)

    def snapshots(self, pause: float = PAUSE) -> Iterator[Snapshot]:
        """Yield a snapshot whenever it has changed, the last one when it is over.

        Args:
            pause: Seconds for which it waits if no more than the number of the call has changed.
        """
        seen: Snapshot | None = None
        while seen is None or not seen.over:
            with self._changed:
                if seen is not None:
                    landmarks = seen.landmarks
                    self._changed.wait_for(lambda: self._snapshot.landmarks != landmarks, pause)  # noqa: B023
                self._changed.wait_for(lambda: self._snapshot is not seen)  # noqa: B023
                seen = self._snapshot
            yield seen
