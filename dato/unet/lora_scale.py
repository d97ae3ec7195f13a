"""Scale LoRA layers for one call, as the forward of diffusers' UNet does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers


@contextlib.contextmanager
def lora_scale(unet: UNet2DConditionModel, arguments: dict[str, Any]) -> Iterator[None]:
    """Scale LoRA layers by `cross_attention_kwargs["scale"]` in a `with` block, and take it out of the arguments."""
    extra = arguments.get("cross_attention_kwargs")
    if not extra or "scale" not in extra:
        yield
        return
    arguments["cross_attention_kwargs"] = {k: v for k, v in extra.items() if k != "scale"}
    if not USE_PEFT_BACKEND:
        yield
        return
    scale_lora_layers(unet, extra["scale"])
    try:
        yield
    finally:
        unscale_lora_layers(unet, extra["scale"])
