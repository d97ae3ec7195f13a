"""Folders of models in diffusers' layout: find what is missing or damaged, and name the file.

diffusers and transformers raise all kinds of exceptions for such folders, many of which name no file. And transformers
fills in random numbers for missing weights, and takes a tokenizer without its words for one that has none.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dato.errors import DatoError
from dato.utils.files import read_json
from dato.utils.weight_files import AGAIN, check_is_whole, names_in, weights_in

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn

INDEX = "model_index.json"
# A tokenizer has all files of one of these.
_WORDS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("tokenizer.model",),
    ("sentencepiece.bpe.model",),
)
_TOWER = re.compile(r"^(text|vision)_model\.")  # versions of transformers differ in whether names begin so


def check_layout(folder: Path, without: Collection[str] = ()) -> dict[str, type | None]:
    """Check all of a folder that is not weights: the index of its parts, their subfolders, and the JSON in these.

    Args:
        folder: The folder.
        without: Parts that are not needed.

    Returns:
        Name of a part -> its class. None: it is of neither diffusers nor transformers.

    Raises:
        DatoError: if something is missing or damaged. The message names the file.
    """
    parts = _parts(folder / INDEX)
    for name, kind in parts.items():
        if name in without:
            continue
        part = folder / name
        if not part.is_dir():
            raise DatoError(f"{folder} lacks the folder {name}, which its {INDEX} names: copy or download it again")
        for file in sorted(part.glob("*.json")):
            if not file.name.startswith("."):  # macOS puts such files beside others on some disks
                _check_json(file)
        if _has_weights(kind) and not (part / "config.json").is_file():
            raise DatoError(f"{part} lacks config.json: {AGAIN}")
        if kind is not None and "Tokenizer" in kind.__name__ and not _has_words(part):
            raise DatoError(f"{part} lacks the tokenizer's words ({' and '.join(_WORDS[1])}): {AGAIN}")
    return {name: kind for name, kind in parts.items() if name not in without}


def check_folder(folder: Path, variant: str | None = None) -> None:
    """Check a folder before its pipeline is loaded: its layout, and whether its files of weights are whole.

    Args:
        folder: The folder.
        variant: As in `load_pipeline`.

    Raises:
        DatoError: if something is missing or damaged, or the weights are those of another variant only.
    """
    parts = [folder / name for name, kind in check_layout(folder).items() if _has_weights(kind)]
    every = {part: weights_in(part) for part in parts}
    if variant is not None and not any(variant in weights for weights in every.values()):
        known = sorted({name for weights in every.values() for name in weights if name is not None})
        others = f"; it has those of {', '.join(known)}" if known else ": leave it out"
        raise DatoError(f"{folder} has no weights of the `variant` {variant}{others}")
    for part, weights in every.items():
        files = _of_variant(part, weights, variant)
        for file in files:
            check_is_whole(file)
        _check_shards(part, files[0].suffix, variant if variant in weights else None)


def check_loaded(pipe: DiffusionPipeline, model: str, variant: str | None = None) -> None:
    """Check that a pipeline got all its weights from what it was loaded from.

    Args:
        pipe: The pipeline.
        model: The folder. Of a hub id only diffusers' parts are checked.
        variant: As in `load_pipeline`.

    Raises:
        DatoError: if weights of a part are missing.
    """
    from torch import nn

    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            folder = Path(model) / name
            missing = [weight for weight, value in part.named_parameters() if value.is_meta]
            if folder.is_dir() and type(part).__name__.startswith("CLIP"):  # of others, some weights are the same
                missing = missing or _filled_in(part, _of_variant(folder, weights_in(folder), variant))
            if missing:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise DatoError(f"{model}/{name} lacks weights, {missing[0]}{more}: {AGAIN}")


def _parts(index: Path) -> dict[str, type | None]:
    """Return name -> class of the parts that an index lists."""
    if not index.is_file():
        raise DatoError(f"cannot read {index}: give the folder of a whole pipeline in diffusers' layout")
    entries = _check_json(index)
    if not isinstance(entries, dict) or not isinstance(entries.get("_class_name"), str):
        raise DatoError(f"{index} is no index of a pipeline (an object with _class_name): {AGAIN}")
    parts = {}
    for name, entry in entries.items():
        if isinstance(entry, list) and not name.startswith("_"):
            if len(entry) != 2 or not all(text is None or isinstance(text, str) for text in entry):
                raise DatoError(f"{index}: {name} must be a library and a class, not {entry}: {AGAIN}")
            if None not in entry:
                parts[name] = _class(*entry)
    return parts


def _class(library: str, name: str) -> type | None:
    if library not in ("diffusers", "transformers"):
        return None
    kind = getattr(importlib.import_module(library), name, None)
    return kind if isinstance(kind, type) else None


def _has_weights(kind: type | None) -> bool:
    from torch import nn

    return kind is not None and issubclass(kind, nn.Module)


def _has_words(part: Path) -> bool:
    return any(all((part / name).is_file() for name in names) for names in _WORDS)


def _check_json(file: Path) -> Any:
    """Return the value in a JSON file. Configurations must be objects."""
    try:
        value = read_json(file)
    except DatoError as error:
        raise DatoError(f"{error}; {AGAIN}") from None
    if (file.name.endswith("config.json") or ".index." in file.name) and not isinstance(value, dict):
        raise DatoError(f"{file} must hold an object, not a {type(value).__name__}: {AGAIN}")
    return value


def _of_variant(part: Path, weights: dict[str | None, Sequence[Path]], variant: str | None) -> Sequence[Path]:
    """Return the files that diffusers loads: those of the variant, or of none if the part has no such variant."""
    if not weights:
        raise DatoError(f"{part} has no weights: {AGAIN}")
    for name in (variant, None):
        if name in weights:
            return weights[name]
    known = sorted(name for name in weights if name is not None)
    raise DatoError(f"{part} has only weights of the variant {' and '.join(known)}: give `variant` {known[0]}")


def _check_shards(part: Path, suffix: str, variant: str | None) -> None:
    """Raise DatoError if a file is missing that the index of weights in several files names."""
    for index in part.glob(f"*{suffix}.index{'' if variant is None else f'.{variant}'}.json"):
        shards = read_json(index).get("weight_map")
        for name in sorted(set(shards.values())) if isinstance(shards, dict) else ():
            if not (part / str(name)).is_file():
                raise DatoError(f"{part} lacks {name}, which {index.name} names: {AGAIN}")


def _filled_in(model: nn.Module, files: Sequence[Path]) -> list[str]:
    """Return the names of weights that none of the files has."""
    held = {_TOWER.sub("", name) for file in files for name in names_in(file)}
    return [name for name, _ in model.named_parameters() if _TOWER.sub("", name) not in held]
