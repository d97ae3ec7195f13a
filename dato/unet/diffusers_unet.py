"""Split a diffusers `UNet2DConditionModel` into rungs, and its forward into steps: embed, down, mid, up, head.

The ladder needs no more than these steps: see `dato.unet.ladder`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets import unet_2d_blocks
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils.torch_utils import apply_freeu
from torch import Tensor, nn

from dato.errors import DatoError
from dato.tokens.places import Places, places_of
from dato.unet import adapter
from dato.unet.foreign import carried
from dato.unet.lora_scale import lora_scale
from dato.unet.offload import enter

DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")
UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")
_KINDS = tuple(getattr(unet_2d_blocks, name) for name in DOWN_BLOCKS + UP_BLOCKS)
_ARGUMENTS = tuple(inspect.signature(UNet2DConditionModel.forward).parameters)[1:]
_TEXT_TOKENS = 77  # of the text in a call whose FLOPs are counted
# Conditions besides the text. They take hardly any FLOPs, so they are not counted.
_CONDITIONS = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "time_cond_proj_dim",
)


@dataclass(frozen=True)
class Rung:
    """One rung: `down` makes the skip connection, `up` takes it in.

    Attributes:
        down: The convolution, resnet or downsampler of the way down.
        down_attention: The attention after `down`, if there is one.
        downsample: Whether `down` is a downsampler.
        down_block: The block that `down` is in; None for `conv_in`.
        up: The resnet of the way up.
        up_attention: The attention after `up`, if there is one.
        upsampler: The upsampler after these, if there is one.
        up_block: The block that `up` is in, which holds FreeU's factors.
        adapter: The index of the T2I-Adapter residual that is added to what `down` makes, if there is one.
    """

    down: nn.Module
    down_attention: nn.Module | None
    downsample: bool
    down_block: nn.Module | None
    up: nn.Module
    up_attention: nn.Module | None
    upsampler: nn.Module | None
    up_block: nn.Module
    adapter: int | None


class DiffusersUNet(adapter.Adapter):
    """The steps of a `UNet2DConditionModel`.

    Args:
        unet: The model. It is only read, never changed.

    Attributes:
        rungs: Its rungs, rung 0 first.
        blocks: The rungs that pass through each block, by the block's name, with the block.

    Raises:
        DatoError: if the UNet has blocks that cannot be cut into rungs.
    """

    takes = frozenset(_ARGUMENTS)

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        self.rungs = _rungs(unet)
        self.blocks = _blocks(unet, self.rungs)

    @staticmethod
    def fits(unet: Any) -> bool:
        """Return whether it is a `UNet2DConditionModel`."""
        return isinstance(unet, UNet2DConditionModel)

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[Tensor], Any]]:
        """Return the arguments by name, and a function that makes the forward's result of a prediction."""
        arguments = dict(zip(_ARGUMENTS, args, strict=False), **kwargs)
        if arguments.pop("return_dict", True):
            return arguments, lambda prediction: UNet2DConditionOutput(sample=prediction)
        return arguments, lambda prediction: (prediction,)

    def prediction_of(self, result: Any) -> Tensor:
        """Return the prediction in what the forward returned."""
        return result[0] if isinstance(result, tuple) else result.sample

    def ends(self, index: int) -> tuple[nn.Module, nn.Module]:
        """Return the last module of a rung on the way down, and on the way up."""
        rung = self.rungs[index]
        return rung.down_attention or rung.down, rung.upsampler or rung.up_attention or rung.up

    def skip_made(self, index: int, made: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Return a rung's skip connection: what its module made, with the residuals of adapters and ControlNets."""
        control, adapters = _residuals_of(arguments)
        number = self.rungs[index].adapter
        if number is not None and number < len(adapters):
            made = made + adapters[number]
        return made if control is None else made + control[index]

    def during_call(self, arguments: dict[str, Any]) -> AbstractContextManager[Any]:
        """Return what scales the LoRA layers in a call."""
        return lora_scale(self.unet, arguments)

    @property
    def places(self) -> Places:
        """Where the UNet has tokens to prune."""
        return places_of(self.unet)

    def shape(self) -> str:
        """Return the configuration without what takes hardly any FLOPs, as JSON."""
        config = {name: value for name, value in self.unet.config.items() if not name.startswith("_")}
        return json.dumps(config | dict.fromkeys(_CONDITIONS) | {"attention_type": "default"}, sort_keys=True)

    def weightless(self) -> tuple[DiffusersUNet, Callable[[tuple[int, int]], dict[str, Any]]]:
        """Return a UNet of this configuration on the meta device, and what makes arguments for it."""
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(json.loads(self.shape()))
        width = unet.config.cross_attention_dim
        width = width if isinstance(width, int) else width[0]

        def arguments(size: tuple[int, int]) -> dict[str, Any]:
            sample = torch.empty(1, unet.config.in_channels, *size, device="meta")
            text = torch.empty(1, _TEXT_TOKENS, width, device="meta")
            return {"sample": sample, "timestep": torch.empty((), device="meta"), "encoder_hidden_states": text}

        return DiffusersUNet(unet), arguments

    def embed(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: list[Tensor] | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Forward:
        """Begin a forward: embed the timestep and the conditions. The arguments are those of the UNet's forward."""
        unet = self.unet
        # If halving does not divide a size, each upsampler needs the size of its output.
        odd = any(size % 2**unet.num_upsamplers for size in sample.shape[-2:])
        masks = {
            "attention_mask": _bias(attention_mask, sample.dtype),
            "encoder_attention_mask": _bias(encoder_attention_mask, sample.dtype),
        }
        if unet.config.center_input_sample:
            sample = 2 * sample - 1.0
        emb, sample = self._embed_conditions(
            sample, timestep, timestep_cond, class_labels, encoder_hidden_states, added_cond_kwargs
        )
        text = unet.process_encoder_hidden_states(
            encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
        )
        if cross_attention_kwargs is not None and cross_attention_kwargs.get("gligen") is not None:
            objects = unet.position_net(**cross_attention_kwargs["gligen"])
            cross_attention_kwargs = {**cross_attention_kwargs, "gligen": {"objs": objects}}
        attend = {"encoder_hidden_states": text, "cross_attention_kwargs": cross_attention_kwargs, **masks}

        mid_control = mid_block_additional_residual
        control, adapter = _residuals(
            down_block_additional_residuals, mid_control, down_intrablock_additional_residuals
        )
        return Forward(self, sample, emb, attend, odd, control, None if control is None else mid_control, adapter)

    def _embed_conditions(
        self, sample, timestep, timestep_cond, class_labels, encoder_hidden_states, added_cond_kwargs
    ) -> tuple[Tensor, Tensor]:
        """Return the embedding that every resnet gets, and the sample with what belongs to it."""
        unet = self.unet
        emb = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), timestep_cond)
        label = unet.get_class_embed(sample=sample, class_labels=class_labels)
        if label is not None:
            emb = torch.cat([emb, label], dim=-1) if unet.config.class_embeddings_concat else emb + label
        extra = unet.get_aug_embed(
            emb=emb, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
        )
        if unet.config.addition_embed_type == "image_hint":
            extra, hint = extra
            sample = torch.cat([sample, hint], dim=1)
        if extra is not None:
            emb = emb + extra
        if unet.time_embed_act is not None:
            emb = unet.time_embed_act(emb)
        return emb, sample

    def head(self, h: Tensor) -> Tensor:
        """Return the prediction, (B, C_out, H, W), for the last feature."""
        unet = self.unet
        if unet.conv_norm_out:
            h = unet.conv_act(unet.conv_norm_out(h))
        return unet.conv_out(h)


class Forward(adapter.Forward):
    """One forward of a `DiffusersUNet`, after `embed`.

    Args:
        model: The UNet.
        sample: (B, C, H, W) what goes into rung 0.
        emb: The embedding of the timestep and other conditions.
        attend: Keyword arguments of every attention.
        odd: Whether upsamplers need the size of their output.
        control: A ControlNet's residual for each rung's skip connection, if there is one.
        mid_control: The ControlNet's residual for the output of the mid block, if there is one.
        adapter: A T2I-Adapter's residuals; empty without one.
    """

    def __init__(
        self,
        model: DiffusersUNet,
        sample: Tensor,
        emb: Tensor,
        attend: dict[str, Any],
        odd: bool,
        control: tuple[Tensor, ...] | None,
        mid_control: Tensor | None,
        adapter: list[Tensor],
    ) -> None:
        self._model, self._sample, self._emb, self._attend, self._odd = model, sample, emb, attend, odd
        self._control, self._mid_control, self._adapter = control, mid_control, adapter
        self._group: Any = None  # the group of weights that offloading has brought to the device
        # Blocks that carry others' code run whole, so that it runs too: by name, and the skips that they made.
        self._whole = {id(block): rungs for block, rungs in model.blocks.values() if carried(block) is not None}
        self._skips: dict[int, Tensor] = {}

    def down(self, index: int, h: Tensor | None) -> Tensor:
        """Run a rung on the way down.

        Args:
            index: The rung.
            h: What the rung before it gave; None for rung 0.
        """
        rung = self._model.rungs[index]
        if h is None:
            return rung.down(self._sample)
        if id(rung.down_block) in self._whole:
            return self._down_whole(index, h)
        self._group = enter(self._group, rung.down_block)
        h = rung.down(h) if rung.downsample else self._through(rung.down, rung.down_attention, h)
        if rung.adapter is not None and rung.adapter < len(self._adapter):
            h = h + self._adapter[rung.adapter]
        return h

    def skip(self, index: int, h: Tensor) -> Tensor:
        """Return the skip connection of a rung, of which `down` returned `h`."""
        h = self._skips.get(index, h)
        return h if self._control is None else h + self._control[index]

    def mid(self, h: Tensor) -> Tensor:
        """Run the mid block, which is below the lowest rung."""
        mid = self._model.unet.mid_block
        if mid is not None:
            attends = getattr(mid, "has_cross_attention", False)
            h = mid(h, self._emb, **self._attend) if attends else mid(h, self._emb)
            # T2I-Adapter-XL gives one residual more than there are down blocks.
            blocks = len(self._model.unet.down_blocks)
            if len(self._adapter) > blocks and self._adapter[blocks].shape == h.shape:
                h = h + self._adapter[blocks]
        return h if self._mid_control is None else h + self._mid_control

    def up(self, index: int, h: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Run a rung on the way up.

        Args:
            index: The rung.
            h: What arrives from below.
            skips: The skip connections, by rung.
        """
        rung = self._model.rungs[index]
        if id(rung.up_block) in self._whole:
            return self._up_whole(index, h, skips)
        self._group = enter(self._group, rung.up_block)
        h, skip = _freeu(rung.up_block, h, skips[index])
        h = self._through(rung.up, rung.up_attention, torch.cat([h, skip], dim=1))
        if rung.upsampler is not None:
            h = rung.upsampler(h, skips[index - 1].shape[2:] if self._odd else None)
        return h

    def _down_whole(self, index: int, h: Tensor) -> Tensor:
        """Run a whole block at its first rung, and return what it made at the others."""
        block = self._model.rungs[index].down_block
        rungs = self._whole[id(block)]
        if index == rungs[0]:
            self.release()  # the block brings its own weights
            attend, number = {}, self._model.rungs[self._adapted(rungs)].adapter
            adapted = number is not None and number < len(self._adapter)
            attends = getattr(block, "has_cross_attention", False)
            if attends:
                attend = {**self._attend, **({"additional_residuals": self._adapter[number]} if adapted else {})}
            h, made = block(hidden_states=h, temb=self._emb, **attend)
            if adapted and not attends:
                h += self._adapter[number]  # in place, as in diffusers: the last skip is the same tensor
            self._skips |= dict(zip(rungs, made, strict=True))
            self._skips[-1] = h  # the block's output, which a hook may have changed
        return self._skips[-1] if index == rungs[-1] else self._skips[index]

    def _adapted(self, rungs: range) -> int:
        """Return the rung of a block that an adapter's residual is added to."""
        return next((i for i in rungs if self._model.rungs[i].adapter is not None), rungs[-1])

    def _up_whole(self, index: int, h: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Run a whole block at its highest rung; at the others it has run."""
        block = self._model.rungs[index].up_block
        rungs = self._whole[id(block)]
        if index != rungs[-1]:
            return h
        self.release()
        size = skips[rungs[0] - 1].shape[2:] if self._odd and rungs[0] else None
        attend = self._attend if getattr(block, "has_cross_attention", False) else {}
        below = tuple(skips[rungs[0] : rungs[-1] + 1])
        return block(hidden_states=h, temb=self._emb, res_hidden_states_tuple=below, upsample_size=size, **attend)

    def release(self) -> None:
        """Let offloading take back the weights of the last block."""
        self._group = enter(self._group, None)

    def _through(self, module: nn.Module, attention: nn.Module | None, x: Tensor) -> Tensor:
        x = module(x, self._emb)
        return x if attention is None else attention(x, **self._attend, return_dict=False)[0]


def _rungs(unet: UNet2DConditionModel) -> tuple[Rung, ...]:
    """Pair the parts of the way down with those of the way up."""
    for block in [*unet.down_blocks, *unet.up_blocks]:
        if not isinstance(block, _KINDS):
            raise DatoError(
                f"this UNet has a {type(block).__name__}, which dato cannot cut into rungs; supported are the UNets of "
                f"Stable Diffusion 1.x, 2.x and XL ({', '.join(DOWN_BLOCKS + UP_BLOCKS)})"
            )

    down = [(unet.conv_in, None, False, None)]
    adapters: dict[int, int] = {}  # index in `down` -> index of the adapter's residual
    for number, block in enumerate(unet.down_blocks):
        down += [(*pair, False, block) for pair in zip(block.resnets, _attentions(block), strict=True)]
        # diffusers adds an adapter's residual before the downsampler where the block attends, else after it.
        last_pair = len(down) - 1
        down += [(downsampler, None, True, block) for downsampler in block.downsamplers or ()]
        adapters[last_pair if getattr(block, "has_cross_attention", False) else len(down) - 1] = number

    up = []
    for block in unet.up_blocks:
        last = len(block.resnets) - 1
        for i, pair in enumerate(zip(block.resnets, _attentions(block), strict=True)):
            upsampler = block.upsamplers[0] if i == last and block.upsamplers is not None else None
            up.append((*pair, upsampler, block))

    if len(down) != len(up):
        raise DatoError(f"this UNet leaves {len(down)} skip connections and takes in {len(up)}; dato needs as many")
    pairs = zip(down, reversed(up), strict=True)
    return tuple(Rung(*below, *above, adapters.get(number)) for number, (below, above) in enumerate(pairs))


def _blocks(unet: UNet2DConditionModel, rungs: tuple[Rung, ...]) -> dict[str, tuple[nn.Module, range]]:
    """Return each block and the rungs that pass through it, by its name in the UNet."""
    blocks = {}
    for way, attribute in (("down_blocks", "down_block"), ("up_blocks", "up_block")):
        for number, block in enumerate(getattr(unet, way)):
            passing = [index for index, rung in enumerate(rungs) if getattr(rung, attribute) is block]
            blocks[f"{way}.{number}"] = block, range(passing[0], passing[-1] + 1)
    return blocks


def _residuals_of(arguments: Mapping[str, Any]) -> tuple[tuple[Tensor, ...] | None, list[Tensor]]:
    """Return a ControlNet's residuals for the skip connections (None without one), and a T2I-Adapter's."""
    names = (
        "down_block_additional_residuals",
        "mid_block_additional_residual",
        "down_intrablock_additional_residuals",
    )
    return _residuals(*(arguments.get(name) for name in names))


def _residuals(
    control: tuple[Tensor, ...] | None, mid_control: Tensor | None, adapter: list[Tensor] | None
) -> tuple[tuple[Tensor, ...] | None, list[Tensor]]:
    if control is None or mid_control is None:
        # Without a residual for the mid block it is diffusers' older spelling for T2I-Adapters.
        return None, list((control if adapter is None else adapter) or ())
    return control, list(adapter or ())


def _attentions(block: nn.Module) -> list[nn.Module | None]:
    return list(getattr(block, "attentions", None) or [None] * len(block.resnets))


def _bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return what is added to attention scores, (B, 1, tokens), for a mask (B, tokens) in which 1 means keep."""
    return None if mask is None else ((1 - mask.to(dtype)) * -10000.0).unsqueeze(1)


def _freeu(block: nn.Module, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """Scale both as FreeU does, if the user has enabled it in this block."""
    factors = {name: getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")}
    if not all(factors.values()):
        return h, skip
    # diffusers scales h in place, and the cache holds h.
    return apply_freeu(block.resolution_idx, h.clone(), skip, **factors)
