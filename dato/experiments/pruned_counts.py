"""How often each token was pruned: SiTo's figure 4, which shows what the noise on the SimScore is for."""

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
from dato.pruning import Pruning
from dato.schedule import Schedule
from dato.tokens.selection import TokenSelection
from dato.unet.patch import patch_of, patched
from dato.utils.files import save_figure


@dataclass(frozen=True)
class PrunedCounts:
    """What one generation pruned.

    Attributes:
        image: (3, H, W) what came out.
        share: (h, w) of all choices of tokens at the highest resolution, over calls and blocks, the share in which the
            token was pruned.
    """

    image: Tensor
    share: Tensor


def pruned_counts(
    pipe: DiffusionPipeline, prompt: str, sampling: Sampling, schedule: Schedule, pruning: Pruning
) -> PrunedCounts:
    """Generate an image with a schedule and count; of a batch with guidance the half with the prompt counts.

    Raises:
        DatoError: if there are too few tokens for the ratio, or too few that may be pruned.
    """
    found: dict[int, list[Tensor]] = {}

    def note(factor: int, grid: tuple[int, int], selection: TokenSelection) -> None:
        pruned = torch.zeros(grid[0] * grid[1])
        pruned[selection.pruned[-1].cpu()] = 1
        found.setdefault(factor, []).append(pruned.view(grid))

    with patched(pipe, replace(schedule, pruning=pruning)) as running:
        patch_of(running).pruner.listener = note
        image = generate(running, [prompt], replace(sampling, batch_size=1)).images[0]
    if not found:
        raise DatoError("nothing was pruned: the ratio leaves no token out of so few; give a higher one")
    return PrunedCounts(image, torch.stack(found[min(found)]).mean(dim=0))


def pruned_picture(counts: Mapping[str, PrunedCounts], path: str | Path) -> None:
    """Write a PNG: for each setting the image, a heat map of the shares, and their histogram.

    Raises:
        DatoError: if the place cannot be written to.
    """
    figure = Figure(figsize=(9.6, 2.9 * len(counts)), layout="constrained")
    rows = figure.subplots(len(counts), 3, squeeze=False, width_ratios=(1, 1.15, 1.5))
    for (picture, heat, bars), (name, found) in zip(rows, counts.items(), strict=True):
        picture.imshow(found.image.permute(1, 2, 0).numpy())
        picture.set_ylabel(name)
        shown = heat.imshow(found.share.numpy(), cmap="magma", vmin=0, vmax=1)
        figure.colorbar(shown, ax=heat, label="share of choices that pruned it")
        for axis in (picture, heat):
            axis.set(xticks=[], yticks=[])
        bars.hist(found.share.flatten().numpy(), bins=20, range=(0, 1), color="tab:purple")
        bars.set(xlabel="share of choices that pruned a token", ylabel="tokens")
        bars.grid(alpha=0.25)
    save_figure(figure, path)
