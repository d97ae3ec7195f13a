"""ImageReward's published files, and the network and tokenizer made from them."""

from __future__ import annotations

import json
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dato.errors import DatoError, first_line
from dato.utils.files import has_suffix
from dato.utils.weight_files import check_is_content

if TYPE_CHECKING:
    from transformers import BlipTextConfig, BlipVisionConfig, PreTrainedTokenizerBase

HUB_ID = "THUDM/ImageReward"
CHECKPOINTS = ("ImageReward.pt", "ImageReward.safetensors")
MED_CONFIG = "med_config.json"
TOKENIZER = "bert-base-uncased"
ADDED_TOKENS = ["[DEC]", "[ENC]"]  # BLIP's, in this order

VISION_EPS = 1e-6  # as in BLIP's own ViT; transformers' default differs
HEAD_SIZE = 64  # of ViT-L and BERT-base
# Weights in the checkpoint that are for BLIP's pretraining only, and a buffer that transformers makes itself.
IGNORED = ("blip.vision_proj.", "blip.text_proj.", "blip.itm_head.", "blip.text_encoder.embeddings.position_ids")
# The network's parts, and the prefixes of their weights in the checkpoint.
PARTS = {"vision": "blip.visual_encoder.", "text": "blip.text_encoder.", "mlp": "mlp.layers."}
# Names within the image tower: in transformers, and in the checkpoint.
VISION_NAMES = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding", "patch_embed.proj"),
    ("encoder.layers", "blocks"),
    ("self_attn.projection", "attn.proj"),
    ("self_attn", "attn"),
    ("post_layernorm", "norm"),
    ("layer_norm", "norm"),
)


def find_files(source: str | Path) -> tuple[Path, Path | None]:
    """Return the paths of the checkpoint and of med_config.json. The second is None if a folder does not have it.

    Args:
        source: A folder, the checkpoint's path, or a hub id.

    Raises:
        DatoError: if there is no checkpoint. The message says what to fetch.
    """
    path = Path(source)
    if path.is_dir():
        checkpoints = [path / name for name in CHECKPOINTS if (path / name).is_file()]
        if not checkpoints:
            raise _not_found("ImageReward", source, f"there is no {' or '.join(CHECKPOINTS)}")
        path = checkpoints[0]
    if path.is_file():
        med_config = path.with_name(MED_CONFIG)
        return path, med_config if med_config.is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(str(source), CHECKPOINTS[0])), Path(hf_hub_download(str(source), MED_CONFIG))
    except (OSError, ValueError) as error:
        raise _not_found("ImageReward", source, first_line(error)) from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return BERT's tokenizer with BLIP's added tokens, from a folder's files, else from the hub.

    Raises:
        DatoError: if it cannot be loaded.
    """
    from transformers import BertTokenizerFast

    has_files = any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json"))
    source = folder if has_files else TOKENIZER
    try:
        tokenizer = BertTokenizerFast.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise _not_found("ImageReward's tokenizer", source, first_line(error)) from error
    tokenizer.add_tokens(ADDED_TOKENS, special_tokens=True)
    return tokenizer


def load_network(checkpoint: Path, med_config: Path | None, vision_heads: int | None = None) -> nn.ModuleDict:
    """Return the network in transformers' classes: `vision`, `text` and `mlp`, float32, on the CPU, for evaluation.

    All sizes are read from the weights.

    Args:
        checkpoint: A state dict, .pt or .safetensors, in any float type.
        med_config: The settings that BERT's weights do not tell: heads, activation, eps. None: as in BERT-base.
        vision_heads: Attention heads of the image tower. None: one for every 64 dimensions.

    Raises:
        DatoError: if the file cannot be read, or has another model's weights.
    """
    from transformers import BlipTextModel, BlipVisionModel

    weights, settings = _read(checkpoint), _settings(med_config)
    try:
        vision, text = _vision_config(weights, vision_heads), _text_config(weights, settings)
        # No memory and no random numbers for weights that are replaced at once.
        with torch.device("meta"):
            network = nn.ModuleDict(
                {
                    "vision": BlipVisionModel(vision),
                    "text": BlipTextModel(text, add_pooling_layer=False),
                    "mlp": _mlp(weights),
                }
            )
    except KeyError as error:
        raise _other(checkpoint, f"it lacks {error.args[0]}") from None
    except (ValueError, TypeError) as error:
        raise _other(checkpoint, first_line(error)) from None

    expected = {_published(name): (name, value.shape) for name, value in network.state_dict().items()}
    given = {name for name in weights if not name.startswith(IGNORED)}
    if missing := sorted(expected.keys() - given):
        raise _other(checkpoint, f"it lacks {_some(missing)}")
    if unknown := sorted(given - expected.keys()):
        raise _other(checkpoint, f"it has {_some(unknown)}")
    if reshaped := sorted(name for name, (_, shape) in expected.items() if weights[name].shape != shape):
        raise _other(checkpoint, f"of another shape is {_some(reshaped)}")
    network.load_state_dict({ours: weights[name].float() for name, (ours, _) in expected.items()}, assign=True)
    positions = torch.arange(text.max_position_embeddings).unsqueeze(0)
    network["text"].embeddings.register_buffer("position_ids", positions, persistent=False)
    return network.eval().requires_grad_(False)


def _not_found(what: str, source: str | Path, reason: str) -> DatoError:
    return DatoError(
        f"cannot load {what} from '{source}': fetch {CHECKPOINTS[0]} and {MED_CONFIG} from "
        f"https://huggingface.co/{HUB_ID} and vocab.txt from https://huggingface.co/{TOKENIZER} into one folder, "
        f"and give the folder as `image_reward` ({reason})"
    )


def _other(checkpoint: Path, reason: str) -> DatoError:
    return DatoError(f"{checkpoint}: not ImageReward's checkpoint: {reason}")


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _read(checkpoint: Path) -> dict[str, Tensor]:
    check_is_content(checkpoint)
    try:
        if has_suffix(checkpoint, ".safetensors"):
            return load_file(checkpoint)
        weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise _other(checkpoint, first_line(error)) from None
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise _other(checkpoint, "it is no table of weights by name")
    return weights


def _settings(med_config: Path | None) -> dict:
    if med_config is None:
        return {}
    try:
        settings = json.loads(med_config.read_text(encoding="utf-8"))
        names = {"num_attention_heads", "hidden_act", "layer_norm_eps", "pad_token_id"}
        return {name: settings[name] for name in names & settings.keys()}
    except (OSError, ValueError, AttributeError) as error:
        raise DatoError(f"{med_config}: not the settings of a BERT: {first_line(error)}") from None


def _vision_config(weights: dict[str, Tensor], heads: int | None) -> BlipVisionConfig:
    from transformers import BlipVisionConfig

    part = PARTS["vision"]
    width, _, patch, _ = weights[part + "patch_embed.proj.weight"].shape
    patches = weights[part + "pos_embed"].shape[1] - 1  # without the one of [CLS]
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(weights[part + "blocks.0.mlp.fc1.weight"]),
        num_hidden_layers=_layers(weights, part + "blocks"),
        num_attention_heads=heads or max(1, width // HEAD_SIZE),
        image_size=round(patches**0.5) * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=VISION_EPS,
    )


def _text_config(weights: dict[str, Tensor], settings: dict) -> BlipTextConfig:
    from transformers import BlipTextConfig

    part = PARTS["text"]
    words, width = weights[part + "embeddings.word_embeddings.weight"].shape
    standard = {
        "num_attention_heads": max(1, width // HEAD_SIZE),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    return BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=weights[part + "encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=len(weights[part + "encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_layers(weights, part + "encoder.layer"),
        max_position_embeddings=len(weights[part + "embeddings.position_embeddings.weight"]),
        is_decoder=True,  # what transformers calls having cross-attention
        bos_token_id=None,  # the defaults are BERT's, and unused
        sep_token_id=None,
        **{**standard, **settings},
    )


def _mlp(weights: dict[str, Tensor]) -> nn.Sequential:
    """Return the linear layers under the checkpoint's numbers. The numbers that are left out are dropout."""
    shapes = {}
    for name in weights:
        if found := re.fullmatch(re.escape(PARTS["mlp"]) + r"(\d+)\.weight", name):
            shapes[int(found[1])] = weights[name].shape
    layers = ((str(i), nn.Linear(width, out)) for i, (out, width) in sorted(shapes.items()))
    return nn.Sequential(OrderedDict(layers))


def _layers(weights: dict[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[1] for name in weights if name.startswith(prefix + ".")})


def _published(name: str) -> str:
    part, _, rest = name.partition(".")
    if part == "vision":
        for ours, published in VISION_NAMES:
            rest = rest.replace(ours, published)
    return PARTS[part] + rest
