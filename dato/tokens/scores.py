"""Base scores: how base tokens are chosen. In each patch the token with the highest score becomes the base token.

To add a base score, write its function here, and describe it with one line of `dato.pruning.BASE_SCORES`. The line
says what the score is called and what it needs. It stands there because settings are read without importing torch.

Sources: Zhang et al., "Training-Free and Hardware-Friendly Acceleration for Diffusion Models via Similarity-based
Token Pruning" (SiTo, AAAI 2025), and DaTo. B is the batch, N the number of tokens, C the channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dato.pruning import BASE_SCORES, Pruning
from dato.tokens.similarity import similarity_score


@dataclass(frozen=True, eq=False)
class ScoreInputs:
    """What a base score can be computed from.

    Attributes:
        x: (B, N, C) hidden states where the tokens are chosen.
        noise: (B, N), drawn from N(0, 1); None if the score's description says that it takes none.
        difference: (B, N), DaTo's D with its sign: how much the last two predictions differ at each token. None for
            scores that do not use it, and as long as there are no two predictions.
        grid: (h, w) with h * w = N, for relative noise; else None will do.
    """

    x: Tensor
    noise: Tensor | None = None
    difference: Tensor | None = None
    grid: tuple[int, int] | None = None


ScoreFunction = Callable[[ScoreInputs, Pruning], Tensor]
_FUNCTIONS: dict[str, ScoreFunction] = {}


def base_score(
    x: Tensor,
    pruning: Pruning,
    noise: Tensor | None = None,
    difference: Tensor | None = None,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Return the base score that `pruning` names, with its weights: (B, N) in float32. See `ScoreInputs`."""
    return _FUNCTIONS[pruning.score](ScoreInputs(x, noise, difference, grid), pruning)


def spread_in_patches(score: Tensor, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """Return the standard deviation of a score within each token's patch: (B, N) -> (B, N).

    It is 1 where all scores of a patch are equal, and for tokens that lie in no whole patch.

    Args:
        score: (B, N).
        grid: (h, w) with h * w = N.
        patch: (sy, sx).
    """
    (h, w), (sy, sx) = grid, patch
    tall, wide = h // sy * sy, w // sx * sx
    patches = score.unflatten(1, grid)[:, :tall, :wide].unflatten(2, (-1, sx)).unflatten(1, (-1, sy))
    spread = patches.std(dim=(2, 4), keepdim=True, correction=0).expand_as(patches).reshape(-1, tall, wide)
    spread = F.pad(spread, (0, w - wide, 0, h - tall)).flatten(1)
    return spread.masked_fill(spread == 0, 1)


def computes(*names: str) -> Callable[[ScoreFunction], ScoreFunction]:
    """Register a function as the base scores `names`."""

    def register(function: ScoreFunction) -> ScoreFunction:
        for name in names:
            if name not in BASE_SCORES:
                raise KeyError(f"describe the base score {name!r} in dato.pruning.BASE_SCORES")
            _FUNCTIONS[name] = function
        return function

    return register


@computes("sito", "VI")
def _similarity_and_noise(tokens: ScoreInputs, pruning: Pruning) -> Tensor:
    return _with_noise(pruning.sim_beta * similarity_score(tokens.x), tokens, pruning)


@computes("dato")
def _difference_and_noise(tokens: ScoreInputs, pruning: Pruning) -> Tensor:
    if tokens.difference is None:
        return pruning.noise_alpha * tokens.noise
    return _with_noise(pruning.diff_gamma * tokens.difference.float(), tokens, pruning)


def _with_noise(score: Tensor, tokens: ScoreInputs, pruning: Pruning) -> Tensor:
    noise = tokens.noise
    if pruning.noise == "relative":
        noise = noise * spread_in_patches(score, tokens.grid, pruning.patch)
    return score + pruning.noise_alpha * noise


@computes("I")
def _top_left(tokens: ScoreInputs, pruning: Pruning) -> Tensor:
    # All are equal, and the first of equals is chosen: the top-left one.
    return torch.zeros(tokens.x.shape[:2], device=tokens.x.device)


@computes("II", "IV")
def _noise(tokens: ScoreInputs, pruning: Pruning) -> Tensor:
    return tokens.noise


@computes("III", "V")
def _similarity(tokens: ScoreInputs, pruning: Pruning) -> Tensor:
    return similarity_score(tokens.x)
