"""Run a pipeline without its safety checker for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from diffusers import DiffusionPipeline


@contextlib.contextmanager
def without_safety_checker(pipe: DiffusionPipeline) -> Iterator[None]:
    """Switch off a pipeline's safety checker within a `with` block, and put it back afterwards.

    An image that the checker turns black says nothing about a schedule, and the checker takes time.
    """
    checker = getattr(pipe, "safety_checker", None)
    if checker is None:
        yield
        return
    # Around the pipeline's own `__setattr__`, which would drop the checker from the pipeline's configuration.
    object.__setattr__(pipe, "safety_checker", None)
    try:
        yield
    finally:
        object.__setattr__(pipe, "safety_checker", checker)
