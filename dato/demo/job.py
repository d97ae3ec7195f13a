"""What the page asks for, and what it gets: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dato.demo.choices import Choice
from dato.errors import DatoError

if TYPE_CHECKING:
    from torch import Tensor

    from dato.schedule import Schedule

LONGEST_PROMPT = 1000  # characters; no text encoder reads so many
LARGEST_SEED = 2**53 - 1  # a browser's numbers are exact up to here


@dataclass(frozen=True)
class Job:
    """What to generate: the same prompt and noise with each choice, and with stock.

    Attributes:
        prompt: What to draw.
        seed: Fixes the noise.
        choices: One or more.

    Raises:
        DatoError: if one of them cannot be used.
    """

    prompt: str
    seed: int
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise DatoError("type a prompt first: what shall be drawn?")
        if len(self.prompt) > LONGEST_PROMPT:
            raise DatoError(f"the prompt has {len(self.prompt)} characters: give at most {LONGEST_PROMPT}")
        if any("\ud800" <= character <= "\udfff" for character in self.prompt):
            raise DatoError("the prompt holds half of a character: type it anew")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise DatoError(f"the seed must be a whole number from 0 to {LARGEST_SEED}")
        if not self.choices:
            raise DatoError("choose something to compare with stock")


@dataclass(frozen=True)
class Shot:
    """One generated image.

    Attributes:
        image: (3, H, W) float32 in [0, 1] on the CPU.
        latency_ms: Milliseconds from the prompt to the image: text encoder, sampler, VAE.
        steps: Sampler steps.
    """

    image: Tensor = field(repr=False)
    latency_ms: float
    steps: int


@dataclass(frozen=True)
class Result:
    """What a choice gave.

    Attributes:
        choice: The choice.
        shot: Its image and time.
        schedule: The schedule that ran.
        psnr: PSNR to stock's image in dB, 100 for equal images. None: stock's image is not there yet.
    """

    choice: Choice
    shot: Shot
    schedule: Schedule
    psnr: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """What is known of a job at one moment.

    Attributes:
        ahead: How many jobs are run before it.
        doing: The name of what is being generated; "": nothing.
        call: The UNet call of it that runs.
        calls: How many it makes.
        results: The results so far, in the order of the choices.
        stock: Stock's image and time.
        notes: Warnings, a line each.
        error: Why it failed, in one line; "": it did not.
        stopped: Whether it was stopped.
        over: Whether nothing more will come.
    """

    ahead: int = 0
    doing: str = ""
    call: int = 0
    calls: int = 0
    results: tuple[Result, ...] = ()
    stock: Shot | None = None
    notes: tuple[str, ...] = ()
    error: str = ""
    stopped: bool = False
    over: bool = False

    @property
    def landmarks(self) -> tuple:
        """What the page shows at once if it changes. Calls may wait a little."""
        return self.ahead, self.doing, len(self.results), self.stock is None, self.over
