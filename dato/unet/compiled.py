"""Compiled calls: each different call of a schedule, compiled once by `torch.compile`.

Calls of the same depth and ratio are the same computation. What changes between them (latents, timestep, what the
cache gives) comes in as tensors. So each different call gets a function of its own, which is compiled when it is first
run. Nothing is compiled again after the first generation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from itertools import count
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dato.call import LAST, place_read
from dato.errors import DatoError, first_line
from dato.pruning import Pruning
from dato.tokens.pruner import TokenPruner
from dato.unet.cache import Cache, Recalled
from dato.unet.ladder import Ladder
from dato.unet.targets import unet_of


class Variant(NamedTuple):
    """What makes calls of the same depth different computations.

    Attributes:
        ratio: The share of tokens to prune.
        pruning: The settings of pruning; None if no call of the schedule prunes.
    """

    ratio: float
    pruning: Pruning | None


class CompiledCalls:
    """The compiled calls of one UNet. They outlive a patch and can be given to `apply_patch(compile=...)` again.

    Args:
        unet: The UNet.
        **options: Keyword arguments of `torch.compile`. If they ask for CUDA graphs (mode "reduce-overhead" or
            "max-autotune"), what a later call needs is copied out of the graphs' memory.

    Raises:
        DatoError: if it is no UNet that can be patched, or runs on a CPU and there is no C++ compiler.
    """

    def __init__(self, unet: nn.Module, **options: Any) -> None:
        unet = unet_of(unet)[0]  # without a wrapper
        self.unet, self._options = unet, {"dynamic": False, "fullgraph": True} | options
        inductor = options.get("options") or {}
        self._graphs = (
            options.get("mode") in ("reduce-overhead", "max-autotune")
            or options.get("backend") == "cudagraphs"
            or bool(inductor.get("triton.cudagraphs"))
            or bool(getattr(options.get("backend"), "config", {}).get("triton.cudagraphs"))
        )
        self._ladder = Ladder(unet)
        self._compiled: dict[tuple, Callable] = {}
        self._pruners: dict[Pruning, TokenPruner] = {}
        self._moved: list[nn.Parameter] = []
        self._numbers = count()
        offloaded = hasattr(unet, "_hf_hook")  # the weights are stored on the CPU and run on another device
        device = unet.device if hasattr(unet, "device") else next(unet.parameters()).device
        if device.type == "cpu" and not offloaded and options.get("backend", "inductor") == "inductor":
            _need_compiler()

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles hold: all but the compiled calls, which are of this UNet."""
        return {**self.__dict__, "_compiled": {}}

    @property
    def count(self) -> int:
        """The number of different calls that were compiled."""
        return len(self._compiled)

    def pruner(self, pruning: Pruning) -> TokenPruner:
        """Return the pruner of these settings. Compiled calls hold its hooks, so all patches share one."""
        if pruning not in self._pruners:
            self._pruners[pruning] = TokenPruner(self.unet, pruning, self._ladder.model.places)
        return self._pruners[pruning]

    def attach(self) -> None:
        """Store the convolutions' weights channels last, which makes convolutions faster."""
        for weight in self.unet.parameters():
            # For a 1 x 1 kernel both layouts are the same, and `detach` could not restore the strides.
            if weight.dim() == 4 and weight.shape[2:].numel() > 1 and weight.is_contiguous() and not weight.is_meta:
                self._moved.append(weight)
                weight.data = weight.data.to(memory_format=torch.channels_last)

    def detach(self) -> None:
        """Restore the layout of the weights."""
        for weight in self._moved:
            weight.data = weight.data.contiguous()
        self._moved.clear()

    def run(
        self, depth: int, variant: Variant, cache: Cache, sample: Tensor, timestep: Tensor | float, **arguments: Any
    ) -> Tensor:
        """Run one call at a depth above 0, as `Ladder.run` does.

        Args:
            depth: The depth.
            variant: What else makes the call a different computation.
            cache: It is read, and gets what this call computes.
            sample: (B, C, H, W) noisy latents.
            timestep: The timestep.
            **arguments: Other arguments of the UNet's forward.

        Returns:
            (B, C_out, H, W), the prediction.
        """
        if not torch.is_tensor(timestep):
            timestep = torch.full((1,), timestep, device=sample.device)
        place = place_read(depth, len(self._ladder))
        past = None if place is None else cache.recalled(place)
        if past is not None and past.skips:
            past = past._replace(step=torch.full((), past.step, device=sample.device))
        arguments = {name: value for name, value in arguments.items() if value is not None}
        text = arguments.get("encoder_hidden_states")
        shapes = sample.shape, sample.dtype, getattr(text, "shape", None), *arguments
        key = (depth, variant, cache.last_feature, 0 if past is None else len(past.values), *shapes)
        if key not in self._compiled:
            self._compiled[key] = self._compile(depth, cache.last_feature)
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        prediction, kept = self._compiled[key](past, sample, timestep, arguments)
        if self._graphs:  # the next replay writes over what it returned
            prediction = prediction.clone()
            if variant.pruning is not None:
                self._pruners[variant.pruning].copy_state()
        for place, (value, skip) in kept.items():
            cache.store(place, value, skip, copy=self._graphs)
        if not cache.last_feature:
            cache.store(LAST, prediction)
        return prediction

    def _compile(self, depth: int, last_feature: bool) -> Callable:
        ladder = self._ladder

        def step(past: Recalled | None, sample: Tensor, timestep: Tensor, arguments: Mapping[str, Any]):
            exchange = _Exchange(past, last_feature)
            prediction = ladder.run(depth, exchange, sample, timestep, **arguments)
            return prediction, exchange.kept

        def compiled() -> Callable:
            # torch.compile keeps its results with a function's code object, so each function gets one of its own.
            name = f"dato_depth_{depth}_{next(self._numbers)}"
            code = step.__code__.replace(co_name=name)
            copied = FunctionType(code, step.__globals__, name, None, step.__closure__)
            return torch.compile(copied, **self._options)

        function = compiled()

        def run(*inputs: Any) -> tuple[Tensor, dict]:
            nonlocal function
            try:
                return function(*inputs)
            except torch._dynamo.exc.Unsupported as error:  # such as the hooks of offloading
                if not self._options["fullgraph"]:
                    raise
                reason = first_line(error)
                warnings.warn(f"calls are compiled in pieces, which is slower: {reason}", stacklevel=2)
                self._options["fullgraph"] = False
            except getattr(torch._dynamo.exc, "FailOnRecompileLimitHit", ()):
                pass  # one function was compiled too often, such as after loading other adapters many times
            function = compiled()
            return function(*inputs)

        return run


class _Exchange:
    """The cache as a compiled call sees it: tensors that came in, and tensors that go out.

    The values of all rungs go out, also those that the schedule does not read, so that all schedules share one
    compiled call.
    """

    def __init__(self, past: Recalled | None, last_feature: bool) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.last_feature = last_feature
        self._past = past

    def recall(self, place: int, skip: Tensor | None = None) -> Tensor:
        return self._past.arrive(skip)

    def store(self, place: int, value: Tensor, skip: Tensor | None = None) -> None:
        if place != LAST or self.last_feature:
            self.kept[place] = value, skip


def _need_compiler() -> None:
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise DatoError("`compile` needs a C++ compiler on a CPU, and there is none: install g++ or clang") from error
