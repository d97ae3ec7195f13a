"""A small stand-in of ComfyUI: its model, wrappers, guider and UNet, as far as dato's nodes touch them.

It is written from what the interface is, and has none of ComfyUI's code. `scripts/check_comfyui.py` checks the nodes on
a real ComfyUI.
"""

from __future__ import annotations

import copy
import math
import uuid
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

RUNGS, WIDTH, TEXT = 6, 16, 8  # of the UNet: three rungs on each of two levels
SIGMAS = (9.0, 5.0, 3.0, 2.0, 1.2, 0.7, 0.3, 0.0)  # seven steps
OUTER, PREDICT, MODEL = "outer_sample", "predict_noise", "diffusion_model"


class Executor:
    """A chain of wrappers around a function."""

    def __init__(self, original: Callable, class_obj: Any, wrappers: list[Callable], idx: int = 0) -> None:
        self.original, self.class_obj, self.wrappers, self.idx = original, class_obj, list(wrappers), idx

    @classmethod
    def new_class_executor(cls, original: Callable, class_obj: Any, wrappers: list[Callable], idx: int = 0) -> Executor:
        return cls(original, class_obj, wrappers, idx)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        if self.idx == len(self.wrappers):
            return self.original(*args, **kwargs)
        return self.wrappers[self.idx](self, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return Executor(self.original, self.class_obj, self.wrappers, self.idx + 1).execute(*args, **kwargs)


def execute(original: Callable, owner: Any, kind: str, options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    found = [one for some in options.get("wrappers", {}).get(kind, {}).values() for one in some]
    return Executor(original, owner, found).execute(*args, **kwargs)


# The UNet. dato finds these three functions in the module of the class.


def timestep_embedding(timesteps: Tensor, width: int, repeat_only: bool = False) -> Tensor:
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def apply_control(h: Tensor, control: dict[str, list] | None, name: str) -> Tensor:
    if control and control.get(name):
        residual = control[name].pop()
        if residual is not None:
            h += residual
    return h


def forward_timestep_embed(
    block: nn.Module, h: Tensor, emb: Tensor, context: Any, transformer_options: dict, output_shape: Any = None
) -> Tensor:
    for layer in block:
        if isinstance(layer, Residual):
            h = layer(h, emb)
        elif isinstance(layer, Transformer):
            h = layer(h, context, transformer_options)
            transformer_options["transformer_index"] += 1
        elif isinstance(layer, Upsample):
            h = layer(h, output_shape)
        else:
            h = layer(h)
    return h


class Residual(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(4, inputs), nn.Conv2d(inputs, WIDTH, 3, padding=1)
        self.emb, self.skip = nn.Linear(WIDTH, WIDTH), nn.Conv2d(inputs, WIDTH, 1)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return self.skip(h) + self.conv(torch.nn.functional.silu(self.norm(h))) + self.emb(emb)[:, :, None, None]


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads, self.to_q = 2, nn.Linear(WIDTH, WIDTH)
        self.to_k, self.to_v, self.to_out = nn.Linear(width, WIDTH), nn.Linear(width, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, context: Tensor | None = None, transformer_options: Any = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            part.unflatten(2, (2, -1)).transpose(1, 2)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn1, self.attn2 = Attention(WIDTH), Attention(TEXT)
        self.ff = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, context: Tensor | None = None, transformer_options: dict | None = None) -> Tensor:
        n, mine = self.norm1(x), None
        for patch in transformer_options.get("patches", {}).get("attn1_patch", ()):
            mine = n if mine is None else mine
            n, mine, _ = patch(n, mine, mine, transformer_options)
        x = x + self.attn1(n, context=mine, transformer_options=transformer_options)
        x = x + self.attn2(self.norm2(x), context=context, transformer_options=transformer_options)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Block()])

    def forward(self, h: Tensor, context: Tensor, transformer_options: dict) -> Tensor:
        x = h.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            x = block(x, context=context, transformer_options=transformer_options)
        return h + x.transpose(1, 2).reshape(h.shape)


class Downsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.op = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.op(h)


class Upsample(nn.Module):
    def forward(self, h: Tensor, output_shape: Any = None) -> Tensor:
        size = [2 * length for length in h.shape[-2:]] if output_shape is None else list(output_shape[-2:])
        return nn.functional.interpolate(h, size=size)


class UNetModel(nn.Module):
    """It has the parts and the order of patches of ComfyUI's."""

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.model_channels, self.in_channels, self.out_channels = WIDTH, 4, 4
        self.num_classes, self.default_num_video_frames, self.dtype = num_classes, None, torch.float32
        self.time_embed = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU())
        if num_classes is not None:
            self.label_emb = nn.Linear(num_classes, WIDTH)
        level = [nn.ModuleList([Residual(WIDTH), Transformer()]) for _ in range(2)]
        deep = [nn.ModuleList([Residual(WIDTH)]) for _ in range(2)]
        first = nn.ModuleList([nn.Conv2d(4, WIDTH, 3, padding=1)])
        self.input_blocks = nn.ModuleList([first, *level, nn.ModuleList([Downsample()]), *deep])
        self.middle_block = nn.ModuleList([Residual(WIDTH), Transformer(), Residual(WIDTH)])
        up = [nn.ModuleList([Residual(2 * WIDTH)]) for _ in range(3)]
        up[2].append(Upsample())
        up += [nn.ModuleList([Residual(2 * WIDTH), Transformer()]) for _ in range(3)]
        self.output_blocks = nn.ModuleList(up)
        self.out = nn.Sequential(nn.GroupNorm(4, WIDTH), nn.Conv2d(WIDTH, 4, 3, padding=1))

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Any = None, y: Any = None, control: Any = None,
        transformer_options: Any = None, **more: Any,
    ) -> Tensor:  # fmt: skip
        options = {} if transformer_options is None else transformer_options
        return execute(self._forward, self, MODEL, options, x, timesteps, context, y, control, options, **more)

    def _forward(
        self, x: Tensor, timesteps: Tensor, context: Any, y: Any, control: Any, options: dict, **more: Any
    ) -> Tensor:
        options["original_shape"], options["transformer_index"] = list(x.shape), 0
        patches = options.get("patches", {})
        emb = self.time_embed(timestep_embedding(timesteps, WIDTH))
        for patch in patches.get("emb_patch", ()):
            emb = patch(emb, WIDTH, options)
        if y is not None:
            emb = emb + self.label_emb(y)
        h, skips = x, []
        for index, block in enumerate(self.input_blocks):
            options["block"] = ("input", index)
            h = apply_control(forward_timestep_embed(block, h, emb, context, options), control, "input")
            for patch in patches.get("input_block_patch", ()):
                h = patch(h, options)
            skips.append(h)
            for patch in patches.get("input_block_patch_after_skip", ()):
                h = patch(h, options)
        options["block"] = ("middle", 0)
        h = apply_control(forward_timestep_embed(self.middle_block, h, emb, context, options), control, "middle")
        for index, block in enumerate(self.output_blocks):
            options["block"] = ("output", index)
            skip = apply_control(skips.pop(), control, "output")
            for patch in patches.get("output_block_patch", ()):
                h, skip = patch(h, skip, options)
            shape = skips[-1].shape if skips else None
            h = forward_timestep_embed(block, torch.cat([h, skip], dim=1), emb, context, options, shape)
        return self.out(h)


# The model, the guider and a few samplers.


class Patcher:
    """ComfyUI's model."""

    def __init__(self, model: Any) -> None:
        self.model, self.wrappers = model, {}
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> Patcher:
        twin = Patcher(self.model)
        twin.model_options = copy.deepcopy(self.model_options)
        twin.wrappers = {kind: {k: list(v) for k, v in some.items()} for kind, some in self.wrappers.items()}
        return twin

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Callable) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.wrappers.get(kind, {}).pop(key, None)

    def set_patch(self, name: str, patch: Callable) -> None:
        patches = self.model_options["transformer_options"].setdefault("patches", {})
        patches[name] = [*patches.get(name, ()), patch]


def patcher(num_classes: int | None = None, seed: int = 0) -> Patcher:
    """A model with a UNet of random weights."""
    unet, generator = UNetModel(num_classes), torch.Generator().manual_seed(seed)
    for weight in unet.parameters():
        scale = (1 / weight[0].numel()) ** 0.5 if weight.dim() > 1 else 0.1
        weight.data = torch.randn(weight.shape, generator=generator) * scale
    return Patcher(SimpleNamespace(diffusion_model=unet.eval()))


class Guider:
    """ComfyUI's guider.

    Args:
        model: The model.
        apart: Whether the parts of guidance run one after the other.
        control: Makes residuals of a ControlNet for a batch.
        again: Whether another node calls the UNet once more in each step, with other options.
    """

    def __init__(
        self, model: Patcher, *, apart: bool = False, control: Callable | None = None, again: bool = False
    ) -> None:
        self.model_patcher, self.model_options, self.cfg = model, model.model_options, 5.0
        self.apart, self.control, self.again = apart, control, again
        generator = torch.Generator().manual_seed(1)
        self.texts = [torch.randn(1, 5, TEXT, generator=generator) for _ in range(2)]
        self.uuids = [uuid.uuid4(), uuid.uuid4()]
        self.y: Tensor | None = None

    def sample(self, noise: Tensor, sampler: Any, sigmas: tuple[float, ...] = SIGMAS) -> Tensor:
        before = self.model_options
        self.model_options = copied(before)
        self.model_options["transformer_options"]["wrappers"] = self.model_patcher.wrappers
        try:
            args = noise, None, sampler, torch.tensor(sigmas), None, None, True, 0
            options = self.model_options["transformer_options"]
            return execute(self._outer, self, OUTER, options, *args)
        finally:
            self.model_options = before

    def _outer(self, noise: Tensor, latents: Any, sampler: Any, sigmas: Tensor, *args: Any) -> Tensor:
        options = copied(self.model_options)
        options["transformer_options"]["sample_sigmas"] = sigmas

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            given = x, sigma * torch.ones(len(x)), options
            return execute(self._predict, self, PREDICT, options["transformer_options"], *given)

        return sampler.sampler_function(model, noise * sigmas[0], sigmas)

    def _predict(self, x: Tensor, timestep: Tensor, model_options: dict) -> Tensor:
        parts = [[1], [0]] if self.apart else [[1, 0]]
        found = {}
        for part in parts:
            found |= zip(part, self._call(x, timestep, model_options, part).chunk(len(part)), strict=True)
        eps = found[1] + self.cfg * (found[0] - found[1])
        if self.again:
            eps = eps + 0.1 * self._call(x * 0.5, timestep, model_options, [0])
        return x - eps * timestep[:, None, None, None]

    def _call(self, x: Tensor, timestep: Tensor, model_options: dict, part: list[int]) -> Tensor:
        options = copied(model_options["transformer_options"])
        uuids = [self.uuids[one] for one in part]
        options |= {"cond_or_uncond": list(part), "uuids": uuids, "sigmas": timestep}
        batch = torch.cat([x] * len(part))
        text = torch.cat([self.texts[one].expand(len(x), -1, -1) for one in part])
        times = (timestep * 100).repeat(len(part))
        control = None if self.control is None else self.control(batch)
        y = None if self.y is None else self.y.expand(len(batch), -1)
        scaled = batch / (times[:, None, None, None] / 100 + 1)
        return self.model_patcher.model.diffusion_model(scaled, times, text, y, control, options)


def copied(options: dict) -> dict:
    """A copy of nested dictionaries and lists, as ComfyUI copies options."""
    return {
        key: copied(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value
        for key, value in options.items()
    }


def sample_euler(model: Callable, x: Tensor, sigmas: Tensor) -> Tensor:
    for sigma, after in pairwise(sigmas):
        x = x + (x - model(x, sigma)) / sigma * (after - sigma)
    return x


def sample_heun(model: Callable, x: Tensor, sigmas: Tensor) -> Tensor:
    for sigma, after in pairwise(sigmas):
        slope = (x - model(x, sigma)) / sigma
        if after > 0:
            ahead = x + slope * (after - sigma)
            slope = (slope + (ahead - model(ahead, after)) / after) / 2
        x = x + slope * (after - sigma)
    return x


def sample_unknown(model: Callable, x: Tensor, sigmas: Tensor) -> Tensor:
    """A sampler that dato does not know: it evaluates at levels in between."""
    for sigma, after in pairwise(sigmas):
        middle = (sigma + after) / 2
        ahead = x + (x - model(x, sigma)) / sigma * (middle - sigma)
        x = x + (ahead - model(ahead, middle)) / middle * (after - sigma)
    return x


def sampler(function: Callable = sample_euler) -> Any:
    """A sampler as ComfyUI holds it."""
    return SimpleNamespace(sampler_function=function)


def noise(batch: int = 1, size: tuple[int, int] = (8, 8), seed: int = 0) -> Tensor:
    return torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(seed))
