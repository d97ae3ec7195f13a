"""Folders of models that are damaged, or hold a variant only: one line that names the file, and never other images."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import PROMPTS, call
from safetensors.torch import load_file, save_file
from tiny_pipelines import tiny
from torch import nn

from dato import DatoError, load_front
from dato.generation.guidance import guidance_of
from dato.generation.pipelines import load_pipeline

UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3438167536\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of one tiny pipeline by what its weights are: safetensors, bin, or the variant fp16."""
    pipe = tiny("SD 1.x").pipe
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("safetensors", "bin", "fp16", "shards")}
    pipe.save_pretrained(folders["safetensors"])
    pipe.save_pretrained(folders["fp16"], variant="fp16")
    pipe.save_pretrained(folders["shards"])
    (folders["shards"] / UNET).unlink()
    pipe.unet.save_pretrained(folders["shards"] / "unet", max_shard_size="100KB")
    shutil.copytree(folders["safetensors"], folders["bin"], dirs_exist_ok=True)
    for file in folders["bin"].glob("*/*.safetensors"):
        name = "pytorch_model" if file.parent.name == "text_encoder" else "diffusion_pytorch_model"
        torch.save(load_file(file), file.with_name(f"{name}.bin"))
        file.unlink()
    return folders


@pytest.fixture
def copy(made, tmp_path):
    return lambda kind: shutil.copytree(made[kind], tmp_path / kind)


def refused(folder, **options):
    """The error of loading a folder, which is one line."""
    with pytest.raises(DatoError) as raised:
        load_pipeline(str(folder), **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def weights(pipe):
    models = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return {f"{part}.{name}": value for part, model in models.items() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["safetensors", "bin", "shards"])
def test_whole_folders_are_loaded(kind, made):
    own, expected = weights(load_pipeline(str(made[kind]))), weights(tiny("SD 1.x").pipe)
    assert own.keys() == expected.keys() and all(torch.equal(own[name], expected[name]) for name in expected)


def cut(file, share=0.5):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def old_pickle(file):
    """The format of torch before 1.6, cut off."""
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)
    cut(file, 0.9)


DAMAGES = {
    "pointer": (
        lambda file: file.write_bytes(POINTER),
        "is a pointer of Git LFS, .* run `git lfs pull`",
    ),
    "empty": (lambda file: file.write_bytes(b""), "is empty; copy or download it again"),
    "half": (cut, "is damaged or cut off .*: copy or download it again"),
    "almost whole": (partial(cut, share=0.999), "is damaged or cut off .*: copy or download it again"),
    "header": (lambda file: file.write_bytes(file.read_bytes()[:20]), "is damaged or cut off"),
    "text": (lambda file: file.write_text("<html>404"), "is damaged or cut off"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_damaged_weights_are_named(damage, kind, part, copy):
    change, message = DAMAGES[damage]
    [file] = (copy(kind) / part).glob(f"*.{kind}")
    change(file)
    assert re.search(f"^{re.escape(str(file))} .*{message}", refused(file.parent.parent))


def test_an_old_pickle_that_is_cut_off_is_named(copy):
    [file] = (copy("bin") / "text_encoder").glob("*.bin")
    old_pickle(file)
    assert str(file) in refused(file.parent.parent)


def test_what_is_not_loaded_may_be_damaged(copy):
    folder = copy("safetensors")
    for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors", "model.onnx"):
        (folder / "unet" / name).write_bytes(POINTER)
    (folder / "unet" / "._config.json").write_bytes(b"\0\5\x16\7")
    load_pipeline(str(folder))


def without(file, name):
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(("file", "name"), [(UNET, "conv_in.bias"), (TEXT, "final_layer_norm.weight")])
def test_missing_weights_are_named(file, name, copy):
    folder = copy("safetensors")
    [name] = [full for full in load_file(folder / file) if full.endswith(name)]
    without(folder / file, name)
    error = refused(folder)
    part = folder / file.partition("/")[0]
    assert error.startswith(f"{part} lacks weights, ") and error.endswith(": copy or download it again")
    assert name.removeprefix("text_model.") in error


def edited(name, value):
    def change(folder):
        data = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(data | {name: value}))

    return change


def broken(name, content):
    return lambda folder: (folder / name).write_text(content)


LAYOUTS = {
    "index is a list": (broken("model_index.json", "[1]"), r"model_index\.json is no index of a pipeline"),
    "index is cut": (broken("model_index.json", '{"_class'), r"model_index\.json is not JSON.*download it again"),
    "index is empty": (broken("model_index.json", ""), r"model_index\.json is not JSON"),
    "no index": (lambda folder: (folder / "model_index.json").unlink(), r"cannot read .*model_index\.json"),
    "class is a list": (edited("_class_name", ["a"]), r"model_index\.json is no index"),
    "a part is a list of one": (edited("unet", ["diffusers"]), r"index\.json: unet must be a library and a class"),
    "a part is a list of lists": (edited("vae", [["a"], 1]), r"index\.json: vae must be a library and a class"),
    "no unet": (lambda folder: shutil.rmtree(folder / "unet"), "lacks the folder unet"),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "lacks the folder tokenizer"),
    "no scheduler": (lambda folder: shutil.rmtree(folder / "scheduler"), "lacks the folder scheduler"),
    "unet's config is cut": (broken("unet/config.json", '{"a": '), r"unet/config\.json is not JSON.*download it again"),
    "text encoder's config": (broken("text_encoder/config.json", "{"), r"text_encoder/config\.json is not JSON"),
    "vae's config is a list": (broken("vae/config.json", "[]"), r"vae/config\.json must hold an object, not a list"),
    "scheduler's config": (broken("scheduler/scheduler_config.json", "x"), r"scheduler_config\.json is not JSON"),
    "no config": (lambda folder: (folder / "vae" / "config.json").unlink(), r"vae lacks config\.json"),
    "tokenizer's words": (broken("tokenizer/tokenizer.json", "{"), r"tokenizer/tokenizer\.json is not JSON"),
    "no words": (
        lambda folder: [(folder / "tokenizer" / n).unlink(True) for n in ("tokenizer.json", "vocab.json")],
        "tokenizer lacks the tokenizer's words",
    ),
    "no weights": (lambda folder: (folder / UNET).unlink(), "unet has no weights: copy or download it again"),
    "a width that is text": (broken("text_encoder/config.json", '{"hidden_size": "x"}'), "text_encoder: .*hidden_size"),
    "a number that is text": (
        broken("scheduler/scheduler_config.json", '{"num_train_timesteps": "x"}'),
        r"cannot load the model .*: scheduler: TypeError: \S",
    ),
    "a config of another model": (
        broken("unet/config.json", "{}"),
        "cannot load the model .*: unet: .* expected shape",
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_what_is_missing_or_broken_is_named(case, copy):
    change, message = LAYOUTS[case]
    folder = copy("safetensors")
    change(folder)
    error = refused(folder, dtype=torch.float16)
    assert re.search(message, error) and str(folder) in error
    assert torch.get_default_dtype() == torch.float32  # diffusers leaves it changed


def test_a_part_of_several_files_lacks_one(copy):
    folder = copy("shards")
    first, *_ = sorted((folder / "unet").glob("*.safetensors"))
    first.unlink()
    assert f"unet lacks {first.name}, which" in refused(folder)


def test_guidance_of_a_damaged_folder(copy):
    folder = copy("safetensors")
    assert guidance_of(str(folder)) == 7.5
    (folder / "unet" / "config.json").write_text("[]")
    with pytest.raises(DatoError, match=r"unet/config\.json must hold an object"):
        guidance_of(str(folder))


def test_a_variant_alone(copy, made):
    folder = copy("fp16")
    assert refused(folder).endswith("has only weights of the variant fp16: give `variant` fp16")
    own, expected = weights(load_pipeline(str(folder), variant="fp16")), weights(tiny("SD 1.x").pipe)
    assert all(torch.equal(own[name], expected[name]) for name in expected)
    assert refused(folder, variant="bf16").endswith("has no weights of the `variant` bf16; it has those of fp16")
    assert refused(made["safetensors"], variant="fp16").endswith("has no weights of the `variant` fp16: leave it out")
    assert "is for a folder or hub id, and 'emoji-sd' is none" in refused("emoji-sd", variant="fp16")
    [file] = (folder / "unet").glob("*.safetensors")
    cut(file)
    assert str(file) in refused(folder, variant="fp16")


def test_parts_without_the_variant_are_loaded_without(copy, made):
    folder = copy("fp16")
    [of_variant] = (folder / "vae").glob("*.safetensors")
    of_variant.rename(folder / "vae" / "diffusion_pytorch_model.safetensors")
    own, expected = weights(load_pipeline(str(folder), variant="fp16")), weights(tiny("SD 1.x").pipe)
    assert all(torch.equal(own[name], expected[name]) for name in expected)


def test_commands_take_a_variant_and_remember_it(copy, run, tmp_path, monkeypatch):
    folder = copy("fp16")
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(PROMPTS[:2]))
    tiny = ("--preset", "paper", "--steps", 3, "--images", 1, "--pop-size", 2, "--generations", 1, "--rounds", 0)
    tiny = (*tiny, "--quality", "psnr")
    size = ("--height", 32, "--width", 32, "--depths", "0,1", "--latency", "measured", "--dtype", "float32")
    search = ("search/search_depth.py", "--model", folder, "--prompts", "prompts.txt", *tiny, *size, "--out", "run")
    code, _, errors = run(*search)
    assert code == 2 and errors.endswith("has only weights of the variant fp16: give --variant fp16\n")
    code, _, errors = run(*search, "--variant", "fp16", "--quiet")
    assert code == 0, errors
    assert load_front("run").conditions["variant"] == "fp16"
    code, _, errors = run("search/search_depth.py", "--resume", "run", "--quiet")
    assert code == 0, errors
    code, _, errors = run("scripts/generate.py", "--strategy", "run", "--repeats", 1, "a dog")
    assert code == 0, errors
    asked = []

    def load(name, **options):
        asked.append((name, options["variant"]))
        raise DatoError("enough")

    # Commands import these when they run, and experiments when they are imported.
    for module in ("generation.pipelines", "experiments.benchmark"):
        monkeypatch.setattr(f"dato.{module}.load_pipeline", load)
    for module in ("evaluation.ray_pool", "experiments.paper_evaluation", "experiments.generalisation"):
        monkeypatch.setattr(f"dato.{module}.make_pool", lambda r, *_: load(r.model, variant=r.variant))
    own, prompts = (str(folder), "fp16"), ("--prompts", "prompts.txt")
    named = ("--model", folder, "--variant", "fp16")
    for expected, *command in (
        (own, "scripts/generate.py", "--strategy", "run", "a dog"),
        (own, "scripts/generate.py", "--strategy", "run", "--model", folder, "a dog"),
        (("a/b", None), "scripts/generate.py", "--strategy", "run", "--model", "a/b", "a dog"),
        (("a/b", "bf16"), "scripts/generate.py", "--strategy", "run", "--model", "a/b", "--variant", "bf16", "a dog"),
        (own, "search/search_ratio.py", "--depths", "run", "--images", 1, "--out", "ratio"),
        (own, "search/search_joint.py", *named, *prompts, "--images", 1, "--out", "joint"),
        (own, "scripts/evaluate.py", "run", *prompts),
        (own, "scripts/evaluate.py", *named, *prompts, "--methods", "steps"),
        (own, "scripts/generalise.py", "run", *prompts, "--images", 2),
        (own, "scripts/benchmark.py", *named, "--parts", "calls", "--out", "benchmark.json"),
        (own, "scripts/pruned_tokens.py", *named, "a dog"),
        (own, "scripts/compare_rule.py", *named, *prompts),
    ):
        code, _, errors = run(*command)
        assert code == 2 and "error: enough" in errors and asked.pop() == expected, (command, errors)


def test_a_plan_says_how_its_model_is_loaded(copy, tmp_path, monkeypatch, capsys):
    folder = copy("fp16")
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(PROMPTS[:2]))
    size = ("--height", 32, "--width", 32, "--steps", 6, "--speedup", 1.1, "--dtype", "float32")
    plan = ("plan", "--model", folder, "--variant", "fp16", "--prompts", "prompts.txt", *size)
    code, _, errors = call(monkeypatch, capsys, *plan)
    assert code == 0, errors
    conditions = load_front("plan.json").conditions
    assert (conditions["model"], conditions["variant"]) == (str(folder), "fp16") and "config" not in conditions
    code, _, errors = call(monkeypatch, capsys, "generate", "--strategy", "plan.json", "--repeats", 1, "a dog")
    assert code == 0, errors
