"""A result as a PNG file that says how it was made."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dato
from dato.demo.job import Job, Result, Shot
from dato.demo.usage import Loading
from dato.hub.paths import without_paths
from dato.utils.images import png
from dato.utils.names import file_name

if TYPE_CHECKING:
    from dato.generation.sampling import Sampling

KEYWORD = "dato"  # of the settings in the file: JSON
SCHEDULE = ("rungs", "depths", "ratios", "orders", "forecast", "pruning")


def result_png(job: Job, result: Result, stock: Shot | None, loading: Loading, sampling: Sampling) -> bytes:
    """Return the PNG of a result, with its settings and what was measured under the keyword "dato".

    Paths of this machine are cut to their last part, because pictures are passed on.

    Args:
        job: What was asked for.
        result: What a choice gave.
        stock: Stock's image and time, if it is there.
        loading: How the pipeline was loaded.
        sampling: How stock's image was generated.
    """
    schedule = result.schedule.to_dict()
    loading = replace(loading, sampler=result.choice.own_sampler or loading.sampler)
    said: dict[str, Any] = _settings(job, result.shot, loading, sampling) | {
        "chosen": result.choice.name,
        "options": list(result.choice.options),
        "schedule": {key: value for key, value in schedule.items() if key in SCHEDULE},
        "psnr": result.psnr,
        "stock_ms": None if stock is None else stock.latency_ms,
        "speedup": None if stock is None else stock.latency_ms / result.shot.latency_ms,
    }
    return _png(result.shot, said)


def stock_png(job: Job, stock: Shot, loading: Loading, sampling: Sampling) -> bytes:
    """Return the PNG of stock's image, with its settings and its time. The arguments are those of `result_png`."""
    return _png(stock, _settings(job, stock, loading, sampling) | {"chosen": "stock"})


def name_of(job: Job, chosen: str) -> str:
    """Return the file's name: "rose-on-a-white-background-0-5.22x.png"."""
    return f"{file_name(job.prompt)}-{job.seed}-{chosen.replace(' ', '-')}.png"


def _settings(job: Job, shot: Shot, loading: Loading, sampling: Sampling) -> dict[str, Any]:
    return {
        "prompt": job.prompt,
        "seed": job.seed,
        "model": loading.model,
        "dtype": loading.dtype,
        "device": loading.device,
        "sampler": loading.sampler,
        "steps": shot.steps,
        "guidance_scale": sampling.guidance_scale,
        "height": shot.image.shape[-2],
        "width": shot.image.shape[-1],
        "latency_ms": shot.latency_ms,
    }


def _png(shot: Shot, said: dict[str, Any]) -> bytes:
    prompt = said.pop("prompt")
    said = {"prompt": prompt, **without_paths(said)}
    return png(shot.image, {"Software": f"dato {dato.__version__}", KEYWORD: json.dumps(said, ensure_ascii=False)})
