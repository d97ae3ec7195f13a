"""How to make a result of the page again: lines of Python, and a command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dato.demo.choices import Choice
from dato.emoji_sd import EMBEDDED

if TYPE_CHECKING:
    from dato.generation.sampling import Sampling


@dataclass(frozen=True)
class Loading:
    """How the page's pipeline was loaded.

    Attributes:
        model: As `dato.load_pipeline` takes it, like the next four.
        scheduler: The sampler's name; None: the model's own.
        sampler: What the page calls the sampler that runs.
        device: Such as "cpu".
        dtype: Such as "float32".
        config: None, except for a model in one file.
        variant: None: the weights of no variant.
        given: The options that the user typed, apart from the front: {"--steps": "20"}. A command of a point needs
            no others, because a front says the rest.
    """

    model: str = EMBEDDED
    scheduler: str | None = None
    sampler: str = ""
    device: str = "cpu"
    dtype: str = "float32"
    config: str | None = None
    variant: str | None = None
    given: Mapping[str, str] = field(default_factory=dict)

    def python(self) -> str:
        """Return the call that loads the pipeline."""
        parts = {name: getattr(self, name) for name in ("config", "variant", "scheduler")}
        arguments = [_quoted(self.model)]
        arguments += [f"{name}={_quoted(value)}" for name, value in parts.items() if value is not None]
        if self.device != "cpu":
            arguments.append(f"device={_quoted(self.device)}")
        if self.dtype != "float32":
            arguments.append(f"dtype=torch.{self.dtype}")
        return f"dato.load_pipeline({', '.join(arguments)})"


def python_lines(choice: Choice, loading: Loading, sampling: Sampling, prompt: str, seed: int) -> str:
    """Return lines of Python that run as they are and give the page's image.

    Args:
        choice: What is chosen.
        loading: How the pipeline was loaded.
        sampling: How stock's image is generated.
        prompt: What to draw.
        seed: Fixes the noise.
    """
    loading = replace(loading, scheduler=choice.own_sampler or loading.scheduler)
    options = {"num_inference_steps": choice.steps(sampling.steps), "guidance_scale": sampling.guidance_scale}
    options |= {name: getattr(sampling, name) for name in ("height", "width") if getattr(sampling, name)}
    return "\n".join(
        [
            "import dato",
            "import torch",
            "",
            f"pipe = {loading.python()}",
            f"dato.apply_patch(pipe, {choice.python})",
            f"noise = torch.Generator().manual_seed({seed})",
            "image = pipe(",
            f"    {_quoted(prompt)},",
            *(f"    {name}={value!r}," for name, value in options.items()),
            "    generator=noise,",
            ").images[0]",
        ]
    )


def command(choice: Choice, loading: Loading, sampling: Sampling, prompt: str, seed: int) -> str:
    """Return the command that writes the page's image, or "" if no options choose it. The arguments are as above."""
    if not choice.options:
        return ""
    options = dict(loading.given)
    if isinstance(choice.source, float):  # no front says how its image was made
        options = _all_options(loading, sampling) | options
    words = ["dato", "generate", *choice.options]
    words += [word for option in options.items() for word in option]
    return shlex.join([*words, "--seed", str(seed), *(["--"] if prompt.startswith("-") else []), prompt])


def _all_options(loading: Loading, sampling: Sampling) -> dict[str, str]:
    """Return the options that a command needs where no front says anything."""
    values: dict[str, Any] = {
        "--model": None if loading.model == EMBEDDED else loading.model,
        "--config": loading.config,
        "--variant": loading.variant,
        "--scheduler": loading.scheduler,
        "--steps": sampling.steps,
        "--guidance-scale": f"{sampling.guidance_scale:g}",
        "--height": sampling.height,
        "--width": sampling.width,
    }
    return {option: str(value) for option, value in values.items() if value is not None}


def _quoted(text: str) -> str:
    """Return text as a Python literal with double quotes."""
    return json.dumps(text, ensure_ascii=False)
