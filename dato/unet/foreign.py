"""Find what other code has hung on a UNet or its blocks: hooks, a forward of the instance's own, another class's.

A ladder runs the parts of a block without the block's own forward. What hangs on that forward would be dropped without
a word. So such a block runs whole, through its own forward, and a call that would run a part of it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn

from dato.errors import DatoError

_HOOKS = {
    "_forward_hooks": "a forward hook",
    "_forward_pre_hooks": "a forward pre-hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}
# Attributes of processors that collect attention maps: LEdits++ and attend-and-excite; prompt-to-prompt.
_READERS = ("attnstore", "attention_store", "controller")
_COMPVIS = "UNetModel"  # the class of CompVis' UNet, whatever the package
# diffusers' own hooks that a ladder replaces or that change no result.
_HARMLESS = ("group_offloading", "lazy_prefetch_group_offloading", "layer_execution_tracker", "layerwise_casting")


def carried(block: nn.Module) -> str | None:
    """Return what a block carries of others' code, for a message; None if nothing."""
    for name, what in _HOOKS.items():
        if getattr(block, name, None):
            return what
    attributes = block.__dict__
    registry = getattr(attributes.get("_diffusers_hook"), "hooks", {})
    others = [name for name in registry if name not in _HARMLESS]
    if others:
        return f"diffusers' hook {others[0]!r}"
    forward = attributes.get("_old_forward" if "_hf_hook" in attributes else "forward")
    if forward is not None and not registry and not is_own(forward, block):
        return f"another forward ({name_of(forward)})"
    if "_hf_hook" in attributes and not type(attributes["_hf_hook"]).__module__.startswith("accelerate."):
        return "a hook of another kind than accelerate's"
    return None if is_own(type(block).forward, block) else f"the forward of a {type(block).__name__}"


def foreign_forward(module: nn.Module, before: Any) -> Callable[..., Any] | None:
    """Return the forward of a module that is not the own one of diffusers or CompVis' code; None if it is.

    Args:
        module: The module.
        before: What stood in its place before the patch; None: its class's forward.
    """
    if before is not None and not is_own(before, module):
        return before
    forward = type(module).forward
    return None if is_own(forward, module) else forward.__get__(module)


def is_own(forward: Any, module: nn.Module) -> bool:
    """Return whether a forward is the one of a module's class, or of one it inherits, in diffusers or CompVis' code."""
    if isinstance(forward, partial):
        return False
    function = getattr(forward, "__func__", forward)
    if getattr(forward, "__self__", module) is not module:
        return False
    code = getattr(function, "__code__", None)
    for base in type(module).__mro__:
        own = base.__dict__.get("forward")
        if own is not None and (base.__module__.startswith("diffusers.") or base.__name__ == _COMPVIS):
            defined_there = getattr(own, "__module__", None) == base.__module__
            return defined_there and code is not None and code is getattr(own, "__code__", None)
    return False


def refuse_rivals(unet: nn.Module, *, pruning: bool) -> None:
    """Raise DatoError if another method that caches is enabled, or one that merges tokens beside our own pruning."""
    forward = unet.__dict__.get("forward")
    if forward is not None and name_of(forward).startswith("DeepCache."):
        raise DatoError("DeepCache is enabled on this UNet, and both would cache; call helper.disable() first")
    if pruning and any(type(module).__name__ == "ToMeBlock" for module in unet.modules()):
        raise DatoError("ToMeSD is enabled on this UNet, and both would drop tokens; call tomesd.remove_patch first")


def refuse_readers(unet: nn.Module) -> None:
    """Raise DatoError if attention processors read every attention layer, which calls that are not whole do not run."""
    for processor in getattr(unet, "attn_processors", {}).values():
        found = next((name for name in _READERS if getattr(processor, name, None) is not None), None)
        if found is not None:
            raise DatoError(
                f"a {type(processor).__name__} reads every attention layer in every call (`{found}`), and calls that "
                "are not whole do not run them all; use whole calls, or remove the patch for this run"
            )


def name_of(forward: Any) -> str:
    """Return what messages call a forward: its module and name."""
    function = getattr(forward, "__func__", getattr(forward, "func", forward))
    code = getattr(function, "__code__", None)
    if code is None:
        return f"{type(function).__module__}.{type(function).__qualname__}"
    # `functools.wraps` gives a wrapper the name of what it wraps, but not its code.
    return f"{function.__globals__.get('__name__', '?')}.{getattr(code, 'co_qualname', code.co_name)}"


def check_depths(blocks: Mapping[str, tuple[nn.Module, Iterable[int]]], depths: Iterable[int]) -> None:
    """Raise DatoError if a call of one of these depths would run only a part of a block that carries others' code.

    Args:
        blocks: The block and its rungs, by name.
        depths: The depths.
    """
    for name, (block, rungs) in blocks.items():
        rungs = list(rungs)
        split = [depth for depth in set(depths) if min(rungs) < depth <= max(rungs)]
        if split and (what := carried(block)) is not None:
            allowed = (
                f"depths up to {min(rungs)} or above {max(rungs)}" if min(rungs) else f"depth 0, or above {max(rungs)}"
            )
            raise DatoError(
                f"{name} carries {what}, which a call at depth {min(split)} would skip: it runs only a part of that "
                f"block. Use {allowed}, or remove it"
            )
