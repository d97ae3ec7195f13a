"""Run a whole call through a forward that is not diffusers' own, and fill the cache from what its modules compute.

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
from dato.unet.cache import Cache
from dato.unet.diffusers_unet import DiffusersUNet, residuals_of


def run_observed(forward: Callable[[], Any], model: DiffusersUNet, cache: Cache, arguments: Mapping[str, Any]) -> Any:
    """Return what a forward returns, and store in the cache what it computed.

    Nothing is stored if a rung did not run exactly once, as where a forward divides the image into tiles.

    Args:
        forward: Runs the call.
        model: The UNet.
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
        for index, rung in enumerate(model.rungs):
            ends = {"down": rung.down_attention or rung.down, "up": rung.upsampler or rung.up_attention or rung.up}
            for way, module in ends.items():
                stack.callback(module.register_forward_hook(watch((way, index))).remove)
        result = forward()
    if len(runs) != 2 * len(model.rungs) or set(runs.values()) != {1}:
        cache.clear()
        return result
    prediction = result[0] if isinstance(result, tuple) else result.sample
    control, adapter = residuals_of(arguments)
    for index in range(1, len(model.rungs)):
        rung, skip = model.rungs[index - 1], seen["down", index - 1]
        if rung.adapter is not None and rung.adapter < len(adapter):
            skip = skip + adapter[rung.adapter]
        cache.store(index - 1, seen["up", index], skip if control is None else skip + control[index - 1])
    cache.store(LAST, seen["up", 0] if cache.last_feature else prediction)
    return result
