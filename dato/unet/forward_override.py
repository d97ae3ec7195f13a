"""Taking over a module's forward, and giving it back as it was, beside others who do the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn


class Takeover:
    """One module whose `forward` is ours while it is attached.

    Offloading wraps a module's forward too, to bring the weights to the device first. Ours goes inside of that, so that
    they are there when it runs: with accelerate's hooks into `_old_forward`, with diffusers' hooks (group offloading)
    to the innermost of the chain, else into the instance's own `forward`.

    Args:
        module: Whose forward.
        forward: What runs instead; a bound method.
        wrapper: What `torch.compile` made of the module, if that is what others call.

    Attributes:
        compiled: What `module.compile()` made of its call, which rests while it is attached.
    """

    def __init__(self, module: nn.Module, forward: Callable[..., Any], wrapper: nn.Module | None = None) -> None:
        self.module, self._forward, self._wrapper = module, forward, wrapper
        self._taken: tuple[dict[str, Any], str, Any] | None = None  # where, under which name, and what was there
        self.compiled: Any = None
        self._wrapped: Any = None

    @property
    def attached(self) -> bool:
        """Whether it is taken over."""
        return self._taken is not None

    @property
    def stock(self) -> Callable[..., Any]:
        """The forward of the module's class."""
        return type(self.module).forward.__get__(self.module)

    def attach(self) -> None:
        """Take the forward over."""
        own = self.module.__dict__
        chain = getattr(own.get("_diffusers_hook"), "_fn_refs", None)
        if chain:
            innermost = chain[0].__dict__
            where, name = innermost, "forward" if innermost.get("original_forward") is None else "original_forward"
        else:
            where, name = own, "_old_forward" if "_hf_hook" in own and "_old_forward" in own else "forward"
        self._taken = (where, name, where.get(name))
        where[name] = self._forward
        # `torch.compile` would trace into us; what we run is compiled piece by piece (see `dato.unet.compiled`).
        self.compiled = own.pop("_compiled_call_impl", None)
        # accelerate's hooks on a wrapper keep its forward in the module it wraps, and then ours is inside of them.
        if self._wrapper is not None and (name == "forward" or "forward" in own):
            self._wrapped, self._wrapper.forward = self._wrapper.forward, self.module.__call__

    def detach(self) -> None:
        """Give the forward back. Where somebody else's forward calls ours, that one stays."""
        where, name, before = self._taken
        for place, slot in self._places():  # offloading may have come or gone since, and moved ours
            if place.get(slot) != self._forward:
                continue
            if place is where and slot == name and _stands(before):
                place[slot] = before
            elif place is self.module.__dict__ and slot == "forward":
                del place[slot]
            else:
                place[slot] = self.stock
        self._taken = None
        if self.compiled is not None and self.module._compiled_call_impl is None:
            self.module._compiled_call_impl = self.compiled
        self.compiled = None
        self._give_back_wrapper(before)

    def _give_back_wrapper(self, before: Any) -> None:
        wrapper, own, wrapped = self._wrapper, self.module.__dict__, self._wrapped
        self._wrapped = None
        if wrapper is None:
            return
        if wrapper.forward == self._forward:  # a hook that was around it has gone
            wrapper.forward = before
        elif wrapped is not None and wrapper.forward == self.module.__call__:
            wrapper.forward = wrapped
        elif wrapped is not None and own.get("_old_forward") == self.module.__call__:  # a hook has come around it
            own["_old_forward"] = wrapped

    def _places(self) -> Iterator[tuple[dict[str, Any], str]]:
        own = self.module.__dict__
        yield own, "forward"
        yield own, "_old_forward"
        for link in getattr(own.get("_diffusers_hook"), "_fn_refs", ()):
            yield link.__dict__, "forward"
            yield link.__dict__, "original_forward"


def _stands(before: Any) -> bool:
    """Whether what was there may come back: something, and no forward of ours that was taken off meanwhile."""
    takeover = getattr(getattr(before, "__self__", None), "_takeover", None)
    return before is not None and (takeover is None or takeover.attached)
