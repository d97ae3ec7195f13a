"""Load pipelines and prompts, and generate images so that every schedule starts from the same noise."""

from dato.generation.pipelines import load_pipeline
from dato.generation.prompts import read_prompts
from dato.generation.sampling import Generated, Sampling, generate

__all__ = ["Generated", "Sampling", "generate", "load_pipeline", "read_prompts"]
