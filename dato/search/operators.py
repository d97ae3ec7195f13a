"""Crossover and mutation of schedules as vectors of whole numbers.

They replace rounded operators for real numbers. Rounded polynomial mutation mostly leaves a gene as it was, and it
never moves a whole call to a neighbouring place, which is what improves a schedule that is nearly right. Schedules of
different lengths correspond in time, not in the index of the call. So a schedule is resampled before a part of it is
put into another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation


class Layout(Protocol):
    """What the operators use of a space. Genes for the whole schedule come first, then those of the calls."""

    upper: np.ndarray
    heads: int

    def active(self, x: Sequence[int]) -> int: ...
    def with_head(self, x: np.ndarray, gene: int, value: int) -> np.ndarray: ...


def splice(space: Layout, one: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return `one` with a stretch of calls taken from `other`, between two random calls."""
    for gene in range(space.heads):
        if space.active(other) != space.active(one):
            other = space.with_head(other, gene, one[gene])
    n = space.active(one)
    start, stop = sorted(rng.choice(n + 1, 2, replace=False)) if n > 1 else (0, n)
    child = one.copy()
    child[space.heads + start : space.heads + stop] = other[space.heads + start : space.heads + stop]
    return child


class SpliceCrossover(Crossover):
    """Two-point crossover in time. Each of the two children is one parent with a stretch of the other."""

    def __init__(self, space: Layout, prob: float = 0.7) -> None:
        super().__init__(2, 2, prob=prob)
        self.space = space

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        a, b = np.asarray(X, dtype=int)
        pairs = [
            (splice(self.space, x, y, random_state), splice(self.space, y, x, random_state))
            for x, y in zip(a, b, strict=True)
        ]
        return np.array(pairs).transpose(1, 0, 2)


class EditMutation(Mutation):
    """Makes a few edits to each vector: draws a gene anew, moves it up or down by one, or swaps it with its neighbour.

    Args:
        space: The space of the vectors.
        edits: Mean number of edits beyond the first.
        heads: Probability that an edit changes a gene of the whole schedule, if there is one.
    """

    def __init__(self, space: Layout, edits: float = 1.0, heads: float = 0.2) -> None:
        super().__init__(prob=1.0)
        self.space, self.edits, self.heads = space, edits, heads

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        result = np.array(X, dtype=int)
        for row in range(len(result)):
            for _ in range(1 + random_state.poisson(self.edits)):
                result[row] = self._edit(result[row], random_state)
        return result

    def _edit(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        space = self.space
        if space.heads and rng.random() < self.heads:
            gene = rng.integers(space.heads)
            step = x[gene] + rng.choice([-1, 1])
            value = step if rng.random() < 0.5 else rng.integers(space.upper[gene] + 1)
            return space.with_head(x, gene, int(np.clip(value, 0, space.upper[gene])))
        x, first, n = x.copy(), space.heads, space.active(x)
        i, edit = first + rng.integers(n), rng.integers(3)
        if edit == 0:
            x[i] = rng.integers(space.upper[i] + 1)
        elif edit == 1:
            x[i] = np.clip(x[i] + rng.choice([-1, 1]), 0, space.upper[i])
        else:
            j = min(i + 1, first + n - 1)
            x[i], x[j] = x[j], x[i]
        return x


class LocalMoves(Mutation):
    """Makes one to three moves, each a small change of a schedule that is nearly right.

    A move changes the place of a whole call by up to `REACH` calls, makes a call whole or the cheapest kind, changes a
    gene by one (another order or the next depth), draws it anew, or, seldom, changes a gene of the whole schedule, such
    as the number of calls.

    Args:
        space: The space of the vectors.
    """

    REACH = 3
    # Move a whole call, make a call whole or cheap, change a gene by one, draw it anew, change a head.
    SHARES = (0.45, 0.05, 0.42, 0.03, 0.05)

    def __init__(self, space: Layout) -> None:
        super().__init__(prob=1.0)
        self.space = space

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        result = np.array(X, dtype=int)
        for row in range(len(result)):
            for _ in range(random_state.choice([1, 2, 3], p=[0.5, 0.35, 0.15])):
                result[row] = self._moved(result[row], random_state)
        return result

    def _moved(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        space, first, n = self.space, self.space.heads, self.space.active(x)
        kind = rng.choice(5, p=self.SHARES)
        if kind == 4 and space.heads:
            gene = rng.integers(space.heads)
            return space.with_head(x, gene, int(rng.integers(space.upper[gene] + 1)))
        x = x.copy()
        i = first + rng.integers(n)
        if kind == 0:
            whole = first + np.flatnonzero(x[first : first + n] == space.upper[first : first + n])
            i = rng.choice(whole) if len(whole) else i
            j = int(np.clip(i + rng.choice([-1, 1]) * rng.integers(1, self.REACH + 1), first, first + n - 1))
            x[i], x[j] = x[j], x[i]
        elif kind == 1:
            x[i] = rng.choice([0, space.upper[i]])
        elif kind == 2:
            x[i] = np.clip(x[i] + rng.choice([-1, 1]), 0, space.upper[i])
        else:
            x[i] = rng.integers(space.upper[i] + 1)
        return x
