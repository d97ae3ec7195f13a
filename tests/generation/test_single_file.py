"""Models in one file under the original (CompVis) names: the same weights and images, and clear errors for all else."""

import pickle
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import PROMPTS
from safetensors.torch import save_file
from torch import nn
from which_tests import thorough

from dato import DatoError, load_front
from dato.cli.options import model_place
from dato.generation.guidance import guidance_of
from dato.generation.pipelines import load_pipeline
from dato.generation.random_models import RANDOM_MODELS, random_pipeline
from dato.generation.sampling import Sampling, generate
from dato.unet.ladder import Ladder

SAMPLING = Sampling(steps=2, batch_size=1)
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE = {
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0": "mid.attn_1",
    "group_norm": "norm",
    r"to_out\.0": "proj_out",
    r"to_([qkv])\.": r"\1.",
    r"down_blocks\.(\d)\.resnets\.": r"down.\1.block.",
    r"down_blocks\.(\d)\.downsamplers\.0": r"down.\1.downsample",
    r"up_blocks\.(\d)\.resnets\.": lambda found: f"up.{3 - int(found[1])}.block.",
    r"up_blocks\.(\d)\.upsamplers\.0": lambda found: f"up.{3 - int(found[1])}.upsample",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
}
OPEN_CLIP = {
    r"encoder\.layers": "transformer.resblocks",
    r"self_attn\.out_proj": "attn.out_proj",
    r"layer_norm(\d)": r"ln_\1",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
    "final_layer_norm": "ln_final",
    r"embeddings\.position_embedding\.weight": "positional_embedding",
    r"embeddings\.token_embedding": "token_embedding",
}


def models(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


@cache
def small(name):
    """A pipeline of a published shape with few channels, and no two weights alike."""
    text = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    double = name == "sdxl-random"
    unet = {"norm_num_groups": 4, "attention_head_dim": 2, "sample_size": 8}
    overrides = {
        "unet": {**unet, "block_out_channels": (8, 8, 16, 16), "cross_attention_dim": 8},
        "vae": {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "sample_size": 64},
        "text_encoder": text,
    }
    if double:
        more = {"transformer_layers_per_block": (1, 2, 3), "projection_class_embeddings_input_dim": 6 * 256 + 12}
        overrides["unet"] |= {**more, "block_out_channels": (8, 8, 16), "cross_attention_dim": 8 + 12}
        overrides["text_encoder_2"] = {**text, "hidden_size": 12, "projection_dim": 12}
    pipe = random_pipeline(name, overrides=overrides)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    for model in models(pipe).values():
        for weight in model.parameters():  # norms and biases too: of a new model they are all alike
            weight.data.normal_(0.0, 0.3, generator=generator)
    return pipe


def unet_names(unet):
    """A rung is CompVis's input block going down, and output blocks are counted from the lowest going up."""
    places = {unet.time_embedding.linear_1: "time_embed.0", unet.time_embedding.linear_2: "time_embed.2"}
    places |= {unet.conv_norm_out: "out.0", unet.conv_out: "out.2"}
    if unet.config.addition_embed_type is not None:
        places |= {unet.add_embedding.linear_1: "label_emb.0.0", unet.add_embedding.linear_2: "label_emb.0.2"}
    (first, last), [attention] = unet.mid_block.resnets, unet.mid_block.attentions
    places |= {first: "middle_block.0", attention: "middle_block.1", last: "middle_block.2"}
    ladder = Ladder(unet)
    for number, rung in enumerate(ladder.rungs):
        down, up = f"input_blocks.{number}", f"output_blocks.{len(ladder) - 1 - number}"
        places |= {rung.down.conv: f"{down}.0.op"} if rung.downsample else {rung.down: f"{down}.0"}
        places |= {rung.down_attention: f"{down}.1", rung.up: f"{up}.0", rung.up_attention: f"{up}.1"}
        places[rung.upsampler] = f"{up}.{1 if rung.up_attention is None else 2}"
    places.pop(None, None)
    tensors = {}
    for module, place in places.items():
        for name, tensor in module.state_dict().items():
            begin, *rest = name.split(".")
            tensors[".".join([place, RESNET.get(begin, begin), *rest])] = tensor
    assert len(tensors) == len(unet.state_dict())
    return tensors


def renamed(tensors, rules):
    """Names by regular expressions, one after another."""
    names = {name: name for name in tensors}
    for pattern, new in rules.items():
        names = {name: re.sub(pattern, new, now) for name, now in names.items()}
    return {names[name]: tensor for name, tensor in tensors.items()}


def vae_names(vae):
    tensors = renamed(vae.state_dict(), VAE)
    # Its attention's projections were convolutions.
    conv = re.compile(r"attn_1\.(q|k|v|proj_out)\.weight")
    return {name: t[..., None, None] if conv.search(name) else t for name, t in tensors.items()}


def clip_names(encoder):
    return {f"text_model.{name.removeprefix('text_model.')}": t for name, t in encoder.state_dict().items()}


def open_clip_names(encoder):
    """Queries, keys and values lie in one matrix, and the projection is the other way round."""
    tensors = renamed({n.removeprefix("text_model."): t for n, t in encoder.state_dict().items()}, OPEN_CLIP)
    if "text_projection.weight" in tensors:
        tensors["text_projection"] = tensors.pop("text_projection.weight").T
    for name in [name for name in tensors if ".q_proj." in name]:
        parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        joint = name.replace("self_attn.q_proj.", "attn.in_proj_")
        tensors[joint] = torch.cat(parts)
    return tensors


def original(pipe):
    """All weights of a pipeline under the original names."""
    parts = {"model.diffusion_model": unet_names(pipe.unet), "first_stage_model": vae_names(pipe.vae)}
    if hasattr(pipe, "text_encoder_2"):
        parts["conditioner.embedders.0.transformer"] = clip_names(pipe.text_encoder)
        parts["conditioner.embedders.1.model"] = open_clip_names(pipe.text_encoder_2)
    elif pipe.text_encoder.config.hidden_act == "gelu":  # OpenCLIP's
        parts["cond_stage_model.model"] = open_clip_names(pipe.text_encoder)
    else:
        parts["cond_stage_model.transformer"] = clip_names(pipe.text_encoder)
    return {f"{part}.{name}": t.contiguous() for part, found in parts.items() for name, t in found.items()}


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """The folder of a small pipeline's configuration, without weights."""

    @cache
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        small(name).save_pretrained(folder)
        weights = list(folder.glob("**/*.safetensors"))
        assert len(weights) >= 3
        for file in weights:
            file.unlink()
        return str(folder)

    return make


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    """A small SD 1.5 as a file."""
    file = tmp_path_factory.mktemp("file") / "model.safetensors"
    save_file(original(small("sd15-random")), file)
    return file


def same_weights(pipe, expected, dtype=torch.float32):
    for name, model in models(expected).items():
        own, wanted = getattr(pipe, name).state_dict(), model.state_dict()
        assert own.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert own[key].dtype == dtype and torch.equal(own[key], tensor.to(dtype)), f"{name}.{key}"


@pytest.mark.parametrize("name", RANDOM_MODELS)
@pytest.mark.parametrize("kind", ["safetensors", *thorough("ckpt", "ckpt with state_dict")])
def test_weights_and_images_are_those_of_the_pipeline(name, kind, layout, tmp_path):
    expected, file = small(name), tmp_path / f"model.{kind.split()[0]}"
    tensors = original(expected)
    if kind == "safetensors":
        save_file(tensors, file)
    else:
        torch.save({"state_dict": tensors, "global_step": 7} if "state_dict" in kind else tensors, file)
    pipe = load_pipeline(str(file), config=layout(name))
    assert type(pipe) is type(expected) and type(pipe.scheduler) is type(expected.scheduler)
    assert getattr(pipe, "safety_checker", None) is None
    same_weights(pipe, expected)
    wanted = generate(expected, PROMPTS[:1], SAMPLING).images
    assert wanted.isfinite().all() and wanted.std() > 0
    assert (generate(pipe, PROMPTS[:1], SAMPLING).images - wanted).abs().max() == 0.0


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_half_precision(stored, layout, tmp_path):
    expected, file = small("sd15-random"), tmp_path / "model.safetensors"
    save_file({name: tensor.to(stored) for name, tensor in original(expected).items()}, file)
    same_weights(load_pipeline(str(file), config=layout("sd15-random"), dtype=torch.float16), expected, torch.float16)


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return exec, (f"open({self.mark!r}, 'w').close()",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_more_than_tensors_is_not_run(zipped, layout, tmp_path):
    file, mark = tmp_path / "model.ckpt", tmp_path / "run"
    content = {"state_dict": original(small("sd15-random")), "more": Malicious(mark)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    torch.load(file, weights_only=False)
    assert mark.exists()  # as it would be
    mark.unlink()
    with pytest.raises(DatoError, match=r"could run any code and is not loaded: use the model's \.safetensors$"):
        load_pipeline(str(file), config=layout("sd15-random"))
    file.write_bytes(pickle.dumps(Malicious(mark)))
    with pytest.raises(DatoError, match="could run any code"):
        load_pipeline(str(file), config=layout("sd15-random"))
    assert not mark.exists()


def test_every_reading_of_a_ckpt_is_of_tensors_only(layout, tmp_path, monkeypatch):
    file, asked, load = tmp_path / "model.ckpt", [], torch.load
    torch.save(original(small("sd15-random")), file)
    monkeypatch.setattr(torch, "load", lambda *a, **options: asked.append(options) or load(*a, **options))
    load_pipeline(str(file), config=layout("sd15-random"))
    assert len(asked) >= 2 and all(options["weights_only"] is True for options in asked)  # ours and diffusers'


def without(*parts):
    return lambda tensors: {n: t for n, t in tensors.items() if not n.startswith(parts)}


CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
CLIP = "cond_stage_model.transformer.text_model"
WRONG = {
    "LoRA": (lambda _: {"lora_unet_mid_block.lora_down.weight": torch.ones(2)}, "is a LoRA"),
    "UNet": (without("first", "cond"), "has no VAE and no text encoder"),
    "VAE": (without("model", "cond"), "has no UNet and no text encoder"),
    "no VAE": (without("first"), "has no VAE under"),
    "Flux": (lambda _: {"double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(2)}, "is a transformer"),
    "SD 3": (lambda _: {"model.diffusion_model.joint_blocks.0.x.bias": torch.ones(2)}, "is a transformer"),
    "inpainting": (lambda tensors: tensors | {CONV_IN: torch.ones(8, 9, 3, 3)}, "takes 9 channels"),
    "one too few": (without("first_stage_model.decoder.norm_out.bias"), "lacks weights that the configuration"),
    "no text layer": (without(f"{CLIP}.encoder.layers.1.mlp"), "lacks weights that the configuration"),
    "one too many": (lambda tensors: tensors | {"model.diffusion_model.more": torch.ones(2)}, "weights of a UNet"),
    "other width": (lambda tensors: tensors | {CONV_IN: torch.ones(12, 4, 3, 3)}, "cannot load .* expected shape"),
    "nothing": (lambda _: {}, "has no UNet and no VAE and no text encoder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_with_something_else_is_named(case, layout, tmp_path):
    change, message = WRONG[case]
    save_file(change(original(small("sd15-random"))), file := tmp_path / "model.safetensors")
    with pytest.raises(DatoError, match=message) as raised:
        load_pipeline(str(file), config=layout("sd15-random"))
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_missing_and_damaged_files(suffix, layout, sd15, tmp_path):
    file = tmp_path / f"model.{suffix}"
    with pytest.raises(DatoError, match=r"model.* no such file"):
        load_pipeline(str(file), config=layout("sd15-random"))
    if suffix == "ckpt":
        torch.save(original(small("sd15-random")), file)
    else:
        file.write_bytes(sd15.read_bytes())
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"version https://git-lfs.github.com/spec/v1\n"):
        file.write_bytes(content)
        with pytest.raises(DatoError, match="is damaged") as raised:
            load_pipeline(str(file), config=layout("sd15-random"))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", ["SAFETENSORS", "Ckpt"])
def test_suffixes_in_capitals(suffix, layout, sd15, tmp_path):
    file, expected = tmp_path / f"MODEL.{suffix}", small("sd15-random")
    if suffix == "SAFETENSORS":
        file.write_bytes(sd15.read_bytes())
    else:
        torch.save(original(expected), file)
    pipe = load_pipeline(str(file), config=layout("sd15-random"))
    same_weights(pipe, expected)
    assert pipe.name_or_path == str(file) and guidance_of(str(file)) == 7.5
    with pytest.raises(DatoError, match=rf"other\.{suffix}: no such file"):  # and it is no hub id
        load_pipeline(f"{tmp_path}/other.{suffix}")


def test_a_damaged_configuration_is_named(sd15, layout, tmp_path):
    folder = shutil.copytree(layout("sd15-random"), tmp_path / "config")
    (folder / "vae" / "config.json").write_text("[]")
    with pytest.raises(DatoError, match=r"vae/config\.json must hold an object, not a list"):
        load_pipeline(str(sd15), config=str(folder))
    (folder / "vae" / "config.json").write_text('{"block_out_channels": 7}')
    with pytest.raises(DatoError, match=r"cannot load .* with the configuration .*: TypeError: ") as raised:
        load_pipeline(str(sd15), config=str(folder))
    assert "\n" not in str(raised.value)


def test_other_files_are_no_models(tmp_path):
    torch.save([1], file := tmp_path / "list.ckpt")
    with pytest.raises(DatoError, match="no tensors by name"):
        load_pipeline(str(file))
    (other := tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(DatoError, match=r"is a \.safetensors or \.ckpt"):
        load_pipeline(str(other))


def test_configurations_that_cannot_be_had_or_do_not_fit(sd15, layout, tmp_path):
    for options in ({}, {"config": "nobody/nothing"}, {"config": str(tmp_path / "nowhere")}):
        name = options.get("config", "stable-diffusion-v1-5/stable-diffusion-v1-5")
        with pytest.raises(DatoError, match=rf"cannot fetch the configuration {name}, .* give `config`") as raised:
            load_pipeline(str(sd15), **options)
        assert "\n" not in str(raised.value)
    with pytest.raises(DatoError, match=r"no pipeline in diffusers' layout: cannot read .*model_index\.json"):
        load_pipeline(str(sd15), config=str(tmp_path))
    with pytest.raises(DatoError, match="of a StableDiffusionXLPipeline, and the file is Stable Diffusion 1"):
        load_pipeline(str(sd15), config=layout("sdxl-random"))
    with pytest.raises(DatoError, match="'emoji-sd' is none: leave it out"):
        load_pipeline("emoji-sd", config=layout("sd15-random"))


@pytest.mark.parametrize("name", RANDOM_MODELS)
def test_the_configuration_that_is_fetched_is_the_familys(name, layout, tmp_path, monkeypatch):
    hub = {
        "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15-random",
        "stabilityai/stable-diffusion-2-1": "sd21-random",
        "stabilityai/stable-diffusion-xl-base-1.0": "sdxl-random",
    }
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda place, allow_patterns: layout(hub[place]))
    save_file(original(small(name)), file := tmp_path / "model.safetensors")
    same_weights(load_pipeline(str(file)), small(name))


def test_guidance_of_the_papers_goes_by_the_file(sd15, tmp_path):
    save_file(original(small("sd21-random")), file := tmp_path / "model.safetensors")
    assert guidance_of(str(sd15)) == 7.5 and guidance_of(str(file)) == 9.0


def test_a_models_place(tmp_path, monkeypatch):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a1b").write_bytes(b"")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "0a1b")
    (tmp_path / "emoji-sd").mkdir()
    monkeypatch.chdir(tmp_path / "blobs")
    # A file keeps the name that says what it is; what comes with dato is no folder.
    assert model_place("../model.safetensors") == str(tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert model_place("emoji-sd") == "emoji-sd" and model_place("blobs") == str(tmp_path / "blobs")
    assert model_place("some/hub-id") == "some/hub-id" and model_place(None) is None


def test_commands_take_files_and_remember_them(sd15, layout, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(sd15.parent)
    Path("prompts.txt").write_text("\n".join(PROMPTS[:2]))
    Path("config").symlink_to(layout("sd15-random"))
    capsys.readouterr()  # what saving it printed
    model = ("--model", "model.safetensors")
    tiny = ("--preset", "paper", "--steps", 3, "--images", 1, "--pop-size", 2, "--generations", 1, "--rounds", 0)
    tiny = (*tiny, "--quality", "psnr")
    search = (*model, *tiny, "--latency", "measured", "--prompts", "prompts.txt", "--out", tmp_path / "run", "--quiet")
    code, _, errors = run("search/search_depth.py", *search)
    assert code == 2 and re.fullmatch(r"error: cannot fetch the configuration .* give --config .*\n", errors)
    code, _, errors = run("search/search_depth.py", *search, "--config", "config")
    assert code == 0, errors
    where = {"model": str(sd15), "config": layout("sd15-random")}
    front = load_front(tmp_path / "run")
    assert {name: front.conditions[name] for name in where} == where

    # From elsewhere, and without saying so again.
    monkeypatch.chdir(tmp_path)
    code, _, errors = run("search/search_depth.py", "--resume", "run")
    assert code == 0 and "candidates are known" in errors
    again = load_front("run")
    assert again.points == front.points and again.conditions["config"] == where["config"]
    asked = []

    def load(name, **options):
        asked.append((name, options["config"]))
        raise DatoError("enough")

    # Commands import these when they run, and experiments when they are imported.
    for module in ("generation.pipelines", "experiments.benchmark"):
        monkeypatch.setattr(f"dato.{module}.load_pipeline", load)
    for module in ("evaluation.ray_pool", "experiments.paper_evaluation", "experiments.generalisation"):
        monkeypatch.setattr(f"dato.{module}.make_pool", lambda r, *_: load(r.model, config=r.config))
    own, prompts = tuple(where.values()), ("--prompts", sd15.parent / "prompts.txt")
    named = ("--model", own[0], "--config", own[1])
    for expected, *command in (
        (own, "scripts/generate.py", "--strategy", "run", "a dog"),
        (own, "scripts/generate.py", "--strategy", "run", "--model", sd15, "a dog"),
        (("emoji-sd", None), "scripts/generate.py", "--strategy", "run", "--model", "emoji-sd", "a dog"),
        ((own[0], "other"), "scripts/generate.py", "--strategy", "run", "--config", "other", "a dog"),
        (own, "search/search_ratio.py", "--depths", "run", "--images", 1, "--out", "ratio"),
        (("a/b", None), "search/search_ratio.py", "--depths", "run", "--images", 1, "--model", "a/b", "--out", "ratio"),
        (own, "search/search_joint.py", *named, *prompts, "--images", 1, "--out", "joint"),
        (own, "scripts/evaluate.py", "run", *prompts),
        (("a/b", None), "scripts/evaluate.py", "run", "--model", "a/b", *prompts),
        (own, "scripts/evaluate.py", *named, *prompts, "--methods", "steps"),
        (own, "scripts/generalise.py", "run", *prompts, "--images", 2),
        (own, "scripts/benchmark.py", *named, "--parts", "calls", "--out", "benchmark.json"),
        (own, "scripts/pruned_tokens.py", *named, "a dog"),
    ):
        code, _, errors = run(*command)
        assert code == 2 and "error: enough" in errors and asked.pop() == expected, (command, errors)
