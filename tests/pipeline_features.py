"""What every pipeline is tested with: features and samplers, and how a pipeline is checked."""

from __future__ import annotations

import copy
import warnings
from functools import cache, partial

import pytest
import torch
from devices import device
from tiny_pipelines import PIPELINES, PROMPT, SIZE, sample, tiny

import dato
from dato import Schedule

SAMPLERS = (
    "plms",
    "ddim",
    "ddpm",
    "euler",
    "euler-a",
    "dpm++2m",
    "dpm++2m-karras",
    "dpm++2m-sde",
    "dpm++sde",
    "heun",
    "unipc",
    "lms",
    "lcm",
)


def schedule_for(unet) -> Schedule:
    """Whole, shallow and absent calls, forecasts and pruning, for whatever height."""
    rungs = len(dato.unet.ladder.Ladder(unet))
    return Schedule([rungs, 1, rungs, 0, 3], [0, 0.5, 0.25, 0, 0], [0, 0, 0, 1, 1], rungs)


@cache
def plainly(name: str) -> torch.Tensor:
    """What the schedule gives where nothing else is done to the pipeline."""
    pipe, kwargs = tiny(name)
    return sample(dato.apply_patch(pipe, schedule_for(pipe.unet)), kwargs)


def check(pipe, kwargs, thorough=False, exact=True, expected=None, **more) -> None:
    """Stock, and full depth on it; a schedule, which differs, is finite and repeatable; and stock again."""
    same = torch.equal if exact else partial(torch.allclose, rtol=1e-3, atol=1e-3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the schedule has .* calls")
        stock = sample(pipe, kwargs, **more)
        assert torch.isfinite(stock).all()
        dato.apply_patch(pipe, Schedule.full(1))
        assert same(sample(pipe, kwargs, **more), stock)
        dato.apply_patch(pipe, schedule_for(dato.unet.targets.unet_of(pipe)[0]))
        first = sample(pipe, kwargs, **more)
        assert first.shape == stock.shape and torch.isfinite(first).all() and not same(first, stock)
        if expected is not None:
            assert torch.allclose(first, expected, rtol=1e-2, atol=1e-2)
        if thorough:
            assert torch.equal(sample(pipe, kwargs, **more), first)
        dato.remove_patch(pipe)
        assert torch.equal(sample(pipe, kwargs, **more), stock)


class Reading:
    """An attention processor of the user's own, in the manner of xformers': it sees (B, tokens, C)."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs):
        x, context = hidden_states, hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (attn.head_to_batch_dim(part) for part in (attn.to_q(x), attn.to_k(context), attn.to_v(context)))
        weights = torch.softmax(q @ k.transpose(-1, -2) * attn.scale, dim=-1)
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(weights @ v)))


def _lora(unet, seed: int = 11) -> None:
    from peft import LoraConfig

    torch.manual_seed(seed)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv_shortcut"]
    unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False))


def lora(pipe, kwargs):
    _lora(pipe.unet)


def lora_loaded_after_patching(pipe, kwargs):
    other = copy.deepcopy(pipe)
    dato.apply_patch(pipe, schedule_for(pipe.unet))
    _lora(pipe.unet)
    _lora(other.unet)
    dato.apply_patch(other, schedule_for(other.unet))
    assert torch.equal(sample(other, kwargs), sample(pipe, kwargs))


def lora_fused(pipe, kwargs):
    _lora(pipe.unet)
    unfused = sample(dato.apply_patch(pipe, schedule_for(pipe.unet)), kwargs)
    pipe.unet.fuse_lora()
    assert torch.allclose(sample(pipe, kwargs), unfused, atol=1e-2)
    pipe.unet.unfuse_lora()
    assert torch.allclose(sample(pipe, kwargs), unfused, atol=1e-2)
    pipe.unet.fuse_lora()


def textual_inversion(pipe, kwargs):
    if getattr(pipe, "text_encoder", None) is None or not hasattr(pipe, "load_textual_inversion"):
        pytest.skip(f"{type(pipe).__name__} loads none into a first text encoder")
    torch.manual_seed(12)
    pipe.tokenizer = type(pipe.tokenizer).from_pretrained(dato.emoji_sd.PIPE / "tokenizer", model_max_length=16)
    pipe.load_textual_inversion({"<thing>": torch.randn(8)}, token="<thing>")
    return {"prompt": f"<thing> {PROMPT}"}


def free_u(pipe, kwargs):
    pipe.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def attention_slicing(pipe, kwargs):
    if any("IPAdapter" in type(p).__name__ for p in pipe.unet.attn_processors.values()):
        pytest.skip("slices would take the place of the image prompt's processors")
    pipe.enable_attention_slicing(1)


def own_attention_processor(pipe, kwargs):
    if any("IPAdapter" in type(p).__name__ for p in pipe.unet.attn_processors.values()):
        pytest.skip("the image prompt is a processor itself")
    pipe.unet.set_attn_processor(Reading())


def model_cpu_offload(pipe, kwargs):
    pipe.enable_model_cpu_offload(device=device())


def sequential_cpu_offload(pipe, kwargs):
    from accelerate import cpu_offload

    cpu_offload(pipe.unet, device(), offload_buffers=True)  # as diffusers does, which asks for a GPU


def group_offload_of_blocks(pipe, kwargs):
    pipe.unet.enable_group_offload(device(), offload_type="block_level", num_blocks_per_group=2)


def group_offload_of_leaves(pipe, kwargs):
    pipe.unet.enable_group_offload(device(), offload_type="leaf_level")


def compiled_by_the_user(pipe, kwargs):
    pipe.unet = torch.compile(pipe.unet, fullgraph=True)


def compiled_in_place(pipe, kwargs):
    pipe.unet.compile(fullgraph=True)


def bfloat16(pipe, kwargs):
    pipe.to(torch.bfloat16)


def float16(pipe, kwargs):
    pipe.to(torch.float16)


def channels_last(pipe, kwargs):
    pipe.unet.to(memory_format=torch.channels_last)


def no_guidance(pipe, kwargs):
    more = {"guidance_scale": 1.0}
    if "ip_adapter_image_embeds" in kwargs:
        more["ip_adapter_image_embeds"] = [kwargs["ip_adapter_image_embeds"][0][1:]]
    return more


def images_per_prompt(pipe, kwargs):
    return {"num_images_per_prompt": 2}


def callback_on_step_end(pipe, kwargs):
    def gentler(pipe, step, timestep, values):
        return {"latents": values["latents"] * 0.99}

    return {"callback_on_step_end": gentler}


def interrupt(pipe, kwargs):
    """A run that is broken off leaves nothing to the next."""
    if not hasattr(type(pipe), "interrupt"):
        pytest.skip(f"{type(pipe).__name__} cannot be interrupted")

    def stop(pipe, step, timestep, values):
        pipe._interrupt = step >= 2
        return values

    dato.apply_patch(pipe, schedule_for(pipe.unet))
    expected = sample(pipe, kwargs)
    assert not torch.equal(sample(pipe, kwargs, callback_on_step_end=stop), expected)
    assert torch.equal(sample(pipe, kwargs), expected)


def guidance_rescale(pipe, kwargs):
    return {"guidance_rescale": 0.7}


def other_size(pipe, kwargs):
    if hasattr(pipe, "adapter"):
        pytest.skip("an adapter's picture has to have the size, and halves another way than the UNet")
    return {"height": SIZE + 8, "width": SIZE - 8}


def _title(function) -> str:
    words = function.__name__.replace("_", " ")
    return words.replace("lora", "LoRA").replace("cpu", "CPU").replace("free u", "FreeU")


FEATURES = {
    _title(function): function
    for function in (
        lora,
        lora_loaded_after_patching,
        lora_fused,
        textual_inversion,
        free_u,
        attention_slicing,
        own_attention_processor,
        model_cpu_offload,
        sequential_cpu_offload,
        group_offload_of_blocks,
        group_offload_of_leaves,
        compiled_by_the_user,
        compiled_in_place,
        bfloat16,
        float16,
        channels_last,
        no_guidance,
        images_per_prompt,
        callback_on_step_end,
        interrupt,
        guidance_rescale,
        other_size,
    )
}


# What must make no difference to the schedule's image either.
INVISIBLE = {
    "attention slicing",
    "own attention processor",
    "model CPU offload",
    "sequential CPU offload",
    "group offload of blocks",
    "group offload of leaves",
    "compiled by the user",
    "compiled in place",
    "channels last",
}


# What an argument of the call is needed for.
NEEDS = {
    "images per prompt": "num_images_per_prompt",
    "callback on step end": "callback_on_step_end",
    "interrupt": "callback_on_step_end",
    "guidance rescale": "guidance_rescale",
    "other size": "height",
}


def cells() -> list[tuple[str, str]]:
    """All cells of the table in the docs."""
    return [(name, column) for name in PIPELINES for column in ("alone", *FEATURES, *SAMPLERS)]
