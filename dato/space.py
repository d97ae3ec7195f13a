"""Search spaces: schedules as vectors of whole numbers, for an evolutionary algorithm to vary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dato.errors import DatoError
from dato.pruning import Pruning
from dato.schedule import Schedule


class DepthSpace:
    """Schedules over an alphabet of depths; one gene for each call but the first, which is always whole.

    Args:
        calls: UNet calls of one generation.
        rungs: Rungs of the UNet.
        depths: The depths to choose from; the whole UNet is always among them.

    Attributes:
        upper: (n,) the largest value of each gene; the smallest is 0. Genes are ordered by depth.
    """

    def __init__(self, calls: int, rungs: int, depths: Sequence[int]) -> None:
        for depth in depths:
            if not 0 <= depth <= rungs:
                raise DatoError(f"--depths: the depths of this UNet are 0 to {rungs}, not {depth}")
        self.rungs = rungs
        self.depths = sorted({*depths, rungs})
        if len(self.depths) < 2:
            raise DatoError(f"--depths: besides {rungs}, the whole UNet, there must be something to choose")
        if calls < 2:
            raise DatoError("a search needs at least two UNet calls: give more --steps")
        self.upper = np.full(calls - 1, len(self.depths) - 1)

    def decode(self, x: Sequence[int]) -> Schedule:
        """The schedule of a vector of genes."""
        return Schedule((self.rungs, *(self.depths[int(gene)] for gene in x)), rungs=self.rungs)

    def encode(self, schedule: Schedule) -> np.ndarray | None:
        """The genes of a schedule; None if it has depths that are not in the alphabet."""
        if not set(schedule.depths) <= set(self.depths):
            return None
        return np.array([self.depths.index(d) for d in schedule.depths[1:]])

    def initial(self, count: int, rng: np.random.Generator, seeds: Sequence[Schedule]) -> np.ndarray:
        """(count, n) genes to begin with: the seeds, then one seed up to a random call and another from there on.

        Args:
            count: Size of the population.
            rng: Source of randomness.
            seeds: Known schedules, as far as the alphabet has them; of fewer than two, whole calls come at random
                places among shallow ones.
        """
        known = [genes for seed in seeds if (genes := self.encode(seed)) is not None]
        population, n = known[:count], len(self.upper)
        while len(population) < count:
            if len(known) > 1:
                early, late = rng.choice(len(known), 2, replace=False)
                cut = rng.integers(1, n)
                genes = np.concatenate([known[early][:cut], known[late][cut:]])
            else:
                genes = np.full(n, rng.integers(0, self.upper[0]))
                genes[rng.random(n) < rng.uniform(0.05, 0.5)] = self.upper[0]
            population.append(genes)
        return np.array(population)

    def papers_initial(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, n) genes as in DaTo's search: few whole calls.

        At most 1, 2 and 1 beside the first in the first three, next four and last three tenths of the calls, the
        rest shallow at random.
        """
        n = len(self.upper)
        stretches = [(0, round(0.3 * n), 1), (round(0.3 * n), round(0.7 * n), 2), (round(0.7 * n), n, 1)]
        population = rng.integers(0, self.upper[0], size=(count, n))
        for genes in population:
            for start, stop, most in stretches:
                whole = rng.choice(
                    np.arange(start, stop), size=min(stop - start, rng.integers(0, most + 1)), replace=False
                )
                genes[whole] = self.upper[0]
        return population


class RatioSpace:
    """Prune ratios on top of schedules that were found before.

    One gene for each call, and, of several schedules, one more that says which. Where nothing runs (depth 0) nothing
    is pruned: the ratio of such a call is 0 whatever its gene.

    Args:
        bases: Schedules of equal length.
        ratios: The ratios to choose from.
        pruning: The settings that the ratios are meant with.
    """

    def __init__(self, bases: Sequence[Schedule], ratios: Sequence[float], pruning: Pruning) -> None:
        self.bases = [replace(base, pruning=pruning) for base in bases]
        self.ratios = sorted(set(ratios))
        bound = 1 - 1 / (pruning.sx * pruning.sy)
        for ratio in self.ratios:
            if not 0 <= ratio <= bound:
                patch = f"{pruning.sy} x {pruning.sx}"
                raise DatoError(f"--ratios: with patches of {patch}, ratios go from 0 to {bound:g}, not {ratio:g}")
        if len(self.ratios) < 2:
            raise DatoError("--ratios: there must be at least two to choose from")
        calls = len(self.bases[0])
        self.upper = np.array([len(self.bases) - 1, *[len(self.ratios) - 1] * calls])

    def decode(self, x: Sequence[int]) -> Schedule:
        """The schedule of a vector of genes."""
        base = self.bases[int(x[0])]
        ratios = [self.ratios[int(gene)] if d else 0.0 for gene, d in zip(x[1:], base.depths, strict=True)]
        return base.with_ratios(ratios)

    def initial(self, count: int, rng: np.random.Generator, seeds: Sequence[Schedule] = ()) -> np.ndarray:
        """(count, n) genes to begin with: every base with its lowest ratios, then one ratio for a whole schedule."""
        population = [np.array([base, *np.zeros(len(self.upper) - 1)]) for base in range(len(self.bases))][:count]
        while len(population) < count:
            ratio = rng.integers(0, len(self.ratios))
            population.append(np.array([rng.integers(0, len(self.bases)), *np.full(len(self.upper) - 1, ratio)]))
        return np.array(population).astype(int)

    def papers_initial(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, n) genes at random."""
        return rng.integers(0, self.upper + 1, size=(count, len(self.upper)))
