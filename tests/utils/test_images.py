"""Pictures of every kind are read as three channels from 0 to 1, and errors name unreadable ones."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dato import DatoError
from dato.utils.images import png, read_image


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA"])
def test_every_kind_of_picture_has_three_channels(tmp_path, mode):
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(colours).convert(mode)
    picture.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 5, 7) and image.min() >= 0 and image.max() <= 1
    assert torch.equal(
        (image * 255).round().to(torch.uint8), torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    )


def test_a_png_holds_an_image_to_8_bits():
    image = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
    found = np.asarray(Image.open(io.BytesIO(png(image))))
    assert np.abs(found / 255 - image.permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
    assert np.asarray(Image.open(io.BytesIO(png(image * 3 - 1)))).max() == 255  # clipped, not wrapped


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_picture_is_named(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DatoError, match=r"bad\.png: cannot be read as a picture"):
        read_image(tmp_path / "bad.png")
    with pytest.raises(DatoError, match=r"none\.png"):
        read_image(tmp_path / "none.png")
