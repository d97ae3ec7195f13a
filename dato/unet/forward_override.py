"""Override a module's forward, and restore it, while other libraries override it too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import torch
from torch import nn

from dato.errors import DatoError
from dato.unet.foreign import foreign_forward

_SLOT = "_dato_override"  # of a module whose forward is overridden


class Overridden:
    """What stands in the place of a module's forward. It looks like a bound method of the module.

    accelerate takes `forward.__func__` apart and binds it anew, so what runs is found at the module. Copies and pickles
    of the module run their own override.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.__self__ = module

    @staticmethod
    def __func__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        override = module.__dict__.get(_SLOT)
        if override is None:
            return type(module).forward(module, *args, **kwargs)
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            raise DatoError(
                "a patched module cannot be exported or traced, because its calls depend on those before them; call "
                "dato.remove_patch first"
            )
        return override.run(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__func__(self.__self__, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(type(self.__self__).forward.__get__(self.__self__))

    @property
    def __code__(self) -> CodeType:  # torch.export looks for the arguments' names there
        return type(self.__self__).forward.__code__

    @property
    def __name__(self) -> str:
        return "forward"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Overridden) and other.__self__ is self.__self__

    def __hash__(self) -> int:
        return id(self.__self__)


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
        run: What runs instead.
        compiled: What `module.compile()` made of the module's call. It is put aside while the override is attached.
    """

    def __init__(self, module: nn.Module, forward: Callable[..., Any], wrapper: nn.Module | None = None) -> None:
        self.module, self.run, self._wrapper = module, forward, wrapper
        self._forward = Overridden(module)
        self._replaced: tuple[dict[str, Any], str, Any] | None = None  # attributes, name, and what was there before
        self._original: Any = None  # what was there before any override
        self._under: ForwardOverride | None = None  # the override that was there before, as of a shared ControlNet
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

    @property
    def foreign(self) -> Callable[..., Any] | None:
        """The forward that others gave to the module or its class; None if it is diffusers' own."""
        before = None if self._replaced is None else self._replaced[2]
        return foreign_forward(self.module, before)

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
        before, self._under = target.get(name), attributes.get(_SLOT)
        stacked = isinstance(before, Overridden)
        self._original = (None if self._under is None else self._under._original) if stacked else before
        self._replaced = (target, name, self._original)
        target[name] = self._forward
        attributes[_SLOT] = self
        # `torch.compile` would trace into the override; what runs there is compiled in pieces (`dato.unet.compiled`).
        self.compiled = attributes.pop("_compiled_call_impl", None)
        # accelerate's hooks on a wrapper keep its forward in the module that it wraps. Then the override is inside.
        if self._wrapper is not None and (name == "forward" or "forward" in attributes):
            self._wrapper_forward, self._wrapper.forward = self._wrapper.forward, self.module.__call__

    def detach(self) -> None:
        """Restore the forward. A forward of another library that calls the override stays, and calls stock instead."""
        (target, name, before), self._replaced = self._replaced, None
        if self._stays():
            return
        for attributes, slot in self._slots():  # offloading may have come or gone since, and moved the override
            if attributes.get(slot) != self._forward:
                continue
            if attributes is target and slot == name and before is not None:
                attributes[slot] = before
            elif attributes is self.module.__dict__ and slot == "forward":
                del attributes[slot]
            else:
                attributes[slot] = self.stock
        if self.compiled is not None and self.module._compiled_call_impl is None:
            self.module._compiled_call_impl = self.compiled
        self.compiled = None
        self._restore_wrapper(before)

    def _stays(self) -> bool:
        """Leave the module to another override of it that is still attached. Return whether there is one."""
        attributes = self.module.__dict__
        if attributes.get(_SLOT) is not self:
            return attributes.get(_SLOT) is not None
        under = self._under
        while under is not None and not under.attached:
            under = under._under
        if under is None:
            del attributes[_SLOT]
        else:
            attributes[_SLOT] = under
        return under is not None

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
