"""One generation in ComfyUI: it runs each call of the UNet as its schedule says.

A whole call goes through ComfyUI's own forward, so it is what ComfyUI computes, bit for bit. A patch of ours, which the
forward calls before each output block, takes down what later calls will read. The other calls run by the ladder.

In each step ComfyUI may call the UNet several times: the parts of guidance in one batch or apart, areas, tiles, further
calls of other nodes. Each of them has a *lane* with a cache of its own. A lane that missed a call forgets all. Then its
next call is whole.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dato.call import LAST
from dato.comfyui.sampler_calls import SamplerCalls
from dato.schedule import Schedule
from dato.tokens.pruner import TokenPruner
from dato.unet.cache import Cache
from dato.unet.comfyui_unet import ComfyUNet
from dato.unet.ladder import Ladder
from dato.unet.lane import Lane

NAMES = ("x", "timesteps", "context", "y", "control", "transformer_options")  # arguments of the UNet's forward
_VIDEO = ("num_video_frames", "time_context", "image_only_indicator")
# Patches of other nodes that expect all tokens, by the setting of pruning that they do not go with.
_RIVALS = {
    "self_attention": ("attn1_patch", "attn1_output_patch", "attn1"),
    "cross_attention": ("attn2_patch", "attn2_output_patch", "attn2"),
}
_RESIZING = ("input_block_patch", "input_block_patch_after_skip")  # may change the grid of tokens within the UNet


class Run:
    """One generation.

    Args:
        unet: The UNet.
        schedule: Its schedule.
        calls: Finds the index of each call.
        ratio_besides: The ratio of calls that are none of the schedule's.
        made_for: The number of calls that the schedule was made for; None: as many as it has.

    Attributes:
        depths: The depth that each call of the schedule has run at, by its index. If a step calls the UNet several
            times, the deepest.
        besides: How many times the UNet was called besides.
        unpruned: How many calls did not prune because of other nodes.
    """

    def __init__(
        self,
        unet: nn.Module,
        schedule: Schedule,
        calls: SamplerCalls,
        ratio_besides: float = 0.0,
        made_for: int | None = None,
    ) -> None:
        self.unet, self.schedule, self._calls = unet, schedule, calls
        self.made_for = len(schedule) if made_for is None else made_for
        self._ladder = Ladder(ComfyUNet(unet))
        self._described = schedule.calls()
        self._ratio_besides = ratio_besides
        self._lanes: dict[Hashable, Lane] = {}
        self._seen: Counter[Hashable] = Counter()  # calls of this step
        self._sigmas: Tensor | None = None
        self._pruner: TokenPruner | None = None
        if ratio_besides or any(schedule.ratios):
            self._pruner = TokenPruner(unet, schedule.pruning, self._ladder.model.places)
        self.depths: dict[int, int] = {}
        self.besides = self.unpruned = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        """Return itself: nodes copy the options that it is in."""
        return self

    def begin_call(self, sigmas: Tensor) -> None:
        """Begin a call of the sampler: it evaluates the model at this noise level, (B,)."""
        self._sigmas = sigmas
        self._calls.begin(sigmas.flatten().tolist())
        self._seen.clear()

    def end(self) -> None:
        """End the generation, and free what was kept."""
        self._lanes.clear()
        self._pruner = None

    def call(self, forward: Callable[..., Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """Run one call of the UNet.

        Args:
            forward: ComfyUI's own.
            args: Its arguments.
            kwargs: Its arguments.

        Returns:
            (B, C_out, H, W), the prediction.
        """
        given = dict(zip(NAMES, args, strict=False), **kwargs)
        index = self._calls.index if self._belongs(given) else None
        if index is None:
            self.besides += 1
            with self._pruned(Lane(Cache()), self._ratio_besides, 0.0, given):
                return forward(*args, **kwargs)
        call, lane = self._described[index], self._lane(index, given)
        # Some samplers come back to a level, but not to its last digit. No forecast spans so short a time.
        time = round(float(given["timesteps"].flatten()[0]), 4)
        lane.cache.begin(call, time)
        depth = call.depth if call.depth < len(self._ladder) and lane.cache.can_serve(call.depth) else len(self._ladder)
        try:
            with self._pruned(lane, call.ratio if depth else 0.0, time, given) as pruner:
                if depth < len(self._ladder):
                    prediction = self._run(depth, lane.cache, given)
                else:
                    prediction = self._run_whole(forward, lane.cache, args, kwargs, given)
                if pruner is not None and depth:
                    pruner.observe(prediction)
        except BaseException:
            lane.forget()
            raise
        lane.cache.end()
        self.depths[index] = max(depth, self.depths.get(index, 0))
        if index == len(self.schedule) - 1:
            lane.forget()
        return prediction

    def _belongs(self, given: Mapping[str, Any]) -> bool:
        """Return whether a call of the UNet is of the running call of the sampler, and of a kind that we can run."""
        options = given.get("transformer_options") or {}
        sigmas = options.get("sigmas")
        if sigmas is None or self._sigmas is None or not options.get("uuids"):
            return False
        if any(given.get(name) is not None for name in _VIDEO):
            return False
        return sigmas is self._sigmas or set(sigmas.flatten().tolist()) == set(self._sigmas.flatten().tolist())

    def _lane(self, index: int, given: Mapping[str, Any]) -> Lane:
        """Return the lane of a call."""
        options, x = given["transformer_options"], given["x"]
        # A copy of a conditioning has its uuid, too, but may be for the other part of guidance.
        window = getattr(options.get("context_window"), "index_list", ())
        kind = x.shape, x.dtype, x.device
        key: Hashable = (tuple(options["uuids"]), tuple(options.get("cond_or_uncond", ())), tuple(window), kind)
        self._seen[key] += 1
        key = key, self._seen[key]
        self._lanes = {other: lane for other, lane in self._lanes.items() if lane.index >= index - 1}
        lane = self._lanes.setdefault(key, Lane(Cache(self.schedule.rule, len(self.schedule))))
        lane.index = index
        return lane

    def _run(self, depth: int, cache: Cache, given: Mapping[str, Any]) -> Tensor:
        """Run a call by the ladder."""
        conditions = {name: given.get(name) for name in ("y", "control", "transformer_options")}
        return self._ladder.run(depth, cache, given["x"], given["timesteps"], given.get("context"), **conditions)

    def _run_whole(
        self,
        forward: Callable[..., Tensor],
        cache: Cache,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        given: Mapping[str, Any],
    ) -> Tensor:
        """Run a call by ComfyUI's own forward, and store what later calls will read."""
        rungs, last = len(self._ladder), []

        def store(h: Tensor, skip: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
            way, block = options["block"]
            if way == "output" and block:
                cache.store(rungs - 1 - block, h, skip, copy=others)
            return h, skip

        with contextlib.ExitStack() as stack:
            # It is the first, because other patches change what arrives, and they will do so in later calls too.
            others = stack.enter_context(_patch_first(given["transformer_options"], "output_block_patch", store))
            if cache.last_feature:
                hook = self.unet.out.register_forward_pre_hook(lambda module, inputs: last.append(inputs[0]))
                stack.callback(hook.remove)
            prediction = forward(*args, **kwargs)
        if not cache.last_feature:
            cache.store(LAST, prediction)
        elif len(last) == 1:
            cache.store(LAST, last[0])
        return prediction

    @contextlib.contextmanager
    def _pruned(self, lane: Lane, ratio: float, time: float, given: Mapping[str, Any]) -> Iterator[TokenPruner | None]:
        """Prune in a `with` block. It yields the pruner; None if nothing prunes. The UNet has no hooks outside."""
        pruner, options = self._pruner, given.get("transformer_options") or {}
        if pruner is None:
            yield None
            return
        if ratio and _has_rivals(options, self.schedule.pruning):
            ratio, self.unpruned = 0.0, self.unpruned + 1
        pruner.attach()
        try:
            pruner.parts = len(options.get("cond_or_uncond", ())) or None
            pruner.resume(lane.pruning, given["x"].device)
            pruner.prepare(ratio, given["x"], time)
            yield pruner
            lane.pruning = pruner.state()
        finally:
            pruner.detach()


@contextlib.contextmanager
def _patch_first(options: dict[str, Any], name: str, patch: Callable[..., Any]) -> Iterator[bool]:
    """Put a patch before the others of its name in a `with` block. It yields whether there are others."""
    there, before = "patches" in options, options.get("patches")
    others = list((before or {}).get(name, ()))
    options["patches"] = {**(before or {}), name: [patch, *others]}
    try:
        yield bool(others)
    finally:
        if there:
            options["patches"] = before
        else:
            del options["patches"]


def _has_rivals(options: Mapping[str, Any], pruning: Any) -> bool:
    """Return whether patches of other nodes expect all tokens where some are left out."""
    present = {
        name for kind in ("patches", "patches_replace") for name, found in options.get(kind, {}).items() if found
    }
    rivals = [name for setting, names in _RIVALS.items() if getattr(pruning, setting) for name in names]
    return any(name in present for name in (*rivals, *_RESIZING))
