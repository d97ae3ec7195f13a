"""The kinds of UNets that dato can run: the list of the adapters."""

from __future__ import annotations

from typing import Any

from torch import nn

from dato.errors import DatoError
from dato.unet.adapter import Adapter
from dato.unet.comfyui_unet import ComfyUNet
from dato.unet.compvis_unet import CompVisUNet
from dato.unet.diffusers_unet import DiffusersUNet

ADAPTERS: tuple[type[Adapter], ...] = (DiffusersUNet, ComfyUNet, CompVisUNet)  # ComfyUI's is a special case of CompVis'


def is_supported(unet: Any) -> bool:
    """Return whether there is an adapter for such a UNet."""
    return any(adapter.fits(unet) for adapter in ADAPTERS)


def adapter_of(unet: nn.Module) -> Adapter:
    """Return the adapter of a UNet.

    Raises:
        DatoError: if there is none, or the UNet has blocks that cannot be cut into rungs.
    """
    for adapter in ADAPTERS:
        if adapter.fits(unet):
            return adapter(unet)
    raise DatoError(f"a {type(unet).__name__} is no UNet that dato can cut into rungs")
