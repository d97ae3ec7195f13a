"""How a guided search divides its time among candidates and finalists."""

from __future__ import annotations

from dataclasses import dataclass

FEWEST = 0.5  # of the finalists that are wanted, the share that is validated at least


@dataclass(frozen=True)
class Budget:
    """What a guided search may spend, in images of stock.

    Attributes:
        candidates: What all candidates may cost.
        finalists: What one image of each finalist may cost. None: a search of an earlier version did not say it.
    """

    candidates: float
    finalists: float | None = None


def divided(available: float, wanted: float, *, prompts: int, images: int) -> tuple[Budget, float]:
    """Divide what is left among candidates and finalists.

    Candidates get what the finalists leave. They need at least as much as half of the finalists by the prompts of the
    search. If so much is not left, there are fewer finalists.

    Args:
        available: What is left for both, in images of stock.
        wanted: What one image of each finalist costs, if there are as many as wanted.
        prompts: Prompts that candidates are judged by.
        images: Images that each finalist needs.

    Returns:
        The budget, and by how much it is more than what is left. That is 0 unless the fewest finalists are too many.

    Example:
        >>> divided(50.0, 3.0, prompts=6, images=12)
        (Budget(candidates=14.0, finalists=3.0), 0.0)
        >>> divided(30.0, 3.0, prompts=6, images=12)
        (Budget(candidates=6.0, finalists=2.0), 0.0)
    """
    least, fewest = prompts / 2, FEWEST * wanted
    affordable = available / (images + least)
    if affordable < fewest:
        return Budget(least * fewest, fewest), (images + least) * (fewest - affordable)
    finalists = min(wanted, affordable)
    return Budget(max(least * finalists, available - images * finalists), finalists), 0.0
