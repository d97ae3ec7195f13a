"""The pipeline around a patched UNet."""

from __future__ import annotations

import weakref
from typing import Any


class Owner:
    """The pipeline around a UNet. Copies of the UNet know it; pickles do not, so that they do not hold it."""

    def __init__(self, pipe: Any) -> None:
        self._ref = None if pipe is None else weakref.ref(pipe)

    def get(self) -> Any:
        """Return the pipeline; None if there is none any more."""
        return None if self._ref is None else self._ref()

    def __deepcopy__(self, memo: dict[int, Any]) -> Owner:
        return self

    def __reduce__(self) -> tuple:
        return Owner, (None,)
