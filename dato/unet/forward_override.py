"""Override a module's forward, and restore it, while other libraries override it too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn


class ForwardOverride:
    """Overrides the `forward` of one module while it is attached.

    Offloading wraps a module's forward too, to bring the weights to the device first. The override goes inside of
    that wrapper, so that the weights are there when it runs: into `_old_forward` beside accelerate's hooks, to the
    innermost forward of the chain beside diffusers' hooks (group offloading), else into the instance's own `forward`.

    Args:
        module: The module.
        forward: What runs instead; a bound method.
        wrapper: What `torch.compile` made of the module, if others call that.

    Attributes:
        compiled: What `module.compile()` made of the module's call. It is put aside while the override is attached.
    """

    def __init__(self, module: nn.Module, forward: Callable[..., Any], wrapper: nn.Module | None = None) -> None:
        self.module, self._forward, self._wrapper = module, forward, wrapper
        self._replaced: tuple[dict[str, Any], str, Any] | None = None  # attributes, name, and what was there before
        self.compiled: Any = None
        self._wrapper_forward: Any = None

    @property
    def attached(self) -> bool:
        """Whether the forward is overridden now."""
        return self._replaced is not None

    @property
    def stock(self) -> Callable[..., Any]:
        """The forward of the module's class."""
        return type(self.module).forward.__get__(self.module)

    def attach(self) -> None:
        """Override the forward."""
        attributes = self.module.__dict__
        chain = getattr(attributes.get("_diffusers_hook"), "_fn_refs", None)
        if chain:
            target = chain[0].__dict__
            name = "forward" if target.get("original_forward") is None else "original_forward"
        else:
            target = attributes
            name = "_old_forward" if "_hf_hook" in attributes and "_old_forward" in attributes else "forward"
        self._replaced = (target, name, target.get(name))
        target[name] = self._forward
        # `torch.compile` would trace into the override; what runs there is compiled in pieces (`dato.unet.compiled`).
        self.compiled = attributes.pop("_compiled_call_impl", None)
        # accelerate's hooks on a wrapper keep its forward in the module that it wraps. Then the override is inside.
        if self._wrapper is not None and (name == "forward" or "forward" in attributes):
            self._wrapper_forward, self._wrapper.forward = self._wrapper.forward, self.module.__call__

    def detach(self) -> None:
        """Restore the forward. A forward of another library that calls the override stays, and calls stock instead."""
        target, name, before = self._replaced
        for attributes, slot in self._slots():  # offloading may have come or gone since, and moved the override
            if attributes.get(slot) != self._forward:
                continue
            if attributes is target and slot == name and _may_come_back(before):
                attributes[slot] = before
            elif attributes is self.module.__dict__ and slot == "forward":
                del attributes[slot]
            else:
                attributes[slot] = self.stock
        self._replaced = None
        if self.compiled is not None and self.module._compiled_call_impl is None:
            self.module._compiled_call_impl = self.compiled
        self.compiled = None
        self._restore_wrapper(before)

    def _restore_wrapper(self, before: Any) -> None:
        wrapper, attributes, wrapper_forward = self._wrapper, self.module.__dict__, self._wrapper_forward
        self._wrapper_forward = None
        if wrapper is None:
            return
        if wrapper.forward == self._forward:  # a hook that was around it has gone
            wrapper.forward = before
        elif wrapper_forward is not None and wrapper.forward == self.module.__call__:
            wrapper.forward = wrapper_forward
        elif wrapper_forward is not None and attributes.get("_old_forward") == self.module.__call__:
            attributes["_old_forward"] = wrapper_forward  # a hook has come around it

    def _slots(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield each place where a forward may be kept: the attributes, and the name in them."""
        attributes = self.module.__dict__
        yield attributes, "forward"
        yield attributes, "_old_forward"
        for link in getattr(attributes.get("_diffusers_hook"), "_fn_refs", ()):
            yield link.__dict__, "forward"
            yield link.__dict__, "original_forward"


def _may_come_back(before: Any) -> bool:
    """Return whether a forward may be restored: not if there was none, or if it is a detached override's."""
    override = getattr(getattr(before, "__self__", None), "_override", None)
    return before is not None and (override is None or override.attached)
