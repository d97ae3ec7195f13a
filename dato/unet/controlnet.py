"""Run a ControlNet only as deep as its UNet reads its outputs.

A ControlNet (Zhang, Rao, Agrawala: Adding Conditional Control to Text-to-Image Diffusion Models, ICCV 2023) is a copy
of the UNet's way down. Its block n makes what is added to the skip connection of rung n, and its last block makes what
is added after the mid block. A call of depth d reads the skips of rungs 0 to d-1 and does not run the mid block, so the
ControlNet only has to run down to rung d-1. What it computes from its picture alone is the same in all calls of a
generation, so the partial calls of a generation compute it once. The image is the same as if the ControlNet had run
whole.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import ControlNetModel
from diffusers.models.controlnets.controlnet import ControlNetOutput
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from torch import Tensor, nn

from dato.errors import DatoError
from dato.unet.cache import version_of
from dato.unet.forward_override import ForwardOverride

_ARGUMENTS = tuple(inspect.signature(ControlNetModel.forward).parameters)[1:]
_COMPILED = "controlnet='follow': the ControlNet is compiled, so it cannot be shortened"
_OVERRIDES = ("forward", "_old_forward", "_compiled_call_impl")


class Follower:
    """Makes one ControlNet follow a UNet's schedule while it is attached.

    Args:
        net: The ControlNet.
        depth_of: Returns the depth at which the UNet will run its call of a timestep.
        rungs: The depth of a whole call.
    """

    def __init__(self, net: ControlNetModel, depth_of: Callable[[Tensor | float], int], rungs: int) -> None:
        self.net, self._depth_of, self._rungs = net, depth_of, rungs
        self._picture = _Remembered(net.controlnet_cond_embedding)
        self._override = ForwardOverride(net, self.forward)

    def attach(self) -> None:
        """Override the ControlNet's forward."""
        self._override.attach()

    def detach(self) -> None:
        """Restore it."""
        self._override.detach()
        self.forget()

    def forget(self) -> None:
        """Free what was kept, because a generation is over."""
        self._picture.forget()

    @torch.compiler.disable
    def forward(self, *args: Any, **kwargs: Any) -> ControlNetOutput | tuple:
        """Stand in for `ControlNetModel.forward`. Each residual that the UNet will not read is a single zero."""
        arguments = dict(zip(_ARGUMENTS, args, strict=False), **kwargs)
        depth = self._depth_of(arguments["timestep"]) if self._override.attached else self._rungs
        if depth == self._rungs:
            return self._override.stock(**arguments)
        return_dict, sample = arguments.pop("return_dict", True), arguments["sample"]
        residuals = self._down_to(depth, arguments) if depth else []
        nothing = sample.new_zeros(sample.shape[0], 1, 1, 1)
        residuals += [nothing] * (len(self.net.controlnet_down_blocks) - len(residuals))
        if not return_dict:
            return residuals, nothing
        return ControlNetOutput(down_block_res_samples=residuals, mid_block_res_sample=nothing)

    def _down_to(self, depth: int, arguments: dict[str, Any]) -> list[Tensor]:
        """Return the residuals of rungs 0 to `depth` - 1 (or a few more)."""
        net = truncated(self.net, depth, controlnet_cond_embedding=self._picture)
        if not arguments.get("guess_mode") or self.net.config.global_pool_conditions:
            return list(type(net).forward(net, **arguments, return_dict=False)[0])
        # In guess mode each residual has a factor of its own, from 0.1 for the first to 1 for the mid block's.
        scale = arguments.get("conditioning_scale", 1.0)
        plain = {**arguments, "guess_mode": False, "conditioning_scale": 1.0}
        residuals = type(net).forward(net, **plain, return_dict=False)[0]
        factors = torch.logspace(-1, 0, len(self.net.controlnet_down_blocks) + 1, device=residuals[0].device) * scale
        return [residual * factor for residual, factor in zip(residuals, factors, strict=False)]


class _Remembered(nn.Module):
    """A module that computes its output for the same input tensor only once."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self.forget()

    def forget(self) -> None:
        self._last: tuple[Tensor, int | None, Tensor] | None = None  # input, its version, and output

    def forward(self, x: Tensor) -> Tensor:
        version = version_of(x)
        if self._last is None or self._last[0] is not x or self._last[1] != version:
            self._last = (x, version, self._module(x))
        return self._last[2]


def truncated(net: ControlNetModel, depth: int, **others: nn.Module) -> ControlNetModel:
    """Return a view of a ControlNet that ends at rung `depth` - 1. It has the same weights.

    If offloading brings a block's weights to the device when the block runs, the view ends with that block.

    Args:
        net: The ControlNet.
        depth: The depth, above 0.
        **others: Modules to put in place of its own, by name.
    """
    blocks: list[nn.Module] = []
    left = depth - 1  # rung 0 is conv_in
    for block in net.down_blocks:
        if not left:
            break
        size = len(block.resnets) + len(block.downsamplers or ())
        whole = left >= size or "_diffusers_hook" in block.__dict__
        blocks.append(block if whole else _first_resnets(block, left))
        left = max(0, left - size)
    below = {"down_blocks": nn.ModuleList(blocks), "mid_block": None, "controlnet_mid_block": nn.Identity()}
    return _with_modules(net, **below, **others)


def _first_resnets(block: nn.Module, count: int) -> nn.Module:
    """Return a view of a down block with its first `count` resnets and no downsampler."""
    attentions = {} if getattr(block, "attentions", None) is None else {"attentions": block.attentions[:count]}
    return _with_modules(block, resnets=block.resnets[:count], downsamplers=None, **attentions)


def _with_modules(module: nn.Module, **modules: nn.Module | None) -> nn.Module:
    """Return a shallow copy with other submodules, and without what overrides its class's forward."""
    view = copy.copy(module)
    view.__dict__ = {key: value for key, value in module.__dict__.items() if key not in _OVERRIDES}
    view._modules = {**module._modules, **modules}
    return view


def control_nets(pipe: Any) -> list[ControlNetModel]:
    """Return the ControlNets of a pipeline.

    Raises:
        DatoError: if it has none, or one that cannot be shortened.
    """
    controlnet = getattr(pipe, "controlnet", None)
    if controlnet is None:
        raise DatoError(f"controlnet='follow': this {type(pipe).__name__} has no ControlNet")
    nets = list(controlnet.nets) if isinstance(controlnet, MultiControlNetModel) else [controlnet]
    for net in nets:
        if hasattr(net, "_orig_mod"):
            raise DatoError(_COMPILED)
        if not isinstance(net, ControlNetModel) or type(net).forward is not ControlNetModel.forward:
            raise DatoError(f"controlnet='follow' is for ControlNetModel; a {type(net).__name__} runs whole")
        if net._compiled_call_impl is not None:
            raise DatoError(_COMPILED)
    return list({id(net): net for net in nets}.values())
