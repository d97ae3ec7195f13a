"""Variation of schedules as whole-number vectors, in place of rounded real-number operators.

Rounding polynomial mutation mostly leaves a gene where it was, and never moves a whole call to the neighbouring
place, which is what improves a schedule that is nearly right.
"""

from __future__ import annotations

import numpy as np
from pymoo.core.mutation import Mutation


class EditMutation(Mutation):
    """A few edits on each vector: set a gene anew, step it up or down, or exchange it with its neighbour.

    Args:
        edits: Mean number of edits beyond the first.
    """

    def __init__(self, edits: float = 1.0) -> None:
        super().__init__(prob=1.0)
        self.edits = edits

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        result = np.array(X, dtype=int)
        upper = np.asarray(problem.xu, dtype=int)
        for x in result:
            for _ in range(1 + random_state.poisson(self.edits)):
                i = random_state.integers(len(x))
                edit = random_state.integers(3)
                if edit == 0:
                    x[i] = random_state.integers(upper[i] + 1)
                elif edit == 1:
                    x[i] = np.clip(x[i] + random_state.choice([-1, 1]), 0, upper[i])
                else:
                    j = min(i + 1, len(x) - 1)
                    if upper[i] == upper[j]:  # genes of another meaning do not change places
                        x[i], x[j] = x[j], x[i]
        return result
