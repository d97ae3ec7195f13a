"""Which share of a whole call's FLOPs a call of each depth takes, from the UNet's shape alone.

`dato.prediction.flops` counts any schedule of any UNet, and is above this package. The rule only needs a share, at once
and for every UNet.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dato.unet.adapter import Adapter
from dato.unet.cache import Cache
from dato.unet.kinds import adapter_of
from dato.unet.ladder import Ladder

_shares: dict[tuple[Hashable, int, tuple[int, int]], float] = {}  # by shape, depth and size


def depth_share(unet: nn.Module, depth: int, size: tuple[int, int]) -> float:
    """Return the FLOPs of a call of a depth, as a share of a whole call's.

    They are counted on a copy of the UNet on PyTorch's meta device, which has shapes and no numbers. The result is
    remembered.

    Args:
        unet: The UNet. Only its shape is read.
        depth: From 1 to the number of rungs.
        size: (H, W) of the latents.
    """
    model = adapter_of(unet)
    key = model.shape(), depth, tuple(size)
    if key not in _shares:
        _shares[key] = _counted(model, depth, tuple(size))
    return _shares[key]


def _counted(model: Adapter, depth: int, size: tuple[int, int]) -> float:
    twin, arguments = model.weightless()
    ladder, cache, flops = Ladder(twin), Cache(), []
    with torch.device("meta"), torch.no_grad():
        for called in (len(ladder), depth):  # the whole call fills the cache
            # Attention as two matrix products: not every PyTorch knows the operations of every fused kernel.
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                ladder.run(called, cache, **arguments(size))
            flops.append(counter.get_total_flops())
    return flops[1] / flops[0]
