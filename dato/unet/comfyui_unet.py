"""Split the `UNetModel` of ComfyUI into rungs and steps.

It is CompVis' class with three differences. Its blocks are run by a function of its module, which passes options to the
layers. Other nodes put patches into these options, which the forward calls between blocks. And ControlNets give
residuals for each block.

Nothing of ComfyUI is imported here, because its licence is GPL. The functions are found in the module that defines the
class of the UNet.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from dato.unet import compvis_unet
from dato.unet.compvis_unet import CLASS, CompVisUNet

FUNCTIONS = ("forward_timestep_embed", "apply_control", "timestep_embedding")
_NAMES = ("x", "timesteps", "context", "y", "control", "transformer_options")
_OF_LORA = {"comfy_cast_weights": False, "weight_function": (), "bias_function": ()}


class ComfyUNet(CompVisUNet):
    """The steps of ComfyUI's `UNetModel`.

    Args:
        unet: The UNet. It is only read, never changed.
    """

    takes = frozenset({"sample", "timestep", "encoder_hidden_states", "y", "control", "transformer_options"})
    # No hook sees the outputs of blocks, because these are not called as modules.
    whole_calls_are_stock = False

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        self.functions = _module_of(unet)
        blocks = [*unet.input_blocks, *([] if unet.middle_block is None else [unet.middle_block])]
        self._transformers_below = sum(_transformers(block) for block in blocks)

    @staticmethod
    def fits(unet: Any) -> bool:
        """Return whether it is such a UNet."""
        if not CompVisUNet.fits(unet):
            return False
        return all(hasattr(_module_of(unet), name) for name in FUNCTIONS)

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[Tensor], Any]]:
        """Return the arguments by dato's names. See `Adapter.read`."""
        given = dict(zip(_NAMES, args, strict=False), **kwargs)
        own = {name: given.pop(name) for name in ("control", "transformer_options") if given.get(name) is not None}
        arguments, result_of = super().read((), given)
        return arguments | own, result_of

    def embed(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        y: Tensor | None = None,
        control: Mapping[str, Sequence[Tensor | None]] | None = None,
        transformer_options: dict[str, Any] | None = None,
    ) -> Forward:
        """Begin a forward.

        Args:
            sample: (B, C, H, W) the noisy latents.
            timestep: (B,) the timesteps.
            encoder_hidden_states: (B, tokens, width) the text.
            y: (B, width) further conditions, in SDXL.
            control: The residuals of ControlNets: "input", "middle" and "output", each a list. They are only read.
            transformer_options: What the layers and the patches of other nodes get.
        """
        unet, options = self.unet, {} if transformer_options is None else transformer_options
        options["original_shape"], options["transformer_index"] = list(sample.shape), 0
        sines = self.functions.timestep_embedding(timestep, unet.model_channels, repeat_only=False)
        emb = unet.time_embed(sines.to(sample.dtype))
        for patch in _patches(options, "emb_patch"):
            emb = patch(emb, unet.model_channels, options)
        if y is not None:
            emb = emb + unet.label_emb(y)
        return Forward(self, sample, emb, encoder_hidden_states, control or {}, options)

    def transformers_before(self, output: int) -> int:
        """Return how many transformers a whole call has run before this output block."""
        return self._transformers_below + sum(map(_transformers, list(self.unet.output_blocks)[:output]))

    def weightless(self) -> tuple[ComfyUNet, Callable[[tuple[int, int]], dict[str, Any]]]:
        """Return the same UNet without weights, and what makes arguments for it. LoRAs are left out."""
        twin, arguments = super().weightless()
        for module in twin.unet.modules():
            for name, value in _OF_LORA.items():
                if hasattr(module, name):
                    setattr(module, name, value)
        return ComfyUNet(twin.unet), arguments


class Forward(compvis_unet.Forward):
    """One forward of a `ComfyUNet`.

    The residuals of ControlNets are taken by their place. So those of blocks that do not run are left out.
    """

    def __init__(
        self,
        model: ComfyUNet,
        sample: Tensor,
        emb: Tensor,
        text: Tensor | None,
        control: Mapping[str, Sequence[Tensor | None]],
        options: dict[str, Any],
    ) -> None:
        super().__init__(model, sample, emb, text)
        self._control, self._options = control, options

    def run(self, block: nn.Module, way: str, index: int, h: Tensor, size: Any = None) -> Tensor:
        """Run one block by ComfyUI's function. See `compvis_unet.Forward.run`."""
        self._options["block"] = (way, index)
        return self.model.functions.forward_timestep_embed(block, h, self.emb, self.text, self._options, size)

    def down(self, index: int, h: Tensor | None) -> Tensor:
        """Run an input block, with the patches and residuals before and after it."""
        # The patches after a block come before the next one: the last block that runs needs none.
        h = self.sample if h is None else self._patched("input_block_patch_after_skip", h)
        h = self.run(self.model.rungs[index].down, "input", index, h)
        return self._patched("input_block_patch", self._controlled(h, "input", index))

    def skip(self, index: int, h: Tensor) -> Tensor:
        """Return the skip connection of a rung, with the residual of its output block."""
        return self._controlled(h, "output", len(self.model.rungs) - 1 - index, copy=True)

    def mid(self, h: Tensor) -> Tensor:
        """Run the middle block."""
        h = self._patched("input_block_patch_after_skip", h)
        if self.model.unet.middle_block is not None:
            h = super().mid(h)
        return self._controlled(h, "middle", 0)

    def up(self, index: int, h: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Run an output block."""
        block = len(self.model.rungs) - 1 - index
        self._options["transformer_index"] = self.model.transformers_before(block)
        return super().up(index, h, skips)

    def join(self, index: int, h: Tensor, skip: Tensor) -> Tensor:
        """Return what an output block gets, after the patches of other nodes."""
        patches = _patches(self._options, "output_block_patch")
        if patches:
            # They may write into their arguments, and what arrives from below may be in the cache.
            self._options["block"] = ("output", len(self.model.rungs) - 1 - index)
            h, skip = h.clone(), skip.clone()
        for patch in patches:
            h, skip = patch(h, skip, self._options)
        return super().join(index, h, skip)

    def _patched(self, name: str, h: Tensor) -> Tensor:
        for patch in _patches(self._options, name):
            h = patch(h, self._options)
        return h

    def _controlled(self, h: Tensor, way: str, index: int, *, copy: bool = False) -> Tensor:
        """Add the residual of a block. The lists are in the order of the last block to the first one."""
        residuals = self._control.get(way) or ()
        if index >= len(residuals) or (residual := residuals[len(residuals) - 1 - index]) is None:
            return h
        return self.model.functions.apply_control(h.clone() if copy else h, {way: [residual]}, way)


def unet_in(model: Any) -> Any:
    """Return what ComfyUI's model has as its UNet, also if it is compiled; None if it has none."""
    unet = getattr(getattr(model, "model", None), "diffusion_model", None)
    return getattr(unet, "_orig_mod", unet)


def _module_of(unet: nn.Module) -> ModuleType:
    """Return the module that defines the class `UNetModel` of a UNet."""
    own = next(base for base in type(unet).__mro__ if base.__name__ == CLASS)
    return sys.modules[own.__module__]


def _patches(options: Mapping[str, Any], name: str) -> Sequence[Callable[..., Any]]:
    return options.get("patches", {}).get(name, ())


def _transformers(block: nn.Module) -> int:
    return sum(hasattr(layer, "transformer_blocks") for layer in block)
