"""ControlNets that run no deeper than their UNet will read.

A ControlNet (Zhang, Rao, Agrawala: Adding Conditional Control to Text-to-Image Diffusion Models, ICCV 2023) is a copy
of the UNet's way down: its block n makes what is added to the skip connection of rung n, and the last one what is added
at the turning point. A call of depth d reads the skips of rungs 0 to d-1 and does not come to the turning point, so the
ControlNet has to run down to rung d-1 only. What it makes of its picture is the same in all calls of a generation, so
calls that are not whole compute it once. The image is the same as if it had run whole.
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
from dato.unet.forward_override import Takeover

_ARGUMENTS = tuple(inspect.signature(ControlNetModel.forward).parameters)[1:]
_COMPILED = "controlnet='follow': the ControlNet is compiled, and cannot be shortened then"
_IN_THE_WAY = ("forward", "_old_forward", "_compiled_call_impl")


class Follower:
    """One ControlNet that follows a UNet's schedule while it is attached.

    Args:
        net: The ControlNet.
        depth_of: The depth that the UNet's call of a timestep will run at.
        rungs: That of a whole call.
    """

    def __init__(self, net: ControlNetModel, depth_of: Callable[[Tensor | float], int], rungs: int) -> None:
        self.net, self._depth_of, self._rungs = net, depth_of, rungs
        self._picture = _Remembered(net.controlnet_cond_embedding)
        self._takeover = Takeover(net, self.forward)

    def attach(self) -> None:
        """Take over the ControlNet's forward."""
        self._takeover.attach()

    def detach(self) -> None:
        """Give it back."""
        self._takeover.detach()
        self.forget()

    def forget(self) -> None:
        """A generation is over."""
        self._picture.forget()

    @torch.compiler.disable
    def forward(self, *args: Any, **kwargs: Any) -> ControlNetOutput | tuple:
        """Stands in for `ControlNetModel.forward`: the same arguments; what nobody will read is one zero each."""
        arguments = dict(zip(_ARGUMENTS, args, strict=False), **kwargs)
        depth = self._depth_of(arguments["timestep"]) if self._takeover.attached else self._rungs
        if depth == self._rungs:
            return self._takeover.stock(**arguments)
        return_dict, sample = arguments.pop("return_dict", True), arguments["sample"]
        residuals = self._down_to(depth, arguments) if depth else []
        nothing = sample.new_zeros(sample.shape[0], 1, 1, 1)
        residuals += [nothing] * (len(self.net.controlnet_down_blocks) - len(residuals))
        if not return_dict:
            return residuals, nothing
        return ControlNetOutput(down_block_res_samples=residuals, mid_block_res_sample=nothing)

    def _down_to(self, depth: int, arguments: dict[str, Any]) -> list[Tensor]:
        """The residuals of rungs 0 to `depth` - 1 (or a few more)."""
        net = truncated(self.net, depth, controlnet_cond_embedding=self._picture)
        if not arguments.get("guess_mode") or self.net.config.global_pool_conditions:
            return list(type(net).forward(net, **arguments, return_dict=False)[0])
        # In guess mode each residual has a factor of its own, from 0.1 at the first to 1 at the turning point.
        scale = arguments.get("conditioning_scale", 1.0)
        plain = {**arguments, "guess_mode": False, "conditioning_scale": 1.0}
        residuals = type(net).forward(net, **plain, return_dict=False)[0]
        factors = torch.logspace(-1, 0, len(self.net.controlnet_down_blocks) + 1, device=residuals[0].device) * scale
        return [residual * factor for residual, factor in zip(residuals, factors, strict=False)]


class _Remembered(nn.Module):
    """A module that gives the same answer for the same tensor without computing it again."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self.forget()

    def forget(self) -> None:
        self._given: tuple[Tensor, int | None, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        version = version_of(x)
        if self._given is None or self._given[0] is not x or self._given[1] != version:
            self._given = (x, version, self._module(x))
        return self._given[2]


def truncated(net: ControlNetModel, depth: int, **others: nn.Module) -> ControlNetModel:
    """A view of a ControlNet that ends at rung `depth` - 1, with the same weights, and `others` in place of its parts.

    It ends at its block's end where the block's weights come to the device when the block runs.
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
    """A view of a down block with its first `count` resnets and no downsampler."""
    attentions = {} if getattr(block, "attentions", None) is None else {"attentions": block.attentions[:count]}
    return _with_modules(block, resnets=block.resnets[:count], downsamplers=None, **attentions)


def _with_modules(module: nn.Module, **modules: nn.Module | None) -> nn.Module:
    """A shallow copy with other submodules, and without what stands in the way of its class's forward."""
    view = copy.copy(module)
    view.__dict__ = {key: value for key, value in module.__dict__.items() if key not in _IN_THE_WAY}
    view._modules = {**module._modules, **modules}
    return view


def control_nets(pipe: Any) -> list[ControlNetModel]:
    """The ControlNets of a pipeline.

    Raises:
        DatoError: if it has none, or one that cannot be shortened.
    """
    found = getattr(pipe, "controlnet", None)
    if found is None:
        raise DatoError(f"controlnet='follow': this {type(pipe).__name__} has no ControlNet")
    nets = list(found.nets) if isinstance(found, MultiControlNetModel) else [found]
    for net in nets:
        if hasattr(net, "_orig_mod"):
            raise DatoError(_COMPILED)
        if not isinstance(net, ControlNetModel) or type(net).forward is not ControlNetModel.forward:
            raise DatoError(f"controlnet='follow' is for ControlNetModel; a {type(net).__name__} runs whole")
        if net._compiled_call_impl is not None:
            raise DatoError(_COMPILED)
    return list({id(net): net for net in nets}.values())
