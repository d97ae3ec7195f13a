"""Generate images: load a pipeline and prompts, and start every schedule from the same noise.

`load_pipeline` takes a folder, a hub id, a file, the embedded model, or a published configuration with random weights.
`generate` makes one image for each prompt and times it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dato.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from dato.generation.guidance import guidance_of, usual_guidance
    from dato.generation.model_configs import RANDOM_MODELS
    from dato.generation.pipelines import load_pipeline
    from dato.generation.prompts import coco_captions, imagenet_prompts, read_prompts
    from dato.generation.random_models import random_pipeline
    from dato.generation.sampling import Generated, Sampling, generate

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Generated": "dato.generation.sampling",
        "RANDOM_MODELS": "dato.generation.model_configs",
        "Sampling": "dato.generation.sampling",
        "coco_captions": "dato.generation.prompts",
        "generate": "dato.generation.sampling",
        "guidance_of": "dato.generation.guidance",
        "imagenet_prompts": "dato.generation.prompts",
        "load_pipeline": "dato.generation.pipelines",
        "random_pipeline": "dato.generation.random_models",
        "read_prompts": "dato.generation.prompts",
        "usual_guidance": "dato.generation.guidance",
    },
)
