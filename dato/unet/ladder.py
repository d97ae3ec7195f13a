"""The ladder: a UNet as rungs, run down to any depth, with what arrives from below taken from a cache.

Source: Ma et al., "DeepCache: Accelerating Diffusion Models for Free" (CVPR 2024), generalised from one branch for
a whole generation to a depth that may change with every call.

Going down, rung 0 is `conv_in`; every further resnet (with its attention) and every downsampler is one rung, and
each leaves one skip connection. Going up, every resnet (with its attention) takes one skip in; the upsampler at the
end of an up block belongs to that block's last resnet. What lies below the lowest rung is the mid block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.torch_utils import apply_freeu
from torch import Tensor, nn

from dato.errors import DatoError
from dato.unet.cache import LAST, Cache
from dato.unet.offload import enter

DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")
UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")


@dataclass(frozen=True)
class Rung:
    """One rung. `down` makes the skip, `up` takes it in; `downsample` marks a rung that is a downsampler."""

    down: nn.Module
    down_attention: nn.Module | None
    downsample: bool
    down_block: nn.Module | None  # that `down` is in, if it is in one
    up: nn.Module
    up_attention: nn.Module | None
    upsampler: nn.Module | None
    up_block: nn.Module  # carries FreeU's factors
    adapter: int | None  # the T2I-Adapter residual that is added to what `down` makes, if any


class Ladder:
    """Runs a `UNet2DConditionModel` to a given depth.

    Args:
        unet: The model; it is only read, never changed.

    Raises:
        DatoError: if the UNet has blocks that are no ladder.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        self.rungs = _rungs(unet)

    def __len__(self) -> int:
        """D, the number of rungs: the depth at which the whole UNet runs."""
        return len(self.rungs)

    def run(
        self,
        depth: int,
        cache: Cache,
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
    ) -> Tensor:
        """One call at `depth`; the arguments after `cache` are those of `UNet2DConditionModel.forward`.

        Args:
            depth: 0 takes the prediction from `cache` (in Spectrum's rule, the last feature); 0 < depth < D runs rungs
                0..depth-1 and takes what arrives at rung depth-1 from it; D runs everything.
            cache: Read at depth < D, and refreshed with what this call computes.
            sample: (B, C, H, W) noisy latents.

        Returns:
            (B, C_out, H, W), the prediction.
        """
        if depth == 0:
            return self._head(cache.last()) if cache.last_feature else cache.last()
        unet, full = self.unet, len(self.rungs)

        # Of a size that halving does not divide, each upsampling has to be told what to come out at.
        odd = any(size % 2**unet.num_upsamplers for size in sample.shape[-2:])
        attend = {
            "encoder_hidden_states": None,  # set below
            "attention_mask": _bias(attention_mask, sample.dtype),
            "encoder_attention_mask": _bias(encoder_attention_mask, sample.dtype),
            "cross_attention_kwargs": cross_attention_kwargs,
        }
        if unet.config.center_input_sample:
            sample = 2 * sample - 1.0
        emb, sample = self._embed(
            sample, timestep, timestep_cond, class_labels, encoder_hidden_states, added_cond_kwargs
        )
        attend["encoder_hidden_states"] = unet.process_encoder_hidden_states(
            encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
        )
        if cross_attention_kwargs is not None and cross_attention_kwargs.get("gligen") is not None:
            objects = unet.position_net(**cross_attention_kwargs["gligen"])
            attend["cross_attention_kwargs"] = {**cross_attention_kwargs, "gligen": {"objs": objects}}

        controlled = mid_block_additional_residual is not None and down_block_additional_residuals is not None
        adapter = down_intrablock_additional_residuals
        if adapter is None and not controlled and down_block_additional_residuals is not None:
            adapter = down_block_additional_residuals  # diffusers' older spelling for T2I-Adapters
        adapter = list(adapter or ())

        def through(module: nn.Module, attention: nn.Module | None, x: Tensor) -> Tensor:
            x = module(x, emb)
            return x if attention is None else attention(x, **attend, return_dict=False)[0]

        # Down.
        h = unet.conv_in(sample)
        skips = [h]
        group = None
        for rung in self.rungs[1:depth]:
            group = enter(group, rung.down_block)
            h = rung.down(h) if rung.downsample else through(rung.down, rung.down_attention, h)
            if rung.adapter is not None and rung.adapter < len(adapter):
                h = h + adapter[rung.adapter]
            skips.append(h)
        group = enter(group, None)
        if controlled:
            skips = [s + r for s, r in zip(skips, down_block_additional_residuals, strict=False)]

        # The turning point: the mid block, or the past.
        if depth == full:
            h = self._mid(h, emb, attend, adapter)
            if controlled:
                h = h + mid_block_additional_residual
        else:
            h = cache.recall(depth - 1, skips[depth - 1])

        # Up.
        for index in range(depth - 1, -1, -1):
            rung, skip = self.rungs[index], skips[index]
            group = enter(group, rung.up_block)
            h, skip = _freeu(rung.up_block, h, skip)
            h = through(rung.up, rung.up_attention, torch.cat([h, skip], dim=1))
            if rung.upsampler is not None:
                h = rung.upsampler(h, skips[index - 1].shape[2:] if odd else None)
            if index:
                cache.store(index - 1, h, skips[index - 1])
        enter(group, None)

        if cache.last_feature:
            cache.store(LAST, h)
            return self._head(h)
        prediction = self._head(h)
        cache.store(LAST, prediction)
        return prediction

    def _head(self, h: Tensor) -> Tensor:
        unet = self.unet
        if unet.conv_norm_out:
            h = unet.conv_act(unet.conv_norm_out(h))
        return unet.conv_out(h)

    def _embed(self, sample, timestep, timestep_cond, class_labels, encoder_hidden_states, added_cond_kwargs):
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

    def _mid(self, h: Tensor, emb: Tensor, attend: dict[str, Any], adapter: list[Tensor]) -> Tensor:
        mid = self.unet.mid_block
        if mid is None:
            return h
        h = mid(h, emb, **attend) if getattr(mid, "has_cross_attention", False) else mid(h, emb)
        # T2I-Adapter-XL hands over one residual more than there are down blocks.
        beyond = len(self.unet.down_blocks)
        if len(adapter) > beyond and adapter[beyond].shape == h.shape:
            h = h + adapter[beyond]
        return h


def _rungs(unet: UNet2DConditionModel) -> tuple[Rung, ...]:
    for block in [*unet.down_blocks, *unet.up_blocks]:
        kind = type(block).__name__
        if kind not in DOWN_BLOCKS + UP_BLOCKS:
            raise DatoError(
                f"this UNet has a {kind}, which dato cannot cut into rungs; supported are the UNets of Stable "
                f"Diffusion 1.x, 2.x and XL ({', '.join(DOWN_BLOCKS + UP_BLOCKS)})"
            )

    down = [(unet.conv_in, None, False, None)]
    adapters: dict[int, int] = {}  # by place in `down`
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


def _attentions(block: nn.Module) -> list[nn.Module | None]:
    return list(getattr(block, "attentions", None) or [None] * len(block.resnets))


def _bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask (B, tokens) of 1 = keep as what is added to attention scores, (B, 1, tokens)."""
    return None if mask is None else ((1 - mask.to(dtype)) * -10000.0).unsqueeze(1)


def _freeu(block: nn.Module, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    factors = {name: getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")}
    if not all(factors.values()):
        return h, skip
    # diffusers scales h in place, and h is in the cache.
    return apply_freeu(block.resolution_idx, h.clone(), skip, **factors)
