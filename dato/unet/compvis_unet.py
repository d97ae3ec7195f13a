"""Split CompVis' `UNetModel` into rungs, and its forward into steps: embed, down, mid, up, head.

The class is in CompVis' and Stability AI's code (`ldm`, `sgm`) and in what was made of it. Each of its input blocks
leaves one skip connection, and each of its output blocks takes one in. So a rung is one block on either way, and depths
mean what they mean in diffusers.

Nothing of that code is imported. What a block does is found at the block.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dato.errors import DatoError
from dato.tokens.places import Places
from dato.unet import adapter
from dato.unet.shape_twin import shape_twin

CLASS = "UNetModel"
_PARTS = ("input_blocks", "middle_block", "output_blocks", "time_embed", "out")
# Names of the arguments of its forward -> names that dato gives them.
_NAMES = {"x": "sample", "timesteps": "timestep", "context": "encoder_hidden_states", "y": "y"}
_TEXT_TOKENS = 77  # of the text in a call whose FLOPs are counted


class Rung(NamedTuple):
    """One rung.

    Attributes:
        down: The input block, which makes the skip connection.
        up: The output block, which takes it in.
    """

    down: nn.Module
    up: nn.Module


class CompVisUNet(adapter.Adapter):
    """The steps of a `UNetModel`.

    Whole calls run through the UNet's own forward. So they are stock's also where somebody has changed that forward.

    Args:
        unet: The model. It is only read, never changed.

    Raises:
        DatoError: if it does not leave as many skip connections as it takes in.
    """

    takes = frozenset(_NAMES.values())
    whole_calls_are_stock = True
    repeats = True

    def __init__(self, unet: nn.Module) -> None:
        down, up = list(unet.input_blocks), list(unet.output_blocks)[::-1]
        if len(down) != len(up):
            raise DatoError(f"this UNet leaves {len(down)} skip connections and takes in {len(up)}; dato needs as many")
        self.unet = unet
        self.rungs = tuple(Rung(*pair) for pair in zip(down, up, strict=True))
        self.blocks: dict[str, tuple[nn.Module, range]] = {}

    @staticmethod
    def fits(unet: Any) -> bool:
        """Return whether it is a `UNetModel`, or of a class that inherits from one."""
        if not isinstance(unet, nn.Module) or not all(hasattr(unet, part) for part in _PARTS):
            return False
        return any(base.__name__ == CLASS for base in type(unet).__mro__)

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[Tensor], Any]]:
        """Return the arguments by dato's names, and a function that makes the forward's result of a prediction."""
        given = dict(zip(_NAMES, args, strict=False), **kwargs)
        arguments = {_NAMES.get(name, name): value for name, value in given.items()}
        if len(args) > len(_NAMES):
            arguments["*"] = args[len(_NAMES) :]  # of another class; its whole calls take them
        arguments = {name: value for name, value in arguments.items() if value is not None}
        if arguments.get("sample") is None or arguments.get("timestep") is None:
            raise DatoError("this UNet needs latents and timesteps: unet(x, timesteps, context=...)")
        arguments.setdefault("encoder_hidden_states", None)
        conditional = getattr(self.unet, "num_classes", None) is not None
        if conditional != ("y" in arguments):
            raise DatoError(
                "this UNet is class-conditional: give it `y`, the classes or conditions of each image"
                if conditional
                else "this UNet is not class-conditional: call it without `y`"
            )
        return arguments, lambda prediction: prediction

    def prediction_of(self, result: Any) -> Tensor:
        """Return what the forward returned, which is the prediction."""
        return result

    def text_of(self, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the text (one, or one for each transformer block) and the classes."""
        text = arguments["encoder_hidden_states"]
        return (*(text if isinstance(text, (list, tuple)) else (text,)), arguments.get("y"))

    def embed(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | Sequence[Tensor] | None = None,
        y: Tensor | None = None,
    ) -> Forward:
        """Begin a forward.

        Args:
            sample: (B, C, H, W) the noisy latents: `x` of the UNet's forward.
            timestep: (B,) `timesteps`.
            encoder_hidden_states: (B, tokens, width) the text, or a list of texts: `context`.
            y: The classes or conditions of each image, for a UNet that has some.
        """
        unet = self.unet
        emb = unet.time_embed(self._sines(timestep))
        if y is not None:
            emb = emb + unet.label_emb(y)
        return Forward(self, sample, emb, encoder_hidden_states)

    def _sines(self, timestep: Tensor) -> Tensor:
        """Return sines and cosines of the timesteps, (B, width), by the function of the UNet's own module."""
        unet = self.unet
        own = next(base for base in type(unet).__mro__ if base.__name__ == CLASS)
        return sys.modules[own.__module__].timestep_embedding(timestep, unet.model_channels)

    def head(self, h: Tensor) -> Tensor:
        """Return the prediction, (B, C_out, H, W), for the last feature."""
        unet = self.unet
        return unet.id_predictor(h) if getattr(unet, "predict_codebook_ids", False) else unet.out(h)

    def ends(self, index: int) -> tuple[nn.Module, nn.Module]:
        """Return the input block and the output block of a rung."""
        return self.rungs[index]

    def feature_made(self, made: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Return the last feature in the precision of the latents."""
        return made.type(arguments["sample"].dtype)

    @property
    def places(self) -> Places:
        """Where the UNet has tokens to prune."""
        unet = self.unet
        transformers: list[tuple[int, nn.Module]] = []
        added: list[int] = []
        factor = 1
        for block in unet.input_blocks:
            for layer in block:
                if _is_transformer(layer):
                    transformers.append((factor, layer))
                elif _halves(layer):
                    factor *= 2
                    added.append(1 if isinstance(getattr(layer, "op", None), nn.Conv2d) else 0)
        transformers += [(factor, layer) for layer in unet.middle_block if _is_transformer(layer)]
        for block in unet.output_blocks:
            for layer in block:
                if _is_transformer(layer):
                    transformers.append((factor, layer))
                elif _doubles(layer):
                    factor //= 2
        return Places(tuple(transformers), tuple(added), unet.out_channels)

    def shape(self) -> tuple:
        """Return the shapes of all parameters."""
        return tuple((name, tuple(weight.shape)) for name, weight in self.unet.named_parameters())

    def weightless(self) -> tuple[CompVisUNet, Callable[[tuple[int, int]], dict[str, Any]]]:
        """Return the same UNet without weights, and what makes arguments for it."""
        twin = CompVisUNet(shape_twin(self.unet))
        unet = twin.unet
        widths = [layer.to_k.in_features for name, layer in unet.named_modules() if name.endswith("attn2")]

        def arguments(size: tuple[int, int]) -> dict[str, Any]:
            sample = torch.empty(1, unet.in_channels, *size, device="meta")
            text = torch.empty(1, _TEXT_TOKENS, widths[0], device="meta") if widths else None
            # Conditions besides the text take hardly any FLOPs, so they are not counted.
            return {"sample": sample, "timestep": torch.empty(1, device="meta"), "encoder_hidden_states": text}

        return twin, arguments


class Forward(adapter.Forward):
    """One forward of a `CompVisUNet`, after `embed`.

    Code that runs blocks in another way derives from this class, and from `CompVisUNet.embed`, which makes it.

    Args:
        model: The UNet.
        sample: (B, C, H, W) what goes into rung 0.
        emb: (B, width) the embedding of the timestep and the conditions.
        text: The text.
    """

    def __init__(self, model: CompVisUNet, sample: Tensor, emb: Tensor, text: Any) -> None:
        self.model, self.sample, self.emb, self.text = model, sample, emb, text

    def run(self, block: nn.Module, way: str, index: int, h: Tensor, size: torch.Size | None = None) -> Tensor:
        """Run one block.

        Args:
            block: The block.
            way: "input", "middle" or "output".
            index: Its place among the blocks of that way, as the UNet counts them.
            h: Its input.
            size: The shape of the skip connection that its output meets; None if it meets none.
        """
        return block(h, self.emb, self.text)

    def down(self, index: int, h: Tensor | None) -> Tensor:
        """Run an input block."""
        if h is None:
            h = self.sample.type(getattr(self.model.unet, "dtype", self.sample.dtype))
        return self.run(self.model.rungs[index].down, "input", index, h)

    def mid(self, h: Tensor) -> Tensor:
        """Run the middle block."""
        return self.run(self.model.unet.middle_block, "middle", 0, h)

    def up(self, index: int, h: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Run an output block."""
        rungs, size = self.model.rungs, skips[index - 1].shape if index else None
        h = self.run(rungs[index].up, "output", len(rungs) - 1 - index, self.join(index, h, skips[index]), size)
        return h if index else h.type(self.sample.dtype)

    def join(self, index: int, h: Tensor, skip: Tensor) -> Tensor:
        """Return what an output block gets: what arrives from below, and the skip connection."""
        return torch.cat([h, skip], dim=1)


def _is_transformer(layer: nn.Module) -> bool:
    return hasattr(layer, "transformer_blocks")


def _halves(layer: nn.Module) -> bool:
    return _name(layer) == "Downsample" or _name(getattr(layer, "h_upd", None)) == "Downsample"


def _doubles(layer: nn.Module) -> bool:
    return _name(layer) in ("Upsample", "TransposedUpsample") or _name(getattr(layer, "h_upd", None)) == "Upsample"


def _name(module: Any) -> str:
    return type(module).__name__
