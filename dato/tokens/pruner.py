"""Prune tokens in a UNet's transformer blocks, with hooks. No block's own code is touched.

A hook chooses the tokens when a block is entered. Around each chosen layer (self-attention, cross-attention,
feed-forward) hooks shorten the input to the kept tokens and fill up the output again. The block adds that to its
residual, which stays whole. A layer's norm treats each token by itself, so the input is shortened before the norm.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from dato.pruning import Pruning
from dato.tokens.places import Places, places_of
from dato.tokens.recovery import TokenPast
from dato.tokens.scores import base_score
from dato.tokens.selection import TokenSelection, select_tokens

# What calls of a generation leave to later ones.
_STATE = (
    "_generator",
    "_last",
    "_difference",
    "_noise",
    "_sign",
    "_selections",
    "_chosen_for",
    "_age",
    "_parts",
    "_moment",
)


class TokenPruner:
    """Prune a share of the tokens of every call.

    `prepare` draws a call's random numbers before the UNet runs. Within the UNet the hooks use tensors only, so that
    a call can be compiled.

    Args:
        unet: The UNet. `attach` puts hooks on its transformer blocks, `detach` takes them off.
        pruning: What to prune and how.
        places: Where the UNet has tokens. None: it is a UNet of diffusers.

    Attributes:
        parts: Number of parts that guidance divides the batch into. None: it is found by comparing latents.
        listener: Called with (downsampling, number, grid, selection) at every choice of tokens, if it is set. The
            number counts the transformer blocks at this downsampling from 0, and is 0 if they share a choice.
    """

    def __init__(self, unet: nn.Module, pruning: Pruning, places: Places | None = None) -> None:
        self._places, self._pruning = places_of(unet) if places is None else places, pruning
        self.parts: int | None = None
        self._parts = 0  # of the running generation; 0: not known yet
        self.listener: Callable[[int, int, tuple[int, int], TokenSelection], None] | None = None
        self._transformers = self._places.within(pruning.max_downsample)
        self._hooks, self._pasts = self._make_hooks()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._generator: torch.Generator | None = None
        self._last: Tensor | None = None  # the last prediction
        self._difference: Tensor | None = None  # (B, 1, H, W): DaTo's D, from the last two predictions
        # State of the running call. Tokens are chosen for each downsampling, or for each block.
        self._ratio = 0.0
        self._time: Tensor | None = None
        self._turn: Tensor | None = None  # see `TokenPast.restore`
        self._moment = (math.nan, 0.0)  # both as numbers
        self._noise: dict[int, Tensor] = {}  # (blocks, B, N) by downsampling
        self._sign: Tensor | None = None  # of D
        self._selections: dict[int, TokenSelection] = {}  # by downsampling
        self._chosen_for: tuple[tuple[int, int], ...] = ()  # (N, K) of each downsampling
        self._age = 0  # calls that used the selections
        # State of the running block.
        self._grid = (0, 0)
        self._selection: TokenSelection | None = None

    def attach(self) -> None:
        """Put the hooks on the UNet."""
        for module, hook, before in self._hooks:
            if before:
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(hook))

    def detach(self) -> None:
        """Take the hooks off the UNet, and forget the generation."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.begin(None)

    def begin(self, device: torch.device | None) -> None:
        """Begin a generation on `device`: forget earlier predictions, and seed the noise anew."""
        self._last = self._difference = self._time = self._turn = self._sign = self._selection = None
        self._moment = (math.nan, 0.0)
        self._noise, self._selections, self._chosen_for, self._parts = {}, {}, (), 0
        for past in self._pasts:
            past.clear()
        # Use a separate generator: the pipeline's random numbers must not depend on whether it is patched.
        self._generator = None if device is None else torch.Generator(device).manual_seed(self._pruning.seed)

    def state(self) -> tuple:
        """Return what later calls of the generation read, to go on with `resume` after calls of others."""
        return [getattr(self, name) for name in _STATE], [past.state for past in self._pasts]

    def resume(self, state: tuple | None, device: torch.device | None) -> None:
        """Go on with a generation of which `state` was returned; None: begin one on `device`."""
        if state is None:
            self.begin(device)
            return
        values, pasts = state
        for name, value in zip(_STATE, values, strict=True):
            setattr(self, name, value)
        for past, one in zip(self._pasts, pasts, strict=True):
            past.state = one

    def prepare(self, ratio: float, sample: Tensor, time: float) -> None:
        """Begin a call: decide whether to choose tokens anew, and draw the random numbers for it.

        Args:
            ratio: Share of tokens to prune; 0 lets every layer see all tokens.
            sample: (B, C, H, W) the UNet's input.
            time: Its timestep.
        """
        self._ratio = ratio
        if self._pruning.recover_from == "past":
            before, turn = self._moment
            self._moment = time, turn - (time != before)
            self._time, self._turn = (torch.full((), value, device=sample.device) for value in self._moment)
        if not ratio:
            return
        num_tokens = {factor: h * w for factor, (h, w) in self._grids(sample) if int(h * w * ratio)}
        chosen_for = tuple((n, int(n * ratio)) for n in num_tokens.values())
        choose_every = self._pruning.choose_every
        self._age = self._age + 1 if chosen_for == self._chosen_for else choose_every
        if self._age < choose_every:
            return
        self._selections, self._chosen_for, self._age = {}, chosen_for, 0
        self._parts = self._parts or self._parts_of(sample)
        self._draw(num_tokens, sample)

    def _draw(self, num_tokens: dict[int, int], sample: Tensor) -> None:
        """Draw the noise for each downsampling, and the sign of the difference.

        Each image of a batch gets the numbers that it gets alone, so that its neighbours do not change it. Each part of
        guidance gets numbers of its own.
        """
        p, device, batch, parts = self._pruning, sample.device, len(sample), self._parts
        if p.base_score.noise:
            for factor, n in num_tokens.items():
                blocks = 1 if p.shared else sum(len(t.transformer_blocks) for f, t in self._transformers if f == factor)
                noise = torch.randn((blocks, parts, n), generator=self._generator, device=device)
                self._noise[factor] = noise.repeat_interleave(batch // parts, dim=1)
        if self._difference is not None:
            # A tensor, so that a GPU need not wait for the host.
            self._sign = torch.randint(0, 2, (1,), generator=self._generator, device=device) * 2.0 - 1.0

    def _parts_of(self, sample: Tensor) -> int:
        """Return the number of parts that guidance divides a batch into, by its latents if it is not known.

        Guidance gives each part the same latents. To compare them the host waits for the device, once a generation.
        """
        batch, pruning = len(sample), self._pruning
        if self.parts is not None:
            return self.parts if batch % self.parts == 0 else 1
        if not pruning.base_score.noise and not pruning.align_cfg:
            return 1  # nothing depends on it
        if sample.is_meta or isinstance(sample, FakeTensor):
            return 1  # there is nothing to compare
        latents = sample[:, : self._places.channels]
        for parts in (3, 2):
            if batch % parts == 0:
                first, *others = latents.chunk(parts)
                if all(torch.equal(first, other) for other in others):
                    return parts
        return 1

    def observe(self, prediction: Tensor) -> None:
        """Remember a computed prediction (B, C, H, W), for scores that take the difference of the last two."""
        if not self._pruning.base_score.difference:
            return
        prediction = prediction.detach()
        if self._last is not None:
            self._difference = (prediction - self._last).abs().mean(dim=1, keepdim=True)
        self._last = prediction

    def _make_hooks(self) -> tuple[list[tuple[nn.Module, Callable, bool]], list[TokenPast]]:
        """Return (module, hook, whether the hook runs before the module) for each hook, and the past of every layer."""
        hooks: list[tuple[nn.Module, Callable, bool]] = []
        all_pasts: list[TokenPast] = []
        numbers: Counter[int] = Counter()
        for factor, transformer in self._transformers:
            hooks.append((transformer, self._on_transformer, True))
            for block in transformer.transformer_blocks:
                layers = list(self._layers(block))
                pasts = [TokenPast() for _ in layers]
                hooks.append((block, partial(self._on_block, factor, numbers[factor], pasts), True))
                for (layer, norm), past in zip(layers, pasts, strict=True):
                    hooks.append((layer if norm is None else norm, self._shorten, True))
                    if isinstance(layer, Attention):
                        hooks.append((layer, self._shorten_masks, True))
                    hooks.append((layer, partial(self._restore, past), False))
                numbers[factor] += 1
                all_pasts.extend(pasts)
        return hooks, all_pasts

    def copy_state(self) -> None:
        """Copy what later calls read: a compiled call may overwrite its own memory."""
        if self._pruning.choose_every == 1:
            self._selections = {}
        for factor, s in self._selections.items():
            tensors = (x.clone() for x in (s.base, s.pruned, s.kept, s.source))
            self._selections[factor] = TokenSelection(*tensors, s.merge)
        self._selection = None
        for past in self._pasts:
            past.copy_state()

    def _layers(self, block: nn.Module) -> Iterator[tuple[nn.Module, nn.Module | None]]:
        """Yield the layers to prune around, each with its norm if the norm comes right before it."""
        p = self._pruning
        layers = [
            (p.self_attention, "attn1", "norm1"),
            (p.cross_attention, "attn2", "norm2"),
            (p.feed_forward, "ff", "norm3"),
        ]
        # Only diffusers' blocks have norms of other types, embeddings after the norm, and chunks.
        kind, embed, chunk = (getattr(block, name, None) for name in ("norm_type", "pos_embed", "_chunk_size"))
        plain = kind in (None, "layer_norm") and embed is None and chunk is None
        for on, name, norm in layers:
            if on and (layer := getattr(block, name, None)) is not None:
                yield layer, getattr(block, norm) if plain else None

    def _grids(self, sample: Tensor) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield each downsampling at which tokens are pruned, with the grid of tokens there."""
        wanted = {factor for factor, _ in self._transformers}
        for factor, grid in self._places.grids(tuple(sample.shape[-2:])):
            if factor in wanted:
                yield factor, grid

    # The hooks.

    def _on_transformer(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._grid = tuple((args[0] if args else kwargs["hidden_states"]).shape[-2:])

    def _on_block(
        self, factor: int, number: int, pasts: list[TokenPast], module: nn.Module, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict] | None:
        x = args[0] if args else kwargs["hidden_states"]
        k = int(x.shape[1] * self._ratio)
        if not k or not pasts:
            self._selection = None
            return None
        # A transposed view of an image arrives here. Without this, every gather would copy it whole.
        x = x.contiguous()
        if not self._pruning.shared:
            self._selection = self._select(factor, number, pasts, x, k)
        else:
            if factor not in self._selections:
                self._selections[factor] = self._select(factor, 0, pasts, x, k)
            self._selection = self._selections[factor]
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def _select(self, factor: int, number: int, pasts: list[TokenPast], x: Tensor, k: int) -> TokenSelection:
        p = self._pruning
        difference = None
        if self._sign is not None:  # a sign is drawn with each choice, if a difference was there
            difference = self._sign * F.adaptive_avg_pool2d(self._difference, self._grid).flatten(1)
        noise = self._noise[factor][number] if p.base_score.noise else None
        selection = select_tokens(
            x,
            self._grid,
            k,
            patch=p.base_patch,
            score=base_score(x, p, noise, difference, self._grid),
            recover_from=p.recover_from,
            similarity=p.similarity,
            merge=p.reduction == "merge",
            align_cfg=p.align_cfg and self._parts,
            last=pasts[0].last,
        )
        if self.listener is not None:
            self.listener(factor, number, self._grid, selection)
        return selection

    def _shorten(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        selection = self._selection
        if selection is None or args[0].shape[1] != selection.source.shape[1]:
            return None
        return (selection.shorten(args[0]), *args[1:]), kwargs

    def _shorten_masks(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Let masks over an attention's tokens follow the tokens that are kept."""
        selection = self._selection
        if selection is None or args[0].shape[1] != selection.kept.shape[1]:
            return None
        mask, images = kwargs.get("attention_mask"), kwargs.get("ip_adapter_masks")
        if kwargs.get("encoder_hidden_states") is None:
            if mask is None or mask.shape[-1] != selection.source.shape[1]:
                return None
            kept = selection.kept[:, None]
            return args, {**kwargs, "attention_mask": mask.expand(len(kept), -1, -1).gather(2, kept)}
        if images is None:
            return None
        if isinstance(images, Tensor):
            images = list(images.unsqueeze(1))  # as diffusers takes it too
        return args, {**kwargs, "ip_adapter_masks": [_shortened(mask, selection) for mask in images]}

    def _restore(self, past: TokenPast, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        selection = self._selection
        if selection is not None and output.shape[1] != selection.kept.shape[1]:
            return None
        if self._pruning.recover_from == "past":
            return past.restore(output, selection, self._time, self._turn)
        return None if selection is None else selection.restore(output)


def _shortened(masks: Tensor | None, selection: TokenSelection) -> Tensor | None:
    """Return an IP-Adapter's masks of the kept tokens only: (1, images, H, W) -> (B, images, 1, N - K).

    Attention resizes a mask to its number of tokens. One that is a row of so many values stays as it is.
    """
    if not isinstance(masks, Tensor) or masks.ndim != 4:
        return masks  # no mask, or one that diffusers refuses
    batch, n = selection.source.shape
    whole = (IPAdapterMaskProcessor.downsample(mask, batch, n, 1) for mask in masks.unbind(1))
    short = (selection.shorten(mask.to(selection.source.device)) for mask in whole)
    return torch.stack([mask.transpose(1, 2) for mask in short], dim=1)
