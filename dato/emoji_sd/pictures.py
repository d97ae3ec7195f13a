"""The data of emoji-sd: emoji on coloured backgrounds, their captions, and the captions that are held out."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dato.errors import DatoError

SIZE = 64  # pixels
COLOURS = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "red": (214, 69, 65),
    "blue": (70, 120, 200),
    "green": (80, 160, 90),
    "yellow": (245, 215, 110),
    "pink": (240, 170, 190),
    "gray": (150, 150, 150),
}
CATEGORIES = (
    "Smileys & Emotion",
    "Animals & Nature",
    "Food & Drink",
    "Activities",
    "Travel & Places",
    "Objects",
)
# The order decides which colour of a name is held out.
NAMES = tuple(
    """tomato, grapes, watermelon, tangerine, lemon, banana, pineapple, red apple, green apple, pear, peach,
    cherries, strawberry, kiwifruit, mango, coconut, blueberries, avocado, hot dog, taco, hamburger,
    slice of pizza, doughnut, cookie, ice cream, soft ice cream, birthday cake, cupcake, lollipop, french fries,
    pancakes, pretzel, cheese wedge, carrot, broccoli, ear of maize, aubergine, croissant, sushi, popcorn,
    evergreen tree, deciduous tree, palm tree, cactus, tulip, cherry blossom, rose, hibiscus, sunflower,
    four leaf clover, maple leaf, mushroom, herb, potted plant, dog face, cat face, mouse face, cow face,
    tiger face, rabbit face, dragon face, pig face, frog face, bear face, panda face, lion face, fox face,
    monkey face, penguin, owl, octopus, butterfly, turtle, lady beetle""".replace("\n", " ")
    .replace("    ", "")
    .split(", ")
)


def caption(name: str, colour: str) -> str:
    """Return the caption of a name on a colour. All captions have this form."""
    return f"{name} on a {colour} background"


def held_out_colour(index: int) -> int:
    """Return which of the 8 colours is held out for the name at an index. Steps of 5 use all colours evenly."""
    return (5 * index + 3) % len(COLOURS)


def splits(names: Sequence[str] = NAMES) -> dict[str, list[str]]:
    """Return the prompts of `dato.emoji_sd.prompts`: one caption for each name and split.

    Returns:
        "evaluation": the held-out captions in the order of the names. "search": one trained caption of each name, with
        all colours about equally often, shuffled so that the first n captions are a mixed sample.
    """
    colours = list(COLOURS)
    evaluation, search = [], []
    for index, name in enumerate(names):
        held_out = held_out_colour(index)
        # Eight names in a row use all colours. The shift of 1 to 7 never gives the held-out colour.
        trained = (held_out + 1 + index // len(colours) % (len(colours) - 1)) % len(colours)
        evaluation.append(caption(name, colours[held_out]))
        search.append(caption(name, colours[trained]))
    random.Random(0).shuffle(search)
    return {"search": search, "evaluation": evaluation}


@dataclass(frozen=True)
class Pictures:
    """Emoji cut-outs as tensors.

    Attributes:
        names: The names that the VAE and the UNet learn.
        all_names: The name of each cut-out.
        cutouts: (M, 4, 64, 64) uint8, RGBA.
        rows: (len(names),), the index of each name among the cut-outs.
    """

    names: tuple[str, ...]
    all_names: tuple[str, ...]
    cutouts: Tensor
    rows: Tensor

    def to(self, device: torch.device | str) -> Pictures:
        """Return the same with the cut-outs on another device."""
        return replace(self, cutouts=self.cutouts.to(device))

    def captions(self) -> list[str]:
        """Return every name on every colour, name by name. CLIP learns them all, the held-out ones too."""
        return [caption(name, colour) for name in self.all_names for colour in COLOURS]

    def known(self, *, trained_only: bool) -> Tensor:
        """Return (K,) indices into `captions()` of the learnt names: on all colours, or without the held-out ones."""
        count = len(COLOURS)
        index = self.rows[:, None] * count + torch.arange(count)
        keep = torch.ones(index.shape, dtype=torch.bool)
        if trained_only:
            keep[range(len(self.names)), [held_out_colour(i) for i in range(len(self.names))]] = False
        return index[keep]

    def paste(self, captions: Tensor, mirrored: Tensor | bool = False) -> Tensor:
        """Return the pictures of captions.

        Args:
            captions: (B,) indices into `captions()`.
            mirrored: Whether each is mirrored left to right, (B,) or one for all.

        Returns:
            (B, 3, 64, 64) in [0, 1], on the cut-outs' device.
        """
        return paste(*self.parts(captions, mirrored))

    def parts(self, captions: Tensor, mirrored: Tensor | bool = False) -> tuple[Tensor, Tensor]:
        """Return the cut-outs (B, 4, 64, 64) and background colours (B, 3) of captions, for `paste`. In [0, 1]."""
        captions = captions.to(self.cutouts.device)
        cutouts = self.cutouts[captions // len(COLOURS)].float() / 255
        flip = torch.as_tensor(mirrored, device=cutouts.device).expand(len(captions))
        cutouts = torch.where(flip[:, None, None, None], cutouts.flip(-1), cutouts)
        table = torch.tensor(list(COLOURS.values()), device=cutouts.device) / 255
        return cutouts, table[captions % len(COLOURS)]


def paste(cutouts: Tensor, colours: Tensor) -> Tensor:
    """Return (B, 3, H, W): cut-outs (B, 4, H, W) with their alpha on plain colours (B, 3), all in [0, 1]."""
    colour, alpha = cutouts[:, :3], cutouts[:, 3:]
    return colour * alpha + colours[:, :, None, None] * (1 - alpha)


def read(package: Path, names: Sequence[str] | None = None) -> Pictures:
    """Read an unpacked `emoji-datasource-google` package.

    Args:
        package: The folder with emoji.json and img/google/64/.
        names: The names that the VAE and the UNet learn, as in emoji.json but in lower case. None: `NAMES`.

    Raises:
        DatoError: if the folder is not such a package, or lacks one of the names.
    """
    table = package / "emoji.json"
    try:
        entries = json.loads(table.read_text(encoding="utf-8"))
        files = {
            entry["name"].lower(): package / "img" / "google" / str(SIZE) / entry["image"]
            for entry in entries
            if entry["category"] in CATEGORIES and entry.get("has_img_google", True)
        }
    except FileNotFoundError as error:
        raise DatoError(f"{package} is no unpacked emoji-datasource-google package: no emoji.json") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatoError(f"{table} does not list emoji as emoji-datasource-google does: {error!r}") from error
    if missing := [name for name in names or NAMES if name not in files]:
        raise DatoError(f"{table} lacks {len(missing)} of the names to learn, the first is '{missing[0]}'")
    all_names = tuple(files)
    chosen = tuple(names or NAMES)
    if len(set(chosen)) != len(chosen):
        raise DatoError("a name to learn is given twice")
    cutouts = torch.stack([_cutout(file) for file in files.values()])
    return Pictures(chosen, all_names, cutouts, torch.tensor([all_names.index(name) for name in chosen]))


def _cutout(file: Path) -> Tensor:
    try:
        with Image.open(file) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGBA"))).permute(2, 0, 1)
    except OSError as error:
        raise DatoError(f"cannot read the picture {file}: {error}") from error
    if pixels.shape != (4, SIZE, SIZE):
        raise DatoError(f"{file} has {pixels.shape[2]} x {pixels.shape[1]} pixels instead of {SIZE} x {SIZE}")
    return pixels
