"""Results that are either whole or not there, whatever kills the program in between."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file
from safetensors.torch import save as safe_bytes
from torch import Tensor

from dato.utils.files import write_atomic


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of `target` when the block ends well, so a half-written one never does."""
    new, old = (target.with_name(f".{target.name}.{suffix}") for suffix in ("new", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    if target.exists():
        os.replace(target, old)  # a folder cannot replace one that holds files
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


def cached(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, made and written first if there is no such file."""
    if path.is_file():
        return load_file(path)
    tensors = make()
    write_atomic(path, safe_bytes({name: tensor.contiguous() for name, tensor in tensors.items()}))
    return tensors
