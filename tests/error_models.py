"""Error models with random content."""

from __future__ import annotations

import numpy as np

from dato.prediction.error_model import Sensitivity


def random_model(seed: int = 0, calls: int = 6, rungs: int = 3, depths: tuple[int, ...] = (1,)) -> Sensitivity:
    """A model with random numbers in it, whose second and third call have the same timestep, as in PLMS."""
    rng, k = np.random.default_rng(seed), 8
    times = [float(100 * (calls - call)) for call in range(calls)]
    times[2:] = [t + 100 for t in times[2:]]
    ages = (1, 2, 4)
    return Sensitivity(
        rungs=rungs,
        times=tuple(times),
        weights=rng.normal(size=calls),
        feedback=np.zeros(calls),
        final=np.zeros(k),
        ages=ages,
        predictions=rng.normal(size=(calls, k)).cumsum(axis=0),
        partial={depth: rng.normal(size=(calls, len(ages), k)) for depth in depths},
    )
