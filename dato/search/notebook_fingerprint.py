"""Digests of a notebook's pipeline and arguments. A search resumes a journal only if they are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL.Image import Image
from torch import Tensor, nn

SAMPLE = 16  # values of each weight


def pipeline_digest(pipe: DiffusionPipeline) -> str:
    """Return a SHA-256 digest of a pipeline: a sample of its weights, its adapters' scales, its sampler's settings.

    A LoRA or a ControlNet that is loaded, scaled or removed changes it, and so does another sampler.
    """
    digest = hashlib.sha256()
    for part in _parts(pipe):
        digest.update(part)
    return digest.hexdigest()


def _parts(pipe: DiffusionPipeline) -> Iterator[bytes]:
    sampler = {name: str(value) for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    yield json.dumps([type(pipe).__name__, type(pipe.scheduler).__name__, sampler], sort_keys=True).encode()
    for name, component in sorted(pipe.components.items()):
        if not isinstance(component, nn.Module) or name == "safety_checker":
            continue
        for key, weight in component.named_parameters():
            yield f"{name}.{key} {tuple(weight.shape)}".encode()
            if weight.device.type != "meta":  # offloaded weights have no values here
                yield _sample(weight.detach())
        for key, module in component.named_modules():
            if hasattr(module, "lora_A"):
                state = [module.scaling, list(module.active_adapters), module.disable_adapters]
                yield f"{name}.{key} {state}".encode()


def _sample(weight: Tensor) -> bytes:
    values = weight.flatten()
    return values[:: max(1, len(values) // SAMPLE)][:SAMPLE].float().cpu().numpy().tobytes()


def described(value: Any) -> Any:
    """Return a value as JSON has it: images and tensors by a digest of what they hold, other objects by their type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): described(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(entry) for entry in value]
    if isinstance(value, Image):
        value = np.asarray(value)
    if isinstance(value, Tensor):
        value = value.detach().to("cpu", torch.float32).numpy()
    if isinstance(value, np.ndarray):
        return f"{value.shape} sha256 {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    return type(value).__name__
