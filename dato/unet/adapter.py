"""What the ladder needs of a UNet, so that one file is enough for another kind of UNet.

An `Adapter` knows one UNet's modules and the arguments of its forward. Its `embed` begins a `Forward`, which runs the
UNet step by step: down a rung, the mid block, up a rung. `head` makes the prediction. `dato.unet.kinds` has the list of
the adapters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from dato.tokens.places import Places


class Forward(ABC):
    """One forward of a UNet, after `Adapter.embed`."""

    @abstractmethod
    def down(self, index: int, h: Tensor | None) -> Tensor:
        """Run a rung on the way down.

        Args:
            index: The rung.
            h: What the rung before it gave; None for rung 0.
        """

    @abstractmethod
    def mid(self, h: Tensor) -> Tensor:
        """Run the mid block, which is below the lowest rung."""

    @abstractmethod
    def up(self, index: int, h: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Run a rung on the way up.

        Args:
            index: The rung.
            h: What arrives from below.
            skips: The skip connections, by rung. Those of rungs 0 to `index` are there.
        """

    def skip(self, index: int, h: Tensor) -> Tensor:
        """Return the skip connection of a rung, of which `down` returned `h`."""
        return h

    def release(self) -> None:  # noqa: B027 (there is nothing to do for most UNets)
        """Let offloading take back the weights of the last block."""


class Adapter(ABC):
    """The steps of one UNet, and what else differs between kinds of UNets.

    Attributes:
        unet: The UNet. It is only read, never changed.
        rungs: Its rungs, rung 0 first. Their number is D, the depth of a whole call.
        blocks: Modules that several rungs pass through, with these rungs, by name. Empty: each rung is a module.
        takes: The names of the arguments that `embed` takes.
        whole_calls_are_stock: Whether whole calls run through the UNet's own forward. Else the ladder runs them.
        repeats: Whether a sampler whose timesteps are not known beforehand may use one twice, as PLMS does. Then calls
            are counted (`dato.unet.counted`).
    """

    unet: nn.Module
    rungs: Sequence[Any]
    blocks: Mapping[str, tuple[nn.Module, range]]
    takes: frozenset[str]
    whole_calls_are_stock = False
    repeats = False

    @staticmethod
    @abstractmethod
    def fits(unet: Any) -> bool:
        """Return whether this adapter is for such a UNet."""

    @abstractmethod
    def embed(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor | None, **conditions: Any
    ) -> Forward:
        """Begin a forward: embed the timestep and the conditions.

        Args:
            sample: (B, C, H, W) noisy latents.
            timestep: The timestep, one or (B,).
            encoder_hidden_states: (B, tokens, width) the text; None without a text.
            **conditions: Further arguments of the UNet's forward.
        """

    @abstractmethod
    def head(self, h: Tensor) -> Tensor:
        """Return the prediction, (B, C_out, H, W), for the last feature."""

    @abstractmethod
    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[Tensor], Any]]:
        """Return what the arguments of the UNet's forward mean.

        Returns:
            The arguments of `embed` by name, also those that it does not take; and a function that makes the forward's
            result of a prediction.

        Raises:
            DatoError: if an argument is missing.
        """

    @abstractmethod
    def prediction_of(self, result: Any) -> Tensor:
        """Return the prediction in what the UNet's forward returned."""

    def text_of(self, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return what tells the calls of a step apart: tensors that are compared, such as the text."""
        return (arguments["encoder_hidden_states"],)

    @abstractmethod
    def ends(self, index: int) -> tuple[nn.Module, nn.Module]:
        """Return the modules whose outputs are what a rung makes on the way down, and on the way up."""

    def skip_made(self, index: int, made: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Return the skip connection of a rung, of which the module on the way down made `made`."""
        return made

    def feature_made(self, made: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """Return the last feature, of which the module of rung 0 on the way up made `made`."""
        return made

    def during_call(self, arguments: dict[str, Any]) -> AbstractContextManager[Any]:
        """Return what has to be done around a call that the ladder runs. It may change the arguments."""
        return nullcontext()

    @property
    @abstractmethod
    def places(self) -> Places:
        """Where the UNet has tokens to prune."""

    @abstractmethod
    def shape(self) -> Hashable:
        """Return what the FLOPs of the UNet depend on, besides the size of the latents."""

    @abstractmethod
    def weightless(self) -> tuple[Adapter, Callable[[tuple[int, int]], dict[str, Any]]]:
        """Return a UNet of this shape on PyTorch's meta device, and a function that makes arguments for it.

        The function takes (H, W) of the latents, and returns the arguments of a call of one image.
        """
