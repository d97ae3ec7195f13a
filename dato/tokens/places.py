"""Where a UNet has tokens to prune: its transformers, and how it halves the grid of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from diffusers import Transformer2DModel, UNet2DConditionModel
from torch import nn


@dataclass(frozen=True)
class Places:
    """Where a UNet has tokens to prune.

    Attributes:
        transformers: (downsampling, transformer) of each transformer. It has `transformer_blocks`, and each of them has
            the layers `attn1`, `attn2` and `ff` with the norms `norm1`, `norm2` and `norm3`.
        added: For each time that the UNet halves the grid: what is added to a size before it is halved, 0 or 1.
        channels: The number of channels of the latents.
    """

    transformers: tuple[tuple[int, nn.Module], ...]
    added: tuple[int, ...]
    channels: int

    @property
    def downsamplings(self) -> tuple[int, ...]:
        """The downsamplings at which there are transformers, ascending."""
        return tuple(sorted({factor for factor, _ in self.transformers}))

    def within(self, max_downsample: float | None) -> list[tuple[int, nn.Module]]:
        """Return the transformers at a downsampling of at most this; None: the smallest one that has a transformer."""
        limit = min(self.downsamplings, default=1) if max_downsample is None else max_downsample
        return [(factor, transformer) for factor, transformer in self.transformers if factor <= limit]

    def grids(self, size: tuple[int, int]) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield each downsampling with its grid of tokens, for latents of this size (H, W)."""
        factor, (h, w) = 1, size
        yield factor, (h, w)
        for added in self.added:
            factor *= 2
            h, w = ((length + added) // 2 for length in (h, w))
            yield factor, (h, w)


def places_of(unet: UNet2DConditionModel) -> Places:
    """Return where diffusers' UNet has tokens to prune."""
    transformers: list[tuple[int, nn.Module]] = []
    added: list[int] = []
    factor = 1

    def visit(block: nn.Module) -> None:
        transformers.extend((factor, m) for m in block.modules() if isinstance(m, Transformer2DModel))

    for block in unet.down_blocks:
        visit(block)
        for downsampler in getattr(block, "downsamplers", None) or ():
            factor *= 2
            added.append(1 if downsampler.padding else 0)
    if unet.mid_block is not None:
        visit(unet.mid_block)
    for block in unet.up_blocks:
        visit(block)
        factor //= 2 ** len(getattr(block, "upsamplers", None) or ())
    return Places(tuple(transformers), tuple(added), unet.config.out_channels)


def smallest_downsample(unet: UNet2DConditionModel) -> int:
    """Return the smallest downsampling at which the UNet has attention: 1 in SD 1.x and 2.x, 2 in SDXL."""
    return downsamplings(unet)[0]


def downsamplings(unet: UNet2DConditionModel) -> tuple[int, ...]:
    """Return the downsamplings at which the UNet has attention, ascending: 1, 2, 4, 8 in SD 1.x and 2.x."""
    return places_of(unet).downsamplings
