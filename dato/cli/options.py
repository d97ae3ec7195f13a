"""Options that several commands share, and what their text means."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError, first_line
from dato.front import Front
from dato.generation.model_configs import RANDOM_MODELS
from dato.metrics import shown
from dato.point import Point
from dato.samplers import SAMPLERS

STRATEGY = "a JSON file, a run's folder, a shipped one's name, or user/name on the Hugging Face hub"


def place(name: str) -> str:
    """A file's or folder's whole path, so that it is found from anywhere; what is none is a name or a hub id."""
    path = Path(name)
    if path.is_file():  # a link keeps its name: what the hub's cache links to has no suffix
        return str(path.parent.resolve() / path.name)
    return str(path.resolve()) if path.exists() else name


def given_place(name: str | None) -> str | None:
    """`place` of what may be left out."""
    return None if name is None else place(name)


def model_place(name: str | None) -> str | None:
    """`place` of a model; those that come with dato are no folders, whatever lies here."""
    return name if name in (EMBEDDED, *RANDOM_MODELS) else given_place(name)


def model_of(
    model: str | None, config: str | None, known: Mapping[str, Any]
) -> tuple[str, str | None, Mapping[str, Any]]:
    """The model that is meant, its configuration, and the conditions `known` of a front, if it is its model."""
    searched = model_place(known.get("model"))
    own = known if model in (None, searched) else {}
    return model or searched or EMBEDDED, config or own.get("config"), own


Model = Annotated[
    str | None,
    typer.Option(
        help="Folder or hub id of a diffusers pipeline with a UNet, or a .safetensors or .ckpt file with the whole "
        f"model; '{EMBEDDED}' is the embedded model; {', '.join(RANDOM_MODELS)} have random weights, for timing.",
        callback=model_place,
    ),
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="Of a model in one file: folder or hub id in diffusers' layout that says what its parts look like.",
        show_default="that of SD 1.5, 2.1 or XL, from the hub",
        callback=given_place,
    ),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Sampler steps.", show_default="the front's")]
Scheduler = Annotated[str | None, typer.Option(help=f"Sampler: {', '.join(SAMPLERS)}.", show_default="the model's own")]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance-scale", min=1, help="Classifier-free guidance; 1 is off.", show_default="the front's"),
]
Height = Annotated[int | None, typer.Option(min=16, help="Image height in pixels.", show_default="the model's own")]
Width = Annotated[int | None, typer.Option(min=16, help="Image width in pixels.", show_default="the model's own")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one.")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16; auto: float16 on a GPU, float32 elsewhere.")]
Seed = Annotated[int, typer.Option(min=0, help="Fixes the noise of the images, and all else that is random.")]


def device_of(name: str, elsewhere: bool = False) -> torch.device:
    """The device that a name means; of workers `elsewhere` auto is a GPU.

    Raises:
        DatoError: if this machine, should it be here, has none such.
    """
    if elsewhere and name in ("auto", "cpu", "cuda"):
        return torch.device("cpu" if name == "cpu" else "cuda")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise DatoError(f"--device {name}: dato measures on cpu and cuda")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error)
        raise DatoError(f"--device {name}: {reason}") from None
    return device


def dtype_of(name: str | None, device: torch.device, front: str = "auto") -> torch.dtype:
    """The dtype that a name means; None: a front's own on a GPU, else auto. Raises DatoError for an unknown one."""
    name = name or (front if device.type == "cuda" else "auto")
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in known:
        raise DatoError(f"--dtype {name}: known are auto, {', '.join(known)}")
    return known[name]


def dtype_name(name: str | None, device: torch.device, front: str = "auto") -> str:
    """`dtype_of` as a recipe has it: float16, ..."""
    return str(dtype_of(name, device, front)).removeprefix("torch.")


def numbers(option: str, text: str | None, kind: type) -> list | None:
    """A comma-separated list, as in "0,1,3"."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise DatoError(f"{option} {text!r}: give numbers with commas between them") from None


def whole_numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """A comma-separated list of whole numbers from 0 on, each once, ascending."""
    values = numbers(option, text, int)
    if values is not None and min(values) < 0:
        raise DatoError(f"{option} {text!r}: the numbers must not be negative")
    return None if values is None else tuple(sorted(set(values)))


def pick_point(front: Front, text: str) -> Point:
    """The point of a front that `--pick` means: knee, speedup=NUMBER or quality=NUMBER."""
    if text == "knee":
        return front.knee()
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        name = ""
    if name == "speedup":
        return front.pick(speedup=number)
    if name == "quality":
        return front.pick(quality=floor_of(front.conditions["quality"], number))
    raise DatoError(f"--pick {text!r}: give knee, speedup=NUMBER or quality=NUMBER")


def floor_of(metric: str, value: float | None) -> float | None:
    """What the user calls a quality, as `Point.quality` counts it: of a distance, higher is better there too."""
    return None if value is None else shown(metric, value)


SCRIPTS = {
    "search depth": "search/search_depth.py",
    "search ratio": "search/search_ratio.py",
    "search joint": "search/search_joint.py",
    "generate": "scripts/generate.py",
}


def command_line(command: str, *arguments: str) -> str:
    """A command to go on with, in the way that this one was called: as a script, or `dato`'s command of that name."""
    words = ["python", SCRIPTS[command]] if sys.argv[0].endswith(".py") else ["dato", *command.split()]
    return shlex.join([*words, *arguments])


def new_folder(out: Path | None, kind: str) -> Path:
    """The folder of a new run. Raises DatoError if it holds a run already, or cannot be written to."""
    folder = out or Path("runs") / f"{kind}-{datetime.now():%Y%m%d-%H%M%S}"
    if (folder / "pareto.json").exists():
        raise DatoError(f"{folder} holds a front already; give another --out, or remove it first")
    if (folder / "journal.jsonl").exists():
        raise DatoError(f"{folder} holds a search already: go on with --resume {folder}, or give another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatoError(f"cannot write to {folder}: {error.strerror}; give another --out") from None
    return folder
