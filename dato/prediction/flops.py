"""Count the FLOPs (floating-point operations) of a call or of a whole schedule.

PyTorch's `FlopCounterMode` counts them on a copy of the UNet that has shapes but no numbers. The copy runs through the
ordinary patch, so what is counted is what runs, the choice of tokens included. Counted are matrix products,
convolutions and attention, two operations for each multiply-add. Not counted are sums, norms, activations, gathers and
forecasts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dato.errors import DatoError
from dato.forecast_rule import RULES
from dato.pruning import Pruning
from dato.schedule import Schedule
from dato.unet.ladder import Ladder
from dato.unet.patch import patched


def call_flops(
    unet: UNet2DConditionModel,
    depth: int,
    ratio: float = 0.0,
    *,
    sample_shape: tuple[int, int, int, int],
    pruning: Pruning | None = None,
    text_tokens: int = 77,
) -> int:
    """Return the FLOPs of one call of a UNet.

    Args:
        unet: The model. Only its configuration is read, so it may be on the meta device.
        depth: From 0 (nothing runs) to the number of rungs (the whole UNet).
        ratio: The share of tokens that are pruned.
        sample_shape: (B, C, H, W) of the UNet's input: latents, both halves of guidance.
        pruning: The settings of token pruning that belong to the ratio; None: the defaults. By default tokens are
            chosen once in a call, which costs 0.3% of a whole call of SD 1.5 at 512 x 512. `shared=False` chooses five
            times there. A choice is counted with every call, even if `choose_every` avoids it.
        text_tokens: The length of the text's hidden states.

    Raises:
        DatoError: if the depth, ratio or shape does not fit the UNet.
    """
    rungs = len(Ladder(unet))
    schedule = Schedule((rungs, depth), (0.0, ratio), rungs=rungs, pruning=pruning or Pruning())
    return _count(unet, schedule, [(depth, float(ratio))], sample_shape, text_tokens)[0]


def schedule_flops(
    unet: UNet2DConditionModel,
    schedule: Schedule,
    *,
    sample_shape: tuple[int, int, int, int],
    text_tokens: int = 77,
) -> int:
    """Return the FLOPs of the UNet in a whole generation: the sum of `call_flops` of every call.

    Raises:
        DatoError: if the schedule or shape does not fit the UNet.
    """
    schedule = schedule.for_rungs(len(Ladder(unet)))
    calls = [(depth, ratio) for depth, ratio, _ in schedule.entries]
    return sum(_count(unet, schedule, calls, sample_shape, text_tokens))


def flop_share(
    unet: UNet2DConditionModel,
    schedule: Schedule,
    *,
    sample_shape: tuple[int, int, int, int],
    text_tokens: int = 77,
    calls: int | None = None,
) -> float:
    """Return `schedule_flops` as a share of stock's FLOPs in `calls` calls; None: as many calls as the schedule has."""
    schedule = schedule.for_rungs(len(Ladder(unet)))
    stock = _count(unet, schedule, [(schedule.rungs, 0.0)], sample_shape, text_tokens)[0]
    remain = schedule_flops(unet, schedule, sample_shape=sample_shape, text_tokens=text_tokens)
    return remain / (stock * (len(schedule) if calls is None else calls))


class _Counter:
    """Counts the calls of one UNet at one shape, each kind once.

    Args:
        config: The UNet's configuration as JSON.
        sample_shape: (B, C, H, W) of its input.
        text_tokens: The length of the text's hidden states.
        rungs: The number of its rungs.
        pruning: The settings of token pruning that belong to the ratios.
        forecast: The rule of forecasting. It counts only if the UNet's head runs at depth 0 by this rule.
    """

    def __init__(
        self,
        config: str,
        sample_shape: tuple[int, ...],
        text_tokens: int,
        rungs: int,
        pruning: Pruning,
        forecast: str,
    ) -> None:
        self._rungs, self._pruning, self._forecast = rungs, pruning, forecast
        self._counts: dict[tuple[int, float], int] = {}
        self._mode = FakeTensorMode()
        with self._mode:
            self._unet = UNet2DConditionModel.from_config(json.loads(config))
            self._inputs = example_inputs(self._unet, sample_shape, text_tokens)

    def count(self, calls: Iterable[tuple[int, float]]) -> list[int]:
        """Return the FLOPs of calls of (depth, ratio)."""
        calls = list(calls)
        missing = [call for call in dict.fromkeys(calls) if call not in self._counts]
        if missing:
            # A whole call comes first. It fills the cache if another one is partial.
            first = (self._rungs, 0.0)
            is_partial = any(depth < self._rungs for depth, _ in missing)
            run = [first, *(call for call in missing if call != first)] if is_partial else missing
            depths, ratios = zip(*run, strict=True)
            order = int(RULES[self._forecast].caches_last_feature)
            schedule = Schedule(depths, ratios, order, self._rungs, self._pruning, self._forecast)
            # Attention as two matrix products: not every PyTorch knows the operations of every fused kernel.
            with self._mode, torch.no_grad(), sdpa_kernel(SDPBackend.MATH), patched(self._unet, schedule):
                for number, call in enumerate(run):
                    with FlopCounterMode(display=False) as counter:
                        self._unet(timestep=len(run) - number, **self._inputs)
                    self._counts[call] = counter.get_total_flops()
        return [self._counts[call] for call in calls]


def _count(
    unet: UNet2DConditionModel,
    schedule: Schedule,
    calls: Iterable[tuple[int, float]],
    sample_shape: Iterable[int],
    text_tokens: int,
) -> list[int]:
    """Return the FLOPs of calls of (depth, ratio) as a schedule prunes and forecasts them."""
    calls, shape = list(calls), tuple(sample_shape)
    if len(shape) != 4 or any(not isinstance(size, int) or size < 1 for size in shape):
        raise DatoError(f"sample_shape must be (B, C, H, W), four whole numbers above 0, not {shape}")
    if shape[1] != unet.config.in_channels:
        raise DatoError(f"sample_shape has {shape[1]} channels, but this UNet takes in {unet.config.in_channels}")
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    text = json.dumps(config, sort_keys=True)
    flops: dict[tuple[int, float], int] = {}
    # Calls that prune nothing are the same with all settings of pruning, so they are counted once for all.
    for pruning, of_these in (
        (Pruning(), [call for call in calls if not call[1]]),
        (replace(schedule.pruning, choose_every=1), [call for call in calls if call[1]]),
    ):
        if of_these:
            counter = _counter(text, shape, text_tokens, schedule.rungs, pruning, schedule.rule.name)
            flops |= zip(of_these, counter.count(of_these), strict=True)
    return [flops[call] for call in calls]


_counter = lru_cache(maxsize=16)(_Counter)


def example_inputs(unet: UNet2DConditionModel, sample_shape: tuple[int, ...], text_tokens: int = 77) -> dict[str, Any]:
    """Return random inputs of the UNet besides the timestep: latents of this shape, text, SDXL's sizes.

    Raises:
        DatoError: if the UNet takes in more than these.
    """
    config, batch = unet.config, sample_shape[0]
    if config.class_embed_type or config.num_class_embeds or config.addition_embed_type not in (None, "text_time"):
        raise DatoError("FLOPs are counted of UNets that take in latents, text and, as SDXL does, sizes; this has more")
    width = config.encoder_hid_dim or config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=unet.dtype, device=unet.device)

    inputs: dict[str, Any] = {"sample": draw(*sample_shape), "encoder_hidden_states": draw(batch, text_tokens, width)}
    if config.addition_embed_type == "text_time":
        sizes = 6  # SDXL's original size, crop and target size
        pooled = config.projection_class_embeddings_input_dim - sizes * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": draw(batch, pooled), "time_ids": draw(batch, sizes)}
    return inputs
