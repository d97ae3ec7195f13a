"""Models in one file: checkpoints that hold a whole pipeline under the original (CompVis) names.

diffusers' `from_single_file` translates the names. This module adds the rest. It tells which model a file holds and
what the file lacks, and it finds the configuration, which such a file does not hold.
"""

from __future__ import annotations

import contextlib
import pickle
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import is_zipfile

from dato.errors import DatoError, first_line, reason_of
from dato.generation.model_folder import INDEX, check_layout
from dato.utils.files import has_suffix, read_json
from dato.utils.weight_files import AGAIN, check_is_content

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import nn

SUFFIXES = (".safetensors", ".ckpt")
_NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")  # parts that such a file does not have
_UNET = "model.diffusion_model."
_CONV_IN = f"{_UNET}input_blocks.0.0.weight"
_VAE = ("first_stage_model.decoder.conv_in.weight", "vae.decoder.conv_in.weight")
_CLIP = "transformer.text_model.embeddings.position_embedding.weight"
_ALIGNMENT = 64  # bytes, as torch allocates
_TRANSFORMERS = ("joint_blocks.", "double_blocks.", "single_blocks.", "transformer_blocks.")


@dataclass(frozen=True)
class Family:
    """A kind of model that such files hold.

    Attributes:
        name: Its usual name.
        pipeline: The name of diffusers' class.
        config: The hub id of its usual configuration.
        text_encoders: The name of a weight of each text encoder.
    """

    name: str
    pipeline: str
    config: str
    text_encoders: tuple[str, ...]


# They differ in their text encoders: CLIP, OpenCLIP, or both.
SD1 = Family(
    "Stable Diffusion 1.x",
    "StableDiffusionPipeline",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    (f"cond_stage_model.{_CLIP}",),
)
SD2 = Family(
    "Stable Diffusion 2.x",
    "StableDiffusionPipeline",
    "stabilityai/stable-diffusion-2-1",
    ("cond_stage_model.model.token_embedding.weight",),
)
SDXL = Family(
    "Stable Diffusion XL",
    "StableDiffusionXLPipeline",
    "stabilityai/stable-diffusion-xl-base-1.0",
    (f"conditioner.embedders.0.{_CLIP}", "conditioner.embedders.1.model.positional_embedding"),
)


def is_single_file(model: str) -> bool:
    """Return whether a model's name is that of a file, which need not exist, and not of a folder or a hub id."""
    return Path(model).is_file() or (has_suffix(model, *SUFFIXES) and not Path(model).is_dir())


def family_of(file: str) -> Family:
    """Return which kind of model a file holds. Raise DatoError if it is not a whole text-to-image model with a UNet."""
    return _family(file, _shapes(file))


def load_single_file(file: str, dtype: torch.dtype, config: str | None = None) -> DiffusionPipeline:
    """Load a text-to-image pipeline from one file.

    Args:
        file: A .safetensors or .ckpt with UNet, VAE and text encoders under the original names. Only tensors are read
            from a .ckpt. Code that is pickled in it never runs.
        dtype: The precision.
        config: A folder or hub id in diffusers' layout that describes the parts. Its weights are not used. None: that
            of SD 1.5, 2.1 or XL, from the hub.

    Raises:
        DatoError: if the file is missing or damaged or holds something else, or the configuration is missing or does
            not fit.
    """
    shapes = _shapes(file)
    family = _family(file, shapes)
    name = config or family.config
    layout = _layout(name, family)
    with _suffix_in_small_letters(file) as same:
        pipe = _loaded(same, file, family, dtype, layout, name)
    _check_weights(file, name, pipe, sum(name.startswith(_UNET) for name in shapes))
    _align(pipe)
    pipe.register_to_config(_name_or_path=file)
    return pipe


def _loaded(path: str, file: str, family: Family, dtype: torch.dtype, layout: str, config: str) -> DiffusionPipeline:
    """Load a path of the file by the folder of its configuration. Errors say the given names, `file` and `config`."""
    import diffusers

    # SD's configurations ask for a safety checker, and the file has none.
    checker = {} if family is SDXL else {"safety_checker": None, "requires_safety_checker": False}
    try:
        return getattr(diffusers, family.pipeline).from_single_file(path, config=layout, torch_dtype=dtype, **checker)
    except NotImplementedError as error:  # weights that the file lacks have no memory, so they cannot be moved
        raise DatoError(f"{file} lacks weights that the configuration {config} asks for") from error
    except Exception as error:  # what is damaged or does not fit makes diffusers raise anything
        raise DatoError(
            f"cannot load {file} as {family.name} with the configuration {config}: {reason_of(error)}"
        ) from error


def _shapes(file: str) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of a file's tensors by name."""
    import torch
    from safetensors import safe_open

    if not Path(file).is_file():
        raise DatoError(f"{file}: no such file")
    if not has_suffix(file, *SUFFIXES):
        raise DatoError(f"{file}: a model in one file is a {' or '.join(SUFFIXES)}")
    check_is_content(file)
    try:
        if has_suffix(file, ".safetensors"):
            with safe_open(file, "pt") as tensors:
                return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about code that it refuses to load
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except pickle.UnpicklingError:
        raise DatoError(
            f"{file} is damaged, or pickles more than tensors, which could run any code and is not loaded: use the "
            "model's .safetensors"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise DatoError(f"{file} is damaged, or no checkpoint ({first_line(error)}): {AGAIN}") from None
    while isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise DatoError(f"{file} is no checkpoint: it holds no tensors by name")
    return {str(name): tuple(tensor.shape) for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}


def _family(file: str, shapes: Mapping[str, tuple[int, ...]]) -> Family:
    if _CONV_IN not in shapes:
        if any("lora" in name.lower() for name in shapes):
            raise DatoError(f"{file} is a LoRA, which changes a model but is not one; give the model")
        if any(name.removeprefix(_UNET).startswith(_TRANSFORMERS) for name in shapes):
            raise DatoError(f"{file} is a transformer, as those of SD 3 and Flux are; dato is for UNets")
    family = next((f for f in (SDXL, SD2, SD1) if all(name in shapes for name in f.text_encoders)), None)
    parts = {
        "UNet": _CONV_IN in shapes,
        "VAE": any(name in shapes for name in _VAE),
        "text encoder": family is not None,
    }
    missing = [part for part, present in parts.items() if not present]
    if missing or family is None:
        raise DatoError(
            f"{file} has no {' and no '.join(missing)} under the original names: give a file that is the whole of an "
            "SD 1.x, 2.x or XL model, or a folder in diffusers' layout"
        )
    if shapes[_CONV_IN][1] != 4:
        raise DatoError(
            f"{file} is no text-to-image model: its UNet takes {shapes[_CONV_IN][1]} channels, as for inpainting, not 4"
        )
    return family


@contextlib.contextmanager
def _suffix_in_small_letters(file: str) -> Iterator[str]:
    """Yield a path of the file that ends in one of `SUFFIXES`. diffusers takes other suffixes for those of pickles."""
    if file.endswith(SUFFIXES):
        yield file
        return
    suffix = Path(file).suffix.lower()
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, f"model{suffix}")
        try:
            link.symlink_to(Path(file).resolve())
        except OSError as error:
            raise DatoError(
                f"{file}: diffusers reads {suffix} in small letters only, so rename the file ({error.strerror})"
            ) from None
        yield str(link)


def _layout(config: str, family: Family) -> str:
    """Return the folder of a configuration. Download it if `config` is a hub id."""
    from huggingface_hub import snapshot_download

    folder = Path(config)
    if not folder.is_dir():
        try:
            patterns = [f"{folders}*.{kind}" for folders in ("", "**/") for kind in ("json", "txt")]
            folder = Path(snapshot_download(config, allow_patterns=patterns))
        except (OSError, ValueError) as error:
            raise DatoError(
                f"cannot fetch the configuration {config}, which a model in one file needs: give `config` as a folder "
                f"or hub id in diffusers' layout ({first_line(error)})"
            ) from None
    try:
        parts = check_layout(folder, without=_NOT_NEEDED)
    except DatoError as error:
        raise DatoError(f"the configuration {config} is no pipeline in diffusers' layout: {error}") from None
    if "unet" not in parts or ("text_encoder_2" in parts) != (family is SDXL):
        kind = read_json(folder / INDEX)["_class_name"]
        raise DatoError(f"the configuration {config} is that of a {kind}, and the file is {family.name}")
    return str(folder)


def _check_weights(file: str, config: str, pipe: DiffusionPipeline, held: int) -> None:
    """Raise DatoError if the configuration has weights that the file lacks, or lacks some of the UNet's."""
    if any(weight.is_meta for weight in _weights(pipe)):
        raise DatoError(f"{file} lacks weights that the configuration {config} asks for")
    if held != (expected := len(pipe.unet.state_dict())):
        raise DatoError(
            f"{file} has {held} weights of a UNet, and the configuration {config} has {expected}: give its own `config`"
        )


def _align(pipe: DiffusionPipeline) -> None:
    """Copy weights whose address in a mapped file is not aligned.

    Kernels round differently on such a matrix. Without the copy, images would depend on the size of the file's header.
    """
    for weight in _weights(pipe):
        if weight.data_ptr() % _ALIGNMENT:
            weight.data = weight.data.clone()


def _weights(pipe: DiffusionPipeline) -> list[nn.Parameter]:
    from torch import nn

    models = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return [weight for model in models for weight in model.parameters()]
