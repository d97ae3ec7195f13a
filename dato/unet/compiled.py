"""Static steps: every way of running a call that a schedule uses, compiled once by `torch.compile`.

A call of a given depth and ratio is always the same computation, whichever call of the generation it is: what changes
(latents, timestep, what the cache hands over) comes in as tensors. So each gets a function of its own, compiled when it
is first run, and nothing is compiled again after the first generation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from itertools import count
from types import FunctionType
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dato.errors import DatoError, first_line
from dato.pruning import Pruning
from dato.tokens.pruner import TokenPruner
from dato.unet.cache import LAST, Cache, Recalled
from dato.unet.ladder import Ladder


class Kind(NamedTuple):
    """What, beside its depth, makes a call another computation.

    Attributes:
        ratio: Share of tokens to prune.
        pruning: How, if any call of the schedule prunes.
    """

    ratio: float
    pruning: Pruning | None


class CompiledCalls:
    """The compiled calls of one UNet. They outlive a patch: hand them to `apply_patch(compile=...)` again.

    Args:
        unet: The UNet.
        **options: Keyword arguments of `torch.compile`. Where they ask for CUDA graphs (mode "reduce-overhead" or
            "max-autotune"), what a later call needs is copied out of the graphs' memory.

    Raises:
        DatoError: if the UNet is to run on a CPU and there is no C++ compiler.
    """

    def __init__(self, unet: UNet2DConditionModel, **options: Any) -> None:
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
        offloaded = hasattr(unet, "_hf_hook")  # the weights lie on the CPU and run elsewhere
        if unet.device.type == "cpu" and not offloaded and options.get("backend", "inductor") == "inductor":
            _need_compiler()

    @property
    def count(self) -> int:
        """How many different calls were compiled."""
        return len(self._compiled)

    def pruner(self, pruning: Pruning) -> TokenPruner:
        """The pruner of these settings: compiled calls hold its hooks, so there is one for all patches."""
        if pruning not in self._pruners:
            self._pruners[pruning] = TokenPruner(self.unet, pruning)
        return self._pruners[pruning]

    def attach(self) -> None:
        """Lay the convolutions' weights out channels last, which convolutions run faster in."""
        for weight in self.unet.parameters():
            # Of one pixel both layouts are the same, and strides that only look different would not come back.
            if weight.dim() == 4 and weight.shape[2:].numel() > 1 and weight.is_contiguous() and not weight.is_meta:
                self._moved.append(weight)
                weight.data = weight.data.to(memory_format=torch.channels_last)

    def detach(self) -> None:
        """Lay the weights out as they were."""
        for weight in self._moved:
            weight.data = weight.data.contiguous()
        self._moved.clear()

    def run(
        self, depth: int, kind: Kind, cache: Cache, sample: Tensor, timestep: Tensor | float, **arguments: Any
    ) -> Tensor:
        """One call at `depth` above 0, as `Ladder.run`.

        Args:
            depth: How deep.
            kind: What else.
            cache: Read and refreshed.
            sample: (B, C, H, W) noisy latents.
            timestep: The timestep.
            **arguments: Others of `UNet2DConditionModel.forward`.

        Returns:
            (B, C_out, H, W), the prediction.
        """
        if not torch.is_tensor(timestep):
            timestep = torch.full((1,), timestep, device=sample.device)
        past = cache.recalled(depth - 1) if depth < len(self._ladder) else None
        if past is not None and past.skips:
            past = past._replace(step=torch.full((), past.step, device=sample.device))
        arguments = {name: value for name, value in arguments.items() if value is not None}
        shapes = sample.shape, sample.dtype, arguments["encoder_hidden_states"].shape, *arguments
        key = (depth, kind, cache.last_feature, 0 if past is None else len(past.values), *shapes)
        if key not in self._compiled:
            self._compiled[key] = self._compile(depth, cache.last_feature)
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        prediction, kept = self._compiled[key](past, sample, timestep, arguments)
        if self._graphs:  # what the next replay writes over must not be what is kept
            prediction = prediction.clone()
            if kind.pruning is not None:
                self._pruners[kind.pruning].copy_state()
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
            # torch.compile keeps what it knows of a function with its code, which all of these would share.
            name = f"dato_depth_{depth}_{next(self._numbers)}"
            own = FunctionType(step.__code__.replace(co_name=name), step.__globals__, name, None, step.__closure__)
            return torch.compile(own, **self._options)

        function = compiled()

        def run(*inputs: Any) -> tuple[Tensor, dict]:
            nonlocal function
            try:
                return function(*inputs)
            except torch._dynamo.exc.Unsupported as error:  # as under offloading, whose hooks cannot be compiled
                if not self._options["fullgraph"]:
                    raise
                reason = first_line(error)
                warnings.warn(f"calls are compiled in pieces, which is slower: {reason}", stacklevel=2)
                self._options["fullgraph"] = False
            except getattr(torch._dynamo.exc, "FailOnRecompileLimitHit", ()):
                pass  # one function was compiled for too many things, as after loading other adapters many times
            function = compiled()
            return function(*inputs)

        return run


class _Exchange:
    """The cache as a compiled call sees it: tensors that came in, and tensors to go out.

    All rungs' values go out, whatever the schedule reads, so that all schedules share what was compiled.
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
        raise DatoError(
            "compile=True needs a C++ compiler on a CPU, and there is none: install g++ or clang"
        ) from error
