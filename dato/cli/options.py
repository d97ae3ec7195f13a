"""Options that several commands share, and functions that read their values."""

from __future__ import annotations

import contextlib
import inspect
import os
import shlex
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dato.cli.console import flag_of, with_flags
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError, first_line
from dato.generation.model_configs import RANDOM_MODELS
from dato.samplers import SAMPLERS
from dato.search.options import annotations, place

if TYPE_CHECKING:
    import torch

STRATEGY = "a JSON file, a run's folder, a shipped one's name, or user/name on the Hugging Face hub"


def given_place(name: str | None) -> str | None:
    """Return the `place` of a name, None for None."""
    return None if name is None else place(name)


def model_place(name: str | None) -> str | None:
    """Return the `place` of a model. A model that comes with dato is never taken for a folder."""
    return name if name in (EMBEDDED, *RANDOM_MODELS) else given_place(name)


def model_of(
    model: str | None, config: str | None, variant: str | None, known: Mapping[str, Any]
) -> tuple[str, dict[str, str | None], Mapping[str, Any]]:
    """Return the model and how to load it, by default as a front was searched.

    Args:
        model: What --model gives.
        config: What --config gives.
        variant: What --variant gives.
        known: The front's conditions.

    Returns:
        The model, config and variant as `load_pipeline` takes them, and `known` if the front is of this model.
    """
    searched = model_place(known.get("model"))
    own = known if model in (None, searched) else {}
    loading = {"config": config or own.get("config"), "variant": variant or own.get("variant")}
    return model or searched or EMBEDDED, loading, own


def prompt_text(text: str) -> str:
    """Return a prompt, which may have come as bytes of UTF-8 where the locale is another. Raise DatoError if not."""
    try:
        return os.fsencode(text).decode() if any("\udc80" <= character <= "\udcff" for character in text) else text
    except UnicodeError:
        raise DatoError("the prompt is not UTF-8, which it must be: set the locale to a UTF-8 one") from None


Prompt = Annotated[str, typer.Argument(help="What to draw.", callback=prompt_text)]
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
        help="For a model in one file: folder or hub id in diffusers' layout that describes its parts.",
        show_default="that of SD 1.5, 2.1 or XL, from the hub",
        callback=given_place,
    ),
]
Variant = Annotated[
    str | None,
    typer.Option(
        "--variant",
        help="For a folder or hub id: which weights to load, such as fp16.",
        show_default="those of no variant",
    ),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Sampler steps.", show_default="the front's; else 50")]
Scheduler = Annotated[str | None, typer.Option(help=f"Sampler: {', '.join(SAMPLERS)}.", show_default="the model's own")]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale",
        min=1,
        help="Classifier-free guidance; 1 is off.",
        show_default="the front's; else the usual one of the model",
    ),
]
Height = Annotated[int | None, typer.Option(min=16, help="Image height in pixels.", show_default="the model's own")]
Width = Annotated[int | None, typer.Option(min=16, help="Image width in pixels.", show_default="the model's own")]
# The same for commands that run a front.
_FRONTS = "the front's; else the model's own"
FrontScheduler = Annotated[str | None, typer.Option(help=f"Sampler: {', '.join(SAMPLERS)}.", show_default=_FRONTS)]
FrontHeight = Annotated[int | None, typer.Option(min=16, help="Image height in pixels.", show_default=_FRONTS)]
FrontWidth = Annotated[int | None, typer.Option(min=16, help="Image width in pixels.", show_default=_FRONTS)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one.")]
FrontDtype = Annotated[str | None, typer.Option(help="float32, float16, bfloat16 or auto.", show_default="the front's")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16; auto: float16 on a GPU, float32 elsewhere.")]
Seed = Annotated[int, typer.Option(min=0, help="Fixes the noise of the images, and everything else that is random.")]


def device_of(name: str, elsewhere: bool = False) -> torch.device:
    """Return the device that a name means. If workers run `elsewhere`, auto is a GPU.

    Raises:
        DatoError: if the device has to be on this machine, and there is none of that name.
    """
    import torch

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
    """Return the dtype that a name means; None: a front's own on a GPU, else auto.

    Raises:
        DatoError: if the name is not known.
    """
    import torch

    name = name or (front if device.type == "cuda" else "auto")
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in known:
        raise DatoError(f"--dtype {name}: known are auto, {', '.join(known)}")
    return known[name]


def dtype_name(name: str | None, device: torch.device, front: str = "auto") -> str:
    """Return the name of the dtype that `dtype_of` returns, for example float16."""
    return str(dtype_of(name, device, front)).removeprefix("torch.")


def numbers(option: str, text: str | None, kind: type) -> list | None:
    """Return the numbers of a comma-separated list, as in "0,1,3". Raise DatoError if it is none."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise DatoError(f"{option} {text!r}: give numbers with commas between them") from None


def settings(option: str, texts: Sequence[str] | None) -> dict[str, bool | int | float | str | None] | None:
    """Return settings that the user typed as KEY=VALUE, by key; None if there are none.

    Raises:
        DatoError: if a text has no key, or a key comes twice.
    """
    read: dict[str, bool | int | float | str | None] = {}
    for text in texts or ():
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals):
            raise DatoError(f"{option} {text!r}: give KEY=VALUE, as in diff_gamma=0.1")
        if key in read:
            raise DatoError(f"{option}: {key} is given twice")
        read[key] = _value(value)
    return read or None


def _value(text: str) -> bool | int | float | str | None:
    """Return what a text means: true, false, none, a number, or itself."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def whole_numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Return the whole numbers of a comma-separated list, each once, ascending. Raise DatoError if one is negative."""
    values = numbers(option, text, int)
    if values is not None and min(values) < 0:
        raise DatoError(f"{option} {text!r}: the numbers must not be negative")
    return None if values is None else tuple(sorted(set(values)))


def parameters_of(options: type, shown: Mapping[str, str] | None = None) -> list[inspect.Parameter]:
    """Return a command's parameters for the fields of a dataclass of `dato.search.options`.

    Args:
        options: The dataclass.
        shown: What the help shows as defaults, by field, if the command's defaults differ from the function's.
    """
    hints, flags = annotations(options), {field.name: flag_of(field.name) for field in fields(options)}
    parameters = []
    for field in fields(options):
        about = field.metadata
        default = (shown or {}).get(field.name, about["shown"])
        repeated = is_mapping(hints[field.name])
        option = typer.Option(
            *([flags[field.name]] if hints[field.name] is bool else []),  # without a --no- flag
            help=with_flags(about["help"], flags) + (" May be repeated." if repeated else ""),
            min=about["least"],
            show_default=True if default is None else with_flags(default, flags),
            callback=given_place if about["place"] else None,
            metavar="KEY=VALUE" if repeated else None,
        )
        kind = Annotated[_typed(hints[field.name]), option]
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=kind)
        )
    return parameters


def _typed(hint: Any) -> Any:
    """Return the type of what the user types: lists and places are text, settings several texts."""
    kinds = set(typing.get_args(hint)) or {hint}
    if kinds <= {bool, int, float, str, type(None)}:
        return hint
    return list[str] | None if is_mapping(hint) else str | None


def is_mapping(hint: Any) -> bool:
    """Tell whether an option holds settings by name. The user types each as KEY=VALUE."""
    return any(typing.get_origin(kind) is Mapping for kind in typing.get_args(hint))


SCRIPTS = {
    "search depth": "search/search_depth.py",
    "search ratio": "search/search_ratio.py",
    "search joint": "search/search_joint.py",
    "generate": "scripts/generate.py",
}


def command_line(command: str, *arguments: str) -> str:
    """Return a command as this one was called: as a script, or as `dato`'s command of that name."""
    words = ["python", SCRIPTS[command]] if sys.argv[0].endswith(".py") else ["dato", *command.split()]
    return shlex.join([*words, *arguments])


def new_folder(out: Path | None, kind: str) -> Path:
    """Return the folder of a new run. Raise DatoError if it holds a run already, or cannot be written to."""
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
