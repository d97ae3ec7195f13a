"""Token pruning in a UNet's transformer blocks, attached with hooks: no block's own code is touched.

Tokens are chosen where a block is entered. Around each chosen layer (self-attention, cross-attention, feed-forward)
the input is shortened to the kept tokens and the output filled up again; the block adds that to its residual, which
stays whole.
"""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F
from diffusers import Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from dato.past import TokenPast
from dato.pruning import Pruning
from dato.tokens import TokenSelection, base_patch, base_score, select_tokens


class TokenPruner:
    """Prunes a share of the tokens of every call.

    Args:
        unet: The UNet; hooks are put on its transformer blocks by `attach` and taken off by `detach`.
        pruning: What to prune and how.
    """

    def __init__(self, unet: UNet2DConditionModel, pruning: Pruning) -> None:
        self._ratio = 0.0
        self._pruning = pruning
        self._transformers = _transformers(unet, pruning.max_downsample)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._generator: torch.Generator | None = None
        self._last: Tensor | None = None  # the last prediction
        self._difference: Tensor | None = None  # (B, 1, H, W): DaTo's D, from the last two predictions
        self._grid = (0, 0)
        self._selection: TokenSelection | None = None
        self._chosen: dict[tuple[int, int], TokenSelection] = {}  # of this call, by grid
        self.time = 0.0  # timestep of the coming call, for recovery from the past
        self._past: defaultdict[nn.Module, TokenPast] = defaultdict(TokenPast)  # by layer

    @property
    def ratio(self) -> float:
        """Share of tokens to prune in the coming call; 0 lets every layer see all tokens."""
        return self._ratio

    @ratio.setter
    def ratio(self, value: float) -> None:
        self._ratio = value
        self._chosen.clear()

    def attach(self) -> None:
        """Put the hooks on."""
        for transformer in self._transformers:
            self._handles.append(transformer.register_forward_pre_hook(self._on_transformer, with_kwargs=True))
            for block in transformer.transformer_blocks:
                self._handles.append(block.register_forward_pre_hook(self._on_block, with_kwargs=True))
                for layer in self._layers(block):
                    self._handles.append(layer.register_forward_pre_hook(self._shorten, with_kwargs=True))
                    self._handles.append(layer.register_forward_hook(self._restore))

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.begin(None)

    def begin(self, device: torch.device | None) -> None:
        """A generation begins (on `device`): nothing is known of earlier predictions, and the noise starts anew."""
        self._last = self._difference = self._selection = None
        self._chosen.clear()
        self._past.clear()
        # A generator of our own: the pipeline's random numbers must not depend on whether it is patched.
        self._generator = None if device is None else torch.Generator(device).manual_seed(self._pruning.seed)

    def observe(self, prediction: Tensor) -> None:
        """Take note of a computed prediction (B, C, H, W), for DaTo's score."""
        if self._pruning.score != "dato":
            return
        prediction = prediction.detach()
        if self._last is not None:
            self._difference = (prediction - self._last).abs().mean(dim=1, keepdim=True)
        self._last = prediction

    def _layers(self, block: BasicTransformerBlock) -> list[nn.Module]:
        p = self._pruning
        chosen = [(p.self_attention, "attn1"), (p.cross_attention, "attn2"), (p.feed_forward, "ff")]
        return [layer for on, name in chosen if on and (layer := getattr(block, name, None)) is not None]

    def _on_transformer(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._grid = tuple((args[0] if args else kwargs["hidden_states"]).shape[-2:])

    def _on_block(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        k = int(x.shape[1] * self.ratio)
        selection = None if k == 0 else self._chosen.get(self._grid)
        if selection is None and k:
            selection = self._select(module, x, k)
            if self._pruning.shared:
                self._chosen[self._grid] = selection
        self._selection = selection

    def _select(self, block: BasicTransformerBlock, x: Tensor, k: int) -> TokenSelection:
        p = self._pruning
        last = next((self._past[layer].last for layer in self._layers(block) if layer in self._past), None)
        x = x.contiguous()  # a transposed view of the image arrives here, and norms along its stride are slow
        difference = None
        if self._difference is not None:
            difference = F.adaptive_avg_pool2d(self._difference, self._grid).flatten(1)
        return select_tokens(
            x,
            self._grid,
            k,
            patch=base_patch(p),
            score=base_score(x, p, self._generator, difference),
            recover_from=p.recover_from,
            merge=p.reduction == "merge",
            align_cfg=p.align_cfg,
            last=last,
        )

    def _shorten(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        selection = self._selection
        # A mask over self-attention's own tokens would have to be shortened too; no Stable Diffusion has one.
        if selection is None or args[0].shape[1] != selection.source.shape[1]:
            return None
        return (selection.shorten(args[0]), *args[1:]), kwargs

    def _restore(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        selection = self._selection
        if selection is not None and output.shape[1] != selection.kept.shape[1]:
            return None
        if self._pruning.recover_from == "past":
            return self._past[module].restore(output, selection, self.time)
        return None if selection is None else selection.restore(output)


def _transformers(unet: UNet2DConditionModel, max_downsample: int | None) -> list[Transformer2DModel]:
    """The transformers at a downsampling of at most `max_downsample` (None: the smallest that has any)."""
    found: list[tuple[int, Transformer2DModel]] = []
    factor = 1

    def visit(block: nn.Module) -> None:
        found.extend((factor, m) for m in block.modules() if isinstance(m, Transformer2DModel))

    for block in unet.down_blocks:
        visit(block)
        factor *= 2 ** len(getattr(block, "downsamplers", None) or ())
    if unet.mid_block is not None:
        visit(unet.mid_block)
    for block in unet.up_blocks:
        visit(block)
        factor //= 2 ** len(getattr(block, "upsamplers", None) or ())
    limit = min((f for f, _ in found), default=1) if max_downsample is None else max_downsample
    return [transformer for f, transformer in found if f <= limit]
