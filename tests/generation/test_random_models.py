"""Pipelines with random weights: they have the published sizes, all weights, and give finite images."""

import pytest
import torch
from torch import nn

import dato
from dato.generation.pipelines import load_pipeline
from dato.generation.random_models import RANDOM_MODELS, random_pipeline
from dato.generation.sampling import Sampling, generate
from dato.unet.ladder import Ladder

# The published models' numbers of parameters.
SIZES = {
    "sd15-random": {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    "sd21-random": {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863},
    "sdxl-random": {
        "unet": 2_567_463_684,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "vae": 83_653_863,
    },
}
RUNGS = {"sd15-random": 12, "sd21-random": 12, "sdxl-random": 9}


def tiny(name, **options):
    """The same pipeline with few channels: its blocks, its layers, its way to generate."""
    heads = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    width = (32, 32, 64) if name == "sdxl-random" else (32, 32, 64, 64)
    overrides = {
        "unet": {"block_out_channels": width, "attention_head_dim": 4, "cross_attention_dim": 32, "sample_size": 16},
        "vae": {"block_out_channels": (32,) * 4, "layers_per_block": 1, "sample_size": 128},
        "text_encoder": heads,
    }
    if name == "sdxl-random":
        overrides["text_encoder_2"] = {**heads, "projection_dim": 32}
        overrides["unet"] |= {"cross_attention_dim": 64, "transformer_layers_per_block": (1, 2, 3)}
        overrides["unet"]["projection_class_embeddings_input_dim"] = 6 * 256 + 32
    return random_pipeline(name, overrides=overrides, **options)


def models(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


@pytest.mark.parametrize("name", RANDOM_MODELS)
def test_parts_have_the_published_sizes(name):
    pipe = random_pipeline(name, device="meta")
    assert {part: sum(p.numel() for p in m.parameters()) for part, m in models(pipe).items()} == SIZES[name]
    assert len(Ladder(pipe.unet)) == RUNGS[name]
    assert pipe.tokenizer("a cat", padding="max_length")["input_ids"][-1] < pipe.text_encoder.config.vocab_size
    assert len(pipe.tokenizer("a cat", padding="max_length")["input_ids"]) == 77
    assert pipe.vae.config.scaling_factor == (0.13025 if name == "sdxl-random" else 0.18215)


@pytest.mark.parametrize("name", RANDOM_MODELS)
def test_a_small_one_generates_finite_images_stock_and_patched(name):
    pipe = tiny(name)
    pipe.set_progress_bar_config(disable=True)
    sampling = Sampling(steps=3, height=64, width=64, batch_size=1)
    stock = generate(pipe, ["red apple"], sampling).images
    assert stock.shape == (1, 3, 64, 64) and stock.isfinite().all() and stock.std() > 0
    calls = len(pipe.scheduler.timesteps)  # PLMS makes one more than there are steps
    with dato.patched(pipe, dato.Schedule((12, 1, 0, 12)[:calls], 0.5)):
        quick = generate(pipe, ["red apple"], sampling).images
    assert quick.isfinite().all() and not torch.equal(quick, stock)
    assert torch.equal(generate(pipe, ["red apple"], sampling).images, stock)


@pytest.mark.parametrize("name", RANDOM_MODELS)
def test_every_tensor_is_there_and_as_it_should_be(name):
    for model in models(tiny(name, dtype=torch.float16)).values():
        assert not model.training
        for path, tensor in model.named_parameters():
            assert tensor.dtype == torch.float16 and tensor.device.type == "cpu" and tensor.isfinite().all(), path
            if path.endswith("bias"):
                assert not tensor.any(), path
            elif tensor.dim() == 1:
                assert (tensor == 1).all(), path
            else:
                spread = (tensor.float().std() * tensor[0].numel() ** 0.5).item()
                assert spread == pytest.approx(1, abs=4 / tensor.numel() ** 0.5), path
        for path, buffer in model.named_buffers():
            assert path.endswith("position_ids") and torch.equal(buffer, torch.arange(77)[None])


def test_the_seed_decides_the_weights():
    first, same, other = (tiny("sd15-random", seed=seed).unet.conv_in.weight for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_a_model_can_be_loaded_by_its_name(monkeypatch):
    monkeypatch.setattr(
        "dato.generation.pipelines.random_pipeline", lambda name, device, dtype: tiny(name, dtype=dtype)
    )
    pipe = load_pipeline("sdxl-random", dtype=torch.bfloat16, scheduler="dpm++2m")
    assert type(pipe).__name__ == "StableDiffusionXLPipeline" and pipe.dtype == torch.bfloat16
    assert type(pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"


def test_another_name_is_an_error():
    with pytest.raises(dato.DatoError, match="sd15-random, sd21-random, sdxl-random"):
        random_pipeline("sd3-random")
