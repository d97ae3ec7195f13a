"""Measure how an error in one prediction of the UNet changes every later latent, through the sampler.

Samplers are (nearly) linear in the predictions and elementwise. So a few numbers and no UNet are enough, for any
sampler, also for multistep samplers with inner state. The scheduler runs on recorded predictions as they are, and once
more for each call with that call's prediction changed a little.

The network reacts too: an error in the latent changes every later prediction, and this usually corrects part of the
error. `effective_weights` includes that.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import SchedulerMixin
from torch import Tensor

VALUES = 64  # of a latent; these are enough also for samplers that clip
_SMALL = 1e-3  # a change, as a share of a prediction's root mean square


class Response(NamedTuple):
    """A sampler's response in one number of steps.

    Attributes:
        latents: (calls + 1, calls) the change of a latent for an error of 1 in one call's prediction, without the
            reaction of the network. Row t is the latent that call t begins from, and the last row is the final latent.
        scales: (calls,) the factor by which the sampler multiplies a latent before the network gets it.
        times: (calls,) timesteps.
    """

    latents: np.ndarray
    scales: np.ndarray
    times: tuple[float, ...]

    @property
    def of_inputs(self) -> np.ndarray:
        """(calls + 1, calls) as `latents`, but of the latents as the network gets them; the last row is the final."""
        return self.latents * np.append(self.scales, 1.0)[:, None]


def sampler_response(
    scheduler: SchedulerMixin, steps: int, latents: Tensor | None = None, predictions: Tensor | None = None
) -> Response:
    """Return a sampler's response to errors in the predictions that it gets.

    Args:
        scheduler: Any scheduler of diffusers; a copy of it runs.
        steps: The number of steps of the generation.
        latents: (n,) values of the initial latent; None: zeros, which are enough for samplers that clip nothing.
        predictions: (calls, n) the guided predictions' values of the same positions; None: zeros.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    calls = len(scheduler.timesteps)
    n = VALUES if latents is None else len(latents)
    start = torch.zeros(n) if latents is None else latents.detach().cpu()
    path = torch.zeros(calls, n) if predictions is None else predictions.detach().cpu()
    start, path = start.double(), path.double()
    size = float(path.square().mean().sqrt()) or 1.0
    change = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * size * _SMALL

    def run(change: Tensor) -> tuple[Tensor, list[float]]:
        # One sample for each call whose prediction is changed.
        sampler, x = copy.deepcopy(scheduler), start.expand(calls, n)[:, None, None, :].clone()
        options: dict[str, Any] = {}
        if "generator" in inspect.signature(sampler.step).parameters:
            options["generator"] = torch.Generator().manual_seed(0)
        latents, scales = [x], []
        for call, time in enumerate(sampler.timesteps):
            scaled = sampler.scale_model_input(torch.ones_like(x), time)
            scales.append(float(scaled.flatten()[0]))
            prediction = path[call].expand(calls, n).clone()
            prediction[call] += change
            x = sampler.step(prediction[:, None, None, :], time, x, **options).prev_sample
            latents.append(x)
        return torch.stack(latents).view(calls + 1, calls, n), scales

    (changed, scales), (plain, _) = run(change), run(torch.zeros(n, dtype=torch.float64))
    response = ((changed - plain) @ change) / (change @ change)
    times = tuple(float(t) for t in scheduler.timesteps.tolist())
    return Response(response.numpy(), np.array(scales), times)


def effective_weights(response: np.ndarray, feedback: np.ndarray) -> np.ndarray:
    """Return the change of the final latent for an error of 1 at one call, (calls,), with the network's reactions.

    Args:
        response: (calls + 1, calls) `Response.latents`.
        feedback: (calls,) the change of a prediction for a change of 1 in the sampler's latent.
    """
    calls = response.shape[1]
    errors = np.eye(calls)  # (call, where the error began)
    for call in range(1, calls):
        errors[call] += feedback[call] * (response[call, :call] @ errors[:call])
    return response[calls] @ errors
