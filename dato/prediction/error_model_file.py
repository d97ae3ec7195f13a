"""Write an error model as JSON, and read it. Arrays are base64 of little-endian float16, with their scale."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from dato.errors import DatoError
from dato.prediction.error_model import Sensitivity
from dato.pruning import Pruning

FORMAT = "dato.sensitivity"
VERSION = 1


def sensitivity_to_dict(model: Sensitivity) -> dict[str, Any]:
    """Return plain JSON values."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "rungs": model.rungs,
        "times": list(model.times),
        "weights": model.weights.tolist(),
        "feedback": model.feedback.tolist(),
        "final": model.final.tolist(),
        "ages": list(model.ages),
        "predictions": _pack(model.predictions),
        "partial": [[depth, _pack(array)] for depth, array in model.partial.items()],
        "pruned": [[depth, ratio, _pack(array)] for (depth, ratio), array in model.pruned.items()],
        "pruning": model.pruning.to_dict(),
        "unet_calls": model.unet_calls,
        "offset": None if np.ndim(model.offset) == 0 else model.offset.tolist(),
        "images": model.images,
        "latents": None if model.latents is None else model.latents.tolist(),
        "reactions": None if model.reactions is None else model.reactions.tolist(),
    }


def sensitivity_from_dict(data: Any) -> Sensitivity:
    """Make a model of what `sensitivity_to_dict` returned; it is the same up to rounding.

    Raises:
        DatoError: if something is missing, or a value does not fit.
    """
    try:
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise ValueError("format or version is another")
        model = Sensitivity(
            rungs=int(data["rungs"]),
            times=tuple(map(float, data["times"])),
            weights=np.array(data["weights"], dtype=float),
            feedback=np.array(data["feedback"], dtype=float),
            final=np.array(data["final"], dtype=float),
            ages=tuple(map(int, data["ages"])),
            predictions=_unpack(data["predictions"]),
            partial={int(depth): _unpack(packed) for depth, packed in data["partial"]},
            pruned={(int(depth), float(ratio)): _unpack(packed) for depth, ratio, packed in data["pruned"]},
            pruning=Pruning.from_dict(data["pruning"]),
            unet_calls=float(data["unet_calls"]),
            offset=0.0 if data["offset"] is None else np.array(data["offset"], dtype=float),
            # Models of earlier versions have none of these.
            images=int(data.get("images", 1)),
            latents=None if data.get("latents") is None else np.array(data["latents"], dtype=float),
            reactions=None if data.get("reactions") is None else np.array(data["reactions"], dtype=float),
        )
        _check(model)
        return model
    except (KeyError, TypeError, ValueError) as error:
        raise DatoError(f"not a sensitivity model: {type(error).__name__}: {error}") from None


def _check(model: Sensitivity) -> None:
    """Raise ValueError if a model's values do not fit each other."""
    calls, ages, k = len(model.times), model.ages, model.predictions.shape[-1]
    shapes = [
        (model.weights, (calls,)),
        (model.feedback, (calls,)),
        (model.predictions, (calls, k)),
        (model.final, (k,)),
        *((array, (calls, len(ages), k)) for array in model.partial.values()),
        *((array, (calls, k)) for array in model.pruned.values()),
    ]
    if np.ndim(model.offset):
        shapes.append((model.offset, (k,)))
    if (model.latents is None) != (model.reactions is None):
        raise ValueError("it has one of `latents` and `reactions`, and not the other")
    if model.latents is not None:
        shapes += [(model.latents, (calls + 1, calls)), (model.reactions, (calls, 4))]
    if model.images < 1 or k % model.images:
        raise ValueError("vectors do not have one block for each image")
    if not calls or any(array.shape != shape or not np.isfinite(array).all() for array, shape in shapes):
        raise ValueError("an array has a wrong shape or is not finite")
    if list(ages) != sorted(set(ages)) or min(ages, default=0) < 1:
        raise ValueError("ages must ascend from 1 or more")
    if not all(0 < depth < model.rungs for depth in model.partial):
        raise ValueError("a depth is out of range")


def _pack(array: np.ndarray) -> dict[str, Any]:
    scale = float(np.abs(array).max(initial=0.0)) or 1.0
    values = (array / scale).astype("<f2")
    return {"shape": list(array.shape), "scale": scale, "data": base64.b64encode(values.tobytes()).decode()}


def _unpack(packed: dict[str, Any]) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(packed["data"], validate=True), dtype="<f2")
    return values.reshape(packed["shape"]).astype(np.float32) * np.float32(packed["scale"])
