"""Copy a model without its weights: onto PyTorch's meta device, which has shapes and no numbers."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn

# What other code hangs on a module: it does not belong to the model's shape.
_HUNG = ("forward", "_old_forward", "_hf_hook", "_diffusers_hook", "_compiled_call_impl")


def shape_twin(module: nn.Module) -> nn.Module:
    """Return a copy of a model on the meta device, without hooks and forwards of others.

    Its attention layers compute attention as two matrix products, because fused kernels of other packages do not run on
    that device.
    """
    twin = copy.copy(module)
    attributes = {
        name: OrderedDict() if name.endswith("_hooks") else value
        for name, value in module.__dict__.items()
        if name not in _HUNG and not name.startswith("_dato_")
    }
    attributes["_parameters"] = {name: _empty(weight, nn.Parameter) for name, weight in module._parameters.items()}
    attributes["_buffers"] = {name: _empty(buffer, Tensor) for name, buffer in module._buffers.items()}
    attributes["_modules"] = {name: None if m is None else shape_twin(m) for name, m in module._modules.items()}
    if isinstance(attributes.get("dtype"), torch.dtype):
        attributes["dtype"] = torch.float32
    twin.__dict__ = attributes
    if all(hasattr(twin, name) for name in ("to_q", "to_k", "to_v", "to_out", "heads")):
        twin.forward = lambda x, context=None, **_: _attend(twin, x, context)
    return twin


def _empty(tensor: Tensor | None, kind: type[Tensor]) -> Tensor | None:
    if tensor is None:
        return None
    # In one precision, so that inputs of another one do not matter.
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    empty = torch.empty(tensor.shape, dtype=dtype, device="meta")
    return nn.Parameter(empty, requires_grad=False) if kind is nn.Parameter else empty


def _attend(layer: nn.Module, x: Tensor, context: Tensor | None) -> Tensor:
    """Attend from x (B, n, C) to the context (B, m, D); None: to x."""
    context = x if context is None else context
    q, k, v = layer.to_q(x), layer.to_k(context), layer.to_v(context)
    q, k, v = (part.unflatten(2, (layer.heads, -1)).transpose(1, 2) for part in (q, k, v))
    out = (q @ k.transpose(2, 3)).softmax(dim=-1) @ v
    return layer.to_out(out.transpose(1, 2).flatten(2))
