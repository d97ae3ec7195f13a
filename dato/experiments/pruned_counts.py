"""How often each token was pruned: SiTo's figure 4, which shows why its base score has noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from matplotlib.figure import Figure
from torch import Tensor

from dato.errors import DatoError
from dato.generation.sampling import Sampling, generate
from dato.pruning import PAPER_PRUNING, Pruning
from dato.samplers import num_calls
from dato.schedule import Schedule
from dato.tokens.pruner import smallest_downsample
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
    """

    image: Tensor
    share: Tensor

    @property
    def never(self) -> float:
        """The share of tokens that were never pruned."""
        return (self.share == 0).float().mean().item()

    @property
    def always(self) -> float:
        """The share of tokens that were always pruned."""
        return (self.share == 1).float().mean().item()


def compare_pruning(pipe: DiffusionPipeline, prompt: str, sampling: Sampling, ratio: float) -> dict[str, PrunedCounts]:
    """Return the counts of whole calls with three settings of pruning, by name.

    They are SiTo's base tokens with and without noise, where every block chooses its own tokens, and dato's recovery
    from the past, in which tokens take turns.

    Args:
        pipe: The pipeline.
        prompt: What to draw.
        sampling: How images are generated.
        ratio: Share of the tokens to prune.

    Raises:
        DatoError: as `pruned_counts`.
    """
    whole = Schedule.full(num_calls(pipe, sampling.steps)).with_ratios(ratio)
    limit = smallest_downsample(pipe.unet)
    settings = {
        "with noise (VI)": replace(PAPER_PRUNING, score="VI", max_downsample=limit),
        "without noise (V)": replace(PAPER_PRUNING, score="V", max_downsample=limit),
        "recovered from the past": Pruning(recover_from="past", max_downsample=limit),
    }
    return {name: pruned_counts(pipe, prompt, sampling, whole, pruning) for name, pruning in settings.items()}


def pruned_counts(
    pipe: DiffusionPipeline, prompt: str, sampling: Sampling, schedule: Schedule, pruning: Pruning
) -> PrunedCounts:
    """Generate an image with a schedule, and count. With guidance only the half of the batch with the prompt counts.

    Raises:
        DatoError: if there are too few tokens for the ratio, or too few that may be pruned.
    """
    choices: dict[int, list[Tensor]] = {}  # downsampling factor -> masks of pruned tokens

    def note(factor: int, grid: tuple[int, int], selection: TokenSelection) -> None:
        pruned = torch.zeros(grid[0] * grid[1])
        pruned[selection.pruned[-1].cpu()] = 1
        choices.setdefault(factor, []).append(pruned.view(grid))

    with patched(pipe, replace(schedule, pruning=pruning)) as running:
        patch_of(running).pruner.listener = note
        image = generate(running, [prompt], replace(sampling, batch_size=1)).images[0]
    if not choices:
        raise DatoError("nothing was pruned: the ratio is too low for so few tokens")
    return PrunedCounts(image, torch.stack(choices[min(choices)]).mean(dim=0))


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
