"""Other packages' methods, so that they can be judged and timed beside ours.

DeepCache needs none: a uniform schedule of order 0 is the same computation (tested against the package, equal).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from diffusers import DiffusionPipeline

from dato.schedule import Schedule


@dataclass(frozen=True)
class Peer:
    """A method that is no schedule of ours.

    Attributes:
        name: What tables call it.
        schedule: The schedule that runs as many calls, all whole.
        apply: Makes a pipeline run the method for the length of a `with` block.
    """

    name: str
    schedule: Schedule
    apply: Callable[[DiffusionPipeline], AbstractContextManager]


def tomesd_peer(ratio: float, schedule: Schedule) -> Peer | None:
    """ToMeSD (Bolya & Hoffman, CVPRW 2023) at its defaults, with this ratio; None if the package is not there."""
    try:
        import tomesd
    except ImportError:
        return None

    @contextlib.contextmanager
    def apply(pipe: DiffusionPipeline) -> Iterator[None]:
        tomesd.apply_patch(pipe, ratio=ratio)
        try:
            yield
        finally:
            tomesd.remove_patch(pipe)

    return Peer(f"ToMeSD {ratio:.0%}", schedule, apply)
