"""The ladder: run a UNet down to a chosen depth, and take what lies below from a cache.

Source: Ma et al., "DeepCache: Accelerating Diffusion Models for Free" (CVPR 2024), generalised from one branch for
a whole generation to a depth that may change with every call.

Going down, rung 0 is `conv_in`. Every further resnet (with its attention) and every downsampler is one rung, and each
rung leaves one skip connection. Going up, every resnet (with its attention) takes in one. The upsampler at the end of
an up block belongs to the last resnet of that block. The mid block is below the lowest rung.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dato.call import LAST, place_read
from dato.unet.adapter import Adapter
from dato.unet.cache import Cache
from dato.unet.kinds import adapter_of


class Ladder:
    """Runs a UNet to a given depth.

    Args:
        unet: The UNet, or its adapter. It is only read, never changed.

    Attributes:
        model: Its adapter, which has the steps.

    Raises:
        DatoError: if the UNet is of no kind that dato knows, or has blocks that cannot be cut into rungs.
    """

    def __init__(self, unet: nn.Module | Adapter) -> None:
        self.model = unet if isinstance(unet, Adapter) else adapter_of(unet)

    @property
    def blocks(self) -> Mapping[str, tuple[nn.Module, range]]:
        """Each block of the UNet with the rungs that pass through it, by its name."""
        return self.model.blocks

    @property
    def rungs(self) -> Sequence[Any]:
        """The rungs, rung 0 first."""
        return self.model.rungs

    def __len__(self) -> int:
        """D, the number of rungs: the depth at which the whole UNet runs."""
        return len(self.rungs)

    def run(
        self,
        depth: int,
        cache: Cache,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        **conditions: Any,
    ) -> Tensor:
        """Run one call. It reads and computes the places that `dato.call` describes.

        Args:
            depth: At 0 the prediction comes from `cache` (or the last feature, if the rule caches that). At
                0 < depth < D, rungs 0..depth-1 run, and what arrives at rung depth-1 comes from `cache`. At D
                everything runs.
            cache: It is read at depth < D, and gets what this call computes.
            sample: (B, C, H, W) noisy latents.
            timestep: The timestep.
            encoder_hidden_states: (B, tokens, width) the text.
            **conditions: Other arguments of the UNet's forward.

        Returns:
            (B, C_out, H, W), the prediction.
        """
        if depth == 0:
            return self.model.head(cache.last()) if cache.last_feature else cache.last()
        forward = self.model.embed(sample, timestep, encoder_hidden_states, **conditions)

        h, skips = None, []
        for index in range(depth):
            h = forward.down(index, h)
            skips.append(forward.skip(index, h))
        forward.release()

        place = place_read(depth, len(self))
        h = forward.mid(h) if place is None else cache.recall(place, skips[place])

        for index in range(depth - 1, -1, -1):
            h = forward.up(index, h, skips)
            if index:
                cache.store(index - 1, h, skips[index - 1])
        forward.release()
        return self._finish(h, cache)

    def _finish(self, h: Tensor, cache: Cache) -> Tensor:
        """Make the prediction of the last feature, and store one of the two."""
        prediction = self.model.head(h)
        cache.store(LAST, h if cache.last_feature else prediction)
        return prediction
