"""Load a pipeline and say how stock runs, as a front was searched unless the user says otherwise.

`generate` and `demo` share this, so that the same settings give the same images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dato.cli import options as opt
from dato.cli.console import err, quiet_libraries
from dato.front import Front
from dato.schedule import Schedule

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

    from dato.generation.sampling import Sampling


@dataclass(frozen=True)
class FrontRun:
    """A loaded pipeline, and how it was loaded.

    Attributes:
        pipe: The pipeline, with the sampler of the run.
        stock: How stock generates one image. A point with its own number of steps runs those instead.
        model: The model's name.
        config: As in `load_pipeline`.
        variant: As in `load_pipeline`.
        scheduler: The sampler's name; None: the model's own.
        device: Where it runs.
        dtype: The precision.
    """

    pipe: DiffusionPipeline
    stock: Sampling
    model: str
    config: str | None
    variant: str | None
    scheduler: str | None
    device: torch.device
    dtype: torch.dtype


def load_for(
    strategy: Front | Schedule | None,
    *,
    model: str | None,
    config: str | None,
    variant: str | None,
    steps: int | None,
    scheduler: str | None,
    guidance_scale: float | None,
    height: int | None,
    width: int | None,
    device: str,
    dtype: str | None,
    seed: int = 0,
) -> FrontRun:
    """Load the pipeline for a front, a schedule, or none. The arguments are the command's options; None: the front's.

    Raises:
        DatoError: if the model cannot be loaded, or an option is wrong.
    """
    from dato.generation.guidance import usual_guidance
    from dato.generation.pipelines import load_pipeline
    from dato.generation.sampling import Sampling

    quiet_libraries()
    conditions = strategy.conditions if isinstance(strategy, Front) else {}
    where = opt.device_of(device)
    name, loading, of_model = opt.model_of(model, config, variant, conditions)
    with err.status(f"Loading {name}"):
        kind = opt.dtype_of(dtype, where, conditions.get("dtype", "auto"))
        sampler = scheduler or conditions.get("scheduler_name")
        pipe = load_pipeline(name, device=where, dtype=kind, scheduler=sampler, **loading)
    stock = Sampling(
        steps or conditions.get("steps", 50),
        guidance_scale or conditions.get("guidance_scale") or usual_guidance(name),
        height or of_model.get("height"),
        width or of_model.get("width"),
        seed,
        batch_size=1,
    )
    return FrontRun(pipe, stock, name, loading["config"], loading["variant"], sampler, where, kind)
