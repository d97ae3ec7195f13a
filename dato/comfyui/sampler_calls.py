"""Which call of a generation an evaluation of a sampler is.

ComfyUI's samplers get a list of noise levels (sigmas) and evaluate the model at them, most of them once at each but the
last. Some evaluate it twice in each step, also at a level in between. The others are not known: what they evaluate at a
level of the list for the first time is a call of the schedule, and what they evaluate besides is none. It runs whole.
"""

from __future__ import annotations

from collections.abc import Sequence

# The samplers that evaluate twice in each step but a last one that ends at 0.
TWICE = frozenset({"heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde"})
_TOLERANCE = 1e-3  # relative: some samplers compute a sigma from its logarithm


def sampler_of(sampler: object) -> str:
    """Return a sampler's name, such as "dpmpp_2m", by the function that ComfyUI runs; "" if it is not known."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    return name.removeprefix("sample_").removesuffix("_gpu").removesuffix("_RF")


class SamplerCalls:
    """Finds the index of each call.

    Args:
        sigmas: The noise levels, falling. The last one is where the sampler ends.
        sampler: The name of the sampler (see `sampler_of`).

    Attributes:
        total: The number of calls of the generation.
        index: The index of the running call; None if it is none of the schedule's, or before the first one.
        last: The index of the last call of the schedule, the running one included; -1 before the first one.
    """

    def __init__(self, sigmas: Sequence[float], sampler: str = "") -> None:
        self._sigmas = [float(sigma) for sigma in sigmas]
        steps = len(self._sigmas) - 1
        self._twice = sampler in TWICE
        self.total = steps * 2 - (self._sigmas[-1] == 0) if self._twice else steps
        self.index: int | None = None
        self.last = -1
        self._lost = False

    def begin(self, sigmas: Sequence[float]) -> int | None:
        """Begin a call.

        Args:
            sigmas: The noise level of each image of the batch.

        Returns:
            `index`.
        """
        alike = len(sigmas) > 0 and all(sigma == sigmas[0] for sigma in sigmas)
        self.index = self._index(sigmas[0]) if alike and not self._lost else None
        if self.index is not None:
            self.last = self.index
        return self.index

    def _index(self, sigma: float) -> int | None:
        if self._twice:
            return self._index_in_pairs(sigma)
        for index in range(self.last + 1, self.total):
            if _near(sigma, self._sigmas[index]):
                return index
        return None

    def _index_in_pairs(self, sigma: float) -> int | None:
        """Return the index where each step has two calls: one at its level, and one at a lower level."""
        index = self.last + 1
        step, second = divmod(index, 2)
        if index >= self.total:
            self._lost = True
        elif second:
            self._lost = not 0 < sigma <= self._sigmas[step] * (1 + _TOLERANCE)
        else:
            self._lost = not _near(sigma, self._sigmas[step])
        return None if self._lost else index


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= _TOLERANCE * abs(b)
