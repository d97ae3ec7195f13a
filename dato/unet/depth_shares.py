"""Which share of a whole call's FLOPs a call of each depth takes, from the UNet's configuration alone.

`dato.prediction.flops` counts any schedule of any UNet, and is above this package. The rule only needs a share, at once
and for every UNet.
"""

from __future__ import annotations

import json
from functools import lru_cache

import torch
from diffusers import UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dato.unet.cache import Cache
from dato.unet.ladder import Ladder

_TEXT_TOKENS = 77
# Conditions besides the text. They take hardly any FLOPs, so they are not counted.
_CONDITIONS = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "time_cond_proj_dim",
)


def depth_share(unet: UNet2DConditionModel, depth: int, size: tuple[int, int]) -> float:
    """Return the FLOPs of a call of a depth, as a share of a whole call's.

    They are counted on a copy of the UNet on PyTorch's meta device, which has shapes and no numbers. The result is
    cached.

    Args:
        unet: The UNet. Only its configuration is read.
        depth: From 1 to the number of rungs.
        size: (H, W) of the latents.
    """
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    config |= dict.fromkeys(_CONDITIONS) | {"attention_type": "default"}
    return _depth_share(json.dumps(config, sort_keys=True), depth, tuple(size))


@lru_cache(maxsize=64)
def _depth_share(config: str, depth: int, size: tuple[int, int]) -> float:
    with torch.device("meta"), torch.no_grad():
        unet = UNet2DConditionModel.from_config(json.loads(config))
        width = unet.config.cross_attention_dim
        width = width if isinstance(width, int) else width[0]
        sample = torch.empty(1, unet.config.in_channels, *size)
        text, time = torch.empty(1, _TEXT_TOKENS, width), torch.empty(())
        ladder, cache, flops = Ladder(unet), Cache(), []
        for called in (len(ladder), depth):  # the whole call fills the cache
            # Attention as two matrix products: not every PyTorch knows the operations of every fused kernel.
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                ladder.run(called, cache, sample, time, text)
            flops.append(counter.get_total_flops())
    return flops[1] / flops[0]
