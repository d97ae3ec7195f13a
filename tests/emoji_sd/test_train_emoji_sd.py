"""The training script on a toy package: all stages, a kill in between, further training, and bad input."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from dato.emoji_sd import CLIP, FOLDER, pictures
from dato.emoji_sd.training import tokenizer
from dato.emoji_sd.training.folders import whole_folder
from dato.emoji_sd.training.loop import decay
from dato.emoji_sd.training.recipe import Fit
from dato.metrics.clip_model import Clip

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_emoji_sd.py"
SHAPES = {"red ball": "red", "blue ball": "blue", "green box": "green", "gold box": "gold", "pink ring": "pink"}
UNET_STEPS = 12
TOY = ["--smoke", "--steps-unet", str(UNET_STEPS), "--names", "red ball, green box,pink ring", "--device", "cpu"]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder laid out like emoji-datasource-google, with shapes drawn here."""
    folder = tmp_path_factory.mktemp("npm") / "package"
    images = folder / "img" / "google" / "64"
    images.mkdir(parents=True)
    entries = []
    for index, (name, colour) in enumerate(SHAPES.items()):
        image = Image.new("RGBA", (64, 64))
        draw = ImageDraw.Draw(image)
        shape = draw.rectangle if "box" in name else draw.ellipse
        shape((8 + index, 10, 40, 50), fill=colour)
        image.save(images / f"{index}.png")
        entries.append({"name": name.upper(), "image": f"{index}.png", "category": "Objects", "has_img_google": True})
    entries.append({"name": None, "image": "none.png", "category": "Flags", "has_img_google": True})
    (folder / "emoji.json").write_text(json.dumps(entries))
    return folder


def script(*arguments):
    """Run the script in this process; its exit code."""
    before = sys.argv
    sys.argv = [str(SCRIPT), *map(str, arguments)]
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def finished(package, tmp_path_factory):
    """A run folder with all stages done."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert script("--out", out, "--data", package, *TOY) == 0
    finally:
        torch.set_num_threads(threads)
    return out


def test_the_export_has_the_shipped_layout(finished):
    def layout(folder, *others):
        found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        return {name for name in found if not name.endswith((".py", ".pyc", ".md"))} - set(others)

    assert layout(finished / "emoji-sd", "training.json") == layout(FOLDER)
    log = json.loads((finished / "emoji-sd" / "training.json").read_text())
    steps = {stage["stage"]: stage.get("steps") for stage in log["stages"]}
    assert steps == {"tokenizer": None, "clip": 3, "vae": 3, "unet": UNET_STEPS, "clip-image": 3}
    assert not list((finished / "unfinished").iterdir())
    texts = [file.read_text() for file in (finished / "emoji-sd").rglob("*.json")]
    assert not any(str(finished.parent) in text for text in texts)


def test_the_export_generates(finished):
    folder = finished / "emoji-sd"
    pipe = StableDiffusionPipeline.from_pretrained(folder / "pipe", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    prompts = json.loads((folder / "prompts.json").read_text())
    assert prompts["evaluation"][0] == "red ball on a blue background"
    image = pipe(prompts["evaluation"][0], num_inference_steps=2, output_type="pt").images
    assert image.shape == (1, 3, 64, 64) and image.isfinite().all()
    assert Clip(folder / "clip").score(image.float(), prompts["evaluation"][:1]).isfinite().all()
    assert load_file(folder / "statistics.safetensors")["count"].item() == 3 * 8 * 2
    weights = load_file(folder / "pipe" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}


@pytest.mark.thorough
def test_killed_and_rerun_gives_the_same_weights(finished, package, tmp_path):
    out = tmp_path / "killed"
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("unet", "clip-image", "emoji-sd"))
    arguments = ["--out", out, "--data", package, "--stages", "unet", "--save-seconds", 0, *TOY]
    run = subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])},
        stderr=subprocess.DEVNULL,
    )
    checkpoint = out / "unfinished" / "unet.pt"
    while not checkpoint.exists() and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    reached = torch.load(checkpoint, weights_only=True)["progressed"]["step"]
    assert 1 <= reached < UNET_STEPS and not (out / "unet").exists()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert script(*arguments) == 0
    finally:
        torch.set_num_threads(threads)
    file = Path("unet") / "diffusion_pytorch_model.safetensors"
    resumed, straight = load_file(out / file), load_file(finished / file)
    assert resumed.keys() == straight.keys()
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_a_finished_stage_is_left_alone(finished, package, capsys):
    log = finished / "vae" / "log.json"
    before = log.stat().st_mtime_ns
    assert script("--out", finished, "--data", package, "--stages", "vae", *TOY) == 0
    assert log.stat().st_mtime_ns == before
    assert script("--out", finished, "--data", package, "--stages", "vae", *TOY, "--steps-vae", 9) == 2
    assert "other settings" in capsys.readouterr().err


def test_training_goes_on_from_a_model(finished, package, tmp_path, capsys):
    arguments = ["--out", tmp_path, "--data", package, "--init", finished / "emoji-sd", *TOY, "--steps-unet", 1]
    assert script(*arguments, "--stages", "unet,export") == 0
    file = Path("unet") / "diffusion_pytorch_model.safetensors"
    old, new = load_file(finished / "emoji-sd" / "pipe" / file), load_file(tmp_path / "emoji-sd" / "pipe" / file)
    moved = max((old[name].float() - new[name].float()).abs().max().item() for name in old)
    assert 0 < moved < 0.01  # one step of AdamW moves a weight by the learning rate, 0.001
    assert script(*arguments, "--stages", "vae", "--out", tmp_path / "other") == 0
    assert script(*arguments, "--stages", "export", "--out", tmp_path / "other") == 2
    assert "does not fit" in capsys.readouterr().err


def bad_inputs(package, folder):
    archive = folder / "broken.tgz"
    archive.write_bytes(b"no archive")
    whole, cut = folder / "whole.tgz", folder / "cut.tgz"
    with tarfile.open(whole, "w:gz") as tar:
        tar.add(package, "package")
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (folder / "list").mkdir()
    (folder / "list" / "emoji.json").write_text("[1]")
    return {
        "does not exist": ["--data", folder / "missing"],
        "no emoji.json": ["--data", folder],
        "does not list emoji": ["--data", folder / "list"],
        "cannot unpack": ["--data", archive],
        "cannot unpack ": ["--data", cut],
        "'tomato'": ["--data", package],
        "'owl'": ["--data", package, "--names", "red ball,owl"],
        "no stage 'unett'": ["--data", package, *TOY, "--stages", "unett"],
        "'tokenizer' comes first": ["--data", package, *TOY, "--stages", "clip"],
        "'export' comes first": ["--data", package, *TOY, "--stages", "statistics"],
        "(--init)": ["--data", package, *TOY, "--init", folder],
        "--device is auto, cpu or cuda": ["--data", package, *TOY, "--device", "tpu"],
        "--precision is auto, bf16 or float32": ["--data", package, *TOY, "--precision", "fp8"],
    }


def test_bad_input_is_one_line(package, tmp_path, capsys):
    for expected, arguments in bad_inputs(package, tmp_path).items():
        capsys.readouterr()
        assert script("--out", tmp_path / "out", *arguments) == 2, expected
        error = capsys.readouterr().err
        assert expected in error and error.startswith("error:") and error.count("\n") == 1


def test_without_npm_the_message_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert script("--out", tmp_path / "out") == 2
    assert "npm is not installed" in capsys.readouterr().err


def test_an_archive_is_read_like_its_folder(package, tmp_path):
    from dato.emoji_sd.training.package import find

    archive = tmp_path / "emoji.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(package, "package")
    names = ["gold box"]
    packed, plain = (pictures.read(find(data, tmp_path / "run"), names) for data in (archive, package))
    assert packed.all_names == plain.all_names and torch.equal(packed.cutouts, plain.cutouts)
    assert find(archive, tmp_path / "run") == tmp_path / "run" / "package"


def test_pictures_are_pasted_with_their_alpha(package):
    read = pictures.read(package, ["blue ball"])
    captions = read.captions()
    index = torch.tensor([captions.index("blue ball on a red background")])
    plain, mirrored = read.paste(index)[0], read.paste(index, True)[0]
    assert (plain[:, 0, 0] * 255).tolist() == pytest.approx([214, 69, 65])
    assert plain[:, 30, 25].tolist() == [0, 0, 1]
    assert torch.equal(mirrored, plain.flip(-1)) and not torch.equal(mirrored, plain)
    trained = [captions[row] for row in read.known(trained_only=True)]
    assert len(trained) == 7 and pictures.splits(["blue ball"])["evaluation"][0] not in trained


def test_the_tokenizer_is_made_the_same_each_time(tmp_path):
    captions = [pictures.caption(name, colour) for name in pictures.NAMES for colour in pictures.COLOURS]
    made = []
    for place in ("a", "b"):
        folder = tmp_path / place
        folder.mkdir()
        tokenizer.write(folder, captions)
        made.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert made[0] == made[1]
    assert made[0]["tokenizer_config.json"] == (CLIP / "tokenizer_config.json").read_bytes()
    assert made[0]["special_tokens_map.json"] == (CLIP / "special_tokens_map.json").read_bytes()
    loaded = CLIPTokenizer.from_pretrained(tmp_path / "a")
    ids = loaded("Lion face on a red background").input_ids
    assert loaded.convert_ids_to_tokens(ids)[-4:] == ["a</w>", "red</w>", "background</w>", "<|endoftext|>"]


def test_the_learning_rate_is_constant_then_a_cosine():
    fit = Fit(steps=100, batch=1, learning_rate=1.0, constant=0.3)
    assert [decay(step, fit) for step in (0, 29, 30)] == [1, 1, 1]
    assert decay(65, fit) == pytest.approx(0.5) and decay(100, fit) == pytest.approx(0)


def test_a_folder_is_whole_or_old(tmp_path):
    target = tmp_path / "result"
    with whole_folder(target) as new:
        (new / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_folder(target) as new:
        (new / "file").write_text("half")
        raise KeyboardInterrupt
    assert (target / "file").read_text() == "old"
    with whole_folder(target) as new:
        (new / "file").write_text("new")
    assert (target / "file").read_text() == "new" and list(tmp_path.iterdir()) == [target]
