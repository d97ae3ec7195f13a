"""Run a whole call through another forward than the ladder, and fill the cache from what its modules compute.

Other code may replace a UNet's forward: accelerate to cast to half precision, or a subclass. A whole call has to give
what that forward gives. So it runs as it is, and hooks on the rungs take down what a ladder would have stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from dato.call import LAST
from dato.unet.adapter import Adapter
from dato.unet.cache import Cache


def run_observed(forward: Callable[[], Any], model: Adapter, cache: Cache, arguments: Mapping[str, Any]) -> Any:
    """Return what a forward returns, and store in the cache what it computed.

    Nothing is stored if a rung did not run exactly once, as where a forward divides the image into tiles.

    Args:
        forward: Runs the call.
        model: The UNet's adapter.
        cache: The cache.
        arguments: The arguments of the call, by name; residuals of ControlNets and adapters belong to skips.
    """
    seen: dict[tuple[str, int], Tensor] = {}
    runs: Counter[tuple[str, int]] = Counter()

    def watch(key: tuple[str, int]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            runs[key] += 1
            seen[key] = output if isinstance(output, Tensor) else output[0]

        return hook

    with ExitStack() as stack:
        for index in range(len(model.rungs)):
            for way, module in zip(("down", "up"), model.ends(index), strict=True):
                stack.callback(module.register_forward_hook(watch((way, index))).remove)
        result = forward()
    if len(runs) != 2 * len(model.rungs) or set(runs.values()) != {1}:
        cache.clear()
        return result
    for index in range(1, len(model.rungs)):
        skip = model.skip_made(index - 1, seen["down", index - 1], arguments)
        cache.store(index - 1, seen["up", index], skip)
    last = model.feature_made(seen["up", 0], arguments) if cache.last_feature else model.prediction_of(result)
    cache.store(LAST, last)
    return result
