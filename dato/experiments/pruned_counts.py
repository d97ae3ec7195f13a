"""How often each token was pruned, and how many of a step's pruned tokens the next step prunes again.

These are figures 4 and 1a of SiTo, which show why its base score has noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from matplotlib.figure import Figure
from torch import Tensor

from dato.errors import DatoError
from dato.generation.sampling import Sampling, generate
from dato.pruning import SITO_PRUNING, Pruning
from dato.samplers import num_calls
from dato.schedule import Schedule
from dato.tokens.places import smallest_downsample
from dato.tokens.selection import TokenSelection
from dato.unet.patch import patch_of, patched
from dato.utils.files import save_figure


@dataclass(frozen=True)
class PrunedCounts:
    """What one generation pruned.

    Attributes:
        image: (3, H, W) in [0, 1], the generated image.
        share: (h, w) in [0, 1]. For each token, the share of all choices of tokens that pruned it. These are the
            choices of all calls and blocks at the highest resolution.
        again: The share of pruned tokens that the next choice of the same block prunes again: the mean over these
            blocks, and over all pairs of successive choices. NaN if there was only one.
    """

    image: Tensor
    share: Tensor
    again: float

    @property
    def never(self) -> float:
        """The share of tokens that were never pruned."""
        return (self.share == 0).float().mean().item()

    @property
    def always(self) -> float:
        """The share of tokens that were always pruned."""
        return (self.share == 1).float().mean().item()


def compare_pruning(
    pipe: DiffusionPipeline, prompt: str, sampling: Sampling, ratio: float, alphas: Iterable[float] = ()
) -> dict[str, PrunedCounts]:
    """Return the counts of whole calls with several settings of pruning, by name.

    They are SiTo's base tokens with and without noise, where every block chooses its own tokens; the same with relative
    noise of each weight; and dato's recovery from the past, in which tokens take turns.

    Args:
        pipe: The pipeline.
        prompt: What to draw.
        sampling: How images are generated.
        ratio: Share of the tokens to prune.
        alphas: Weights of relative noise (`Pruning.noise`).

    Raises:
        DatoError: as `pruned_counts`.
    """
    whole = Schedule.full(num_calls(pipe, sampling.steps)).with_ratios(ratio)
    of_sito = replace(SITO_PRUNING, score="VI", max_downsample=smallest_downsample(pipe.unet))
    settings = {
        "with noise (VI)": of_sito,
        "without noise (V)": replace(of_sito, score="V"),
        **{f"relative noise {a:g}": replace(of_sito, noise="relative", noise_alpha=a) for a in alphas},
        "recovered from the past": Pruning(recover_from="past", max_downsample=of_sito.max_downsample),
    }
    return {name: pruned_counts(pipe, prompt, sampling, whole, pruning) for name, pruning in settings.items()}


def pruned_counts(
    pipe: DiffusionPipeline, prompt: str, sampling: Sampling, schedule: Schedule, pruning: Pruning
) -> PrunedCounts:
    """Generate an image with a schedule, and count. With guidance only the half of the batch with the prompt counts.

    Raises:
        DatoError: if there are too few tokens for the ratio, or too few that may be pruned.
    """
    choices: dict[int, dict[int, list[Tensor]]] = {}  # downsampling -> number of the block -> masks of pruned tokens

    def note(factor: int, number: int, grid: tuple[int, int], selection: TokenSelection) -> None:
        pruned = torch.zeros(grid[0] * grid[1])
        pruned[selection.pruned[-1].cpu()] = 1
        choices.setdefault(factor, {}).setdefault(number, []).append(pruned.view(grid))

    with patched(pipe, replace(schedule, pruning=pruning)) as running:
        patch_of(running).pruner.listener = note
        image = generate(running, [prompt], replace(sampling, batch_size=1)).images[0]
    if not choices:
        raise DatoError("nothing was pruned: the ratio is too low for so few tokens")
    blocks = choices[min(choices)].values()
    again = [(now * after).sum() / now.sum() for masks in blocks for now, after in pairwise(masks)]
    return PrunedCounts(
        image,
        torch.stack([mask for masks in blocks for mask in masks]).mean(dim=0),
        torch.stack(again).mean().item() if again else math.nan,
    )


def pruned_picture(counts: Mapping[str, PrunedCounts], path: str | Path) -> None:
    """Write a PNG: for each setting the image, a heat map of the shares, and their histogram.

    Raises:
        DatoError: if the file cannot be written.
    """
    figure = Figure(figsize=(9.6, 2.9 * len(counts)), layout="constrained")
    rows = figure.subplots(len(counts), 3, squeeze=False, width_ratios=(1, 1.15, 1.5))
    for (picture, heat, bars), (name, one) in zip(rows, counts.items(), strict=True):
        picture.imshow(one.image.permute(1, 2, 0).numpy())
        picture.set_ylabel(name)
        shown = heat.imshow(one.share.numpy(), cmap="magma", vmin=0, vmax=1)
        figure.colorbar(shown, ax=heat, label="share of choices that pruned it")
        for axis in (picture, heat):
            axis.set(xticks=[], yticks=[])
        bars.hist(one.share.flatten().numpy(), bins=20, range=(0, 1), color="tab:purple")
        bars.set(xlabel="share of choices that pruned a token", ylabel="tokens")
        bars.grid(alpha=0.25)
    save_figure(figure, path)
