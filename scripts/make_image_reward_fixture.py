"""Make tests/data/image_reward: a small random ImageReward, and what its authors' package scores with it.

    python scripts/make_image_reward_fixture.py tests/data/image_reward

Runs in an environment of its own, because the package does not import beside the transformers that dato needs:
Python 3.10, image-reward 1.5, transformers 4.40.0, timm 0.6.13, fairscale 0.4.13, clip-anytorch 2.6.0,
diffusers 0.27.2, huggingface_hub 0.24.7, setuptools 79.0.1, numpy 1.26.4, torch 2.14.1, torchvision 0.29.2,
pillow 12.3.0, safetensors 0.8.0. Pillow and torch may be others: tests/metrics/test_image_reward.py tolerates 1e-4.

The model is the package's own, with smaller sizes. The scores are those of its `score` and `inference_rank`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from ImageReward.models.BLIP import blip, blip_pretrain
from PIL import Image
from safetensors.torch import save_file
from torch import nn

# The package's namespace hides this module behind the class of the same name.
package = importlib.import_module("ImageReward.ImageReward")

SIZE, PATCH, WIDTH, TEXT_WIDTH = 56, 8, 128, 32
MED = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "add_cross_attention": True,
    "attention_probs_dropout_prob": 0.1,
    "encoder_width": WIDTH,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 40,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
}
WORDS = "a the of on in with and red green blue apple dog cat rose house photo painting background white black . , !"
PROMPTS = [
    "a red apple on a white background",
    "photo of a dog, and a cat in the house!",
    "",
    "Ünknown Wörds: zebra-crossing 東京 [ENC] [MASK]",
    " ".join(["a painting of the blue rose with a green house"] * 60),
]


class SmallMLP(package.MLP):
    """The package's head with the same layers, narrower."""

    def __init__(self, _: int) -> None:
        super().__init__(TEXT_WIDTH)
        widths = iter(((TEXT_WIDTH, 48), (48, 24), (24, 16), (16, 8), (8, 1)))
        self.layers = nn.Sequential(*(nn.Linear(*next(widths)) if hasattr(x, "weight") else x for x in self.layers))


def pictures() -> dict[str, Image.Image]:
    """Pictures of several sizes and modes, from smooth to noise."""
    random = np.random.default_rng(0)

    def rgb(height: int, width: int, noise: float) -> np.ndarray:
        y, x = np.mgrid[0:height, 0:width] / max(height, width)
        waves = [np.sin(x * random.uniform(2, 9) + y * random.uniform(2, 9) + i) for i in range(3)]
        smooth = 127 + 100 * np.stack(waves, 2) + noise * random.standard_normal((height, width, 3))
        smooth[height // 4 : height // 2, width // 3 : width // 2 + 1] = random.uniform(0, 255, 3)
        return smooth.clip(0, 255).astype(np.uint8)

    opaque = np.full((50, 72, 1), 255, np.uint8)
    return {
        "own-size": Image.fromarray(rgb(SIZE, SIZE, 20)),
        "tiny": Image.fromarray(rgb(3, 5, 60)),
        "wide": Image.fromarray(rgb(40, 131, 20)),
        "tall": Image.fromarray(rgb(101, 33, 20)),
        "large": Image.fromarray(rgb(260, 401, 0)),
        "grey": Image.fromarray(rgb(64, 64, 20)[..., 0]),
        # Opaque: the package resizes before it drops transparency, which is not for a metric of RGB images to repeat.
        "rgba": Image.fromarray(np.concatenate([rgb(50, 72, 20), opaque], 2)),
    }


def vocabulary() -> list[str]:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [w for w in WORDS.split() if w not in letters]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters), *words]


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights that half precision holds exactly, so that they are stored in half the space."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in sorted(model.named_parameters()):
        drawn = torch.randn(weight.shape, generator=generator)
        if ("embed" in name and "LayerNorm" not in name) or "cls_token" in name:
            # Small, so that the first LayerNorms' eps shows in the score.
            scale = 0.04 if "word" in name else 0.01
            drawn = scale * drawn / math.sqrt(weight[0].numel() if weight.ndim == 4 else 1)
        elif weight.ndim > 1:
            drawn = 1.5 * drawn / math.sqrt(weight.shape[1])
        else:
            drawn = 0.1 * drawn + (name.endswith("weight"))
        weight.copy_(drawn.half())


def build(folder: Path) -> nn.Module:
    """The package's ImageReward, made by its own constructor, but small."""
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary()))
    med = {**MED, "vocab_size": len(vocabulary()) + 2}
    (folder / "med_config.json").write_text(json.dumps(med, indent=1) + "\n")
    tokenizer = blip.BertTokenizer(str(folder / "vocab.txt"))
    tower = blip.VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=WIDTH // 64, mlp_ratio=0.25
    )
    transform = package._transform
    with (
        mock.patch.object(blip.BertTokenizer, "from_pretrained", lambda _: tokenizer),
        mock.patch.object(blip_pretrain, "create_vit", lambda *_: (tower, WIDTH)),
        mock.patch.object(package, "_transform", lambda _: transform(SIZE)),
        mock.patch.object(package, "MLP", SmallMLP),
    ):
        model = package.ImageReward(str(folder / "med_config.json")).eval()
    randomise(model)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="Where the fixture is written.")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    model = build(folder)
    save_file(
        {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()},
        folder / "ImageReward.safetensors",
    )
    found = pictures()
    for name, picture in found.items():
        picture.save(folder / f"{name}.png", optimize=True)
    scores = [model.inference_rank(prompt, list(found.values()))[1] for prompt in PROMPTS]
    alone = [[model.score(prompt, picture) for picture in found.values()] for prompt in PROMPTS]
    assert np.abs(np.subtract(scores, alone)).max() < 1e-5
    print(np.round(scores, 3))
    packages = ("image-reward", "transformers", "timm", "torch", "torchvision", "pillow")
    expected = {
        "versions": {name: version(name) for name in packages},
        "pictures": list(found),
        "prompts": PROMPTS,
        "scores": scores,
    }
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
