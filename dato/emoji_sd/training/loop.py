"""The one training loop: AdamW, a cosine schedule, EMA, a progress bar, and checkpoints that survive a kill."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from dato.cli.console import progress
from dato.emoji_sd.training.folders import whole_folder
from dato.emoji_sd.training.recipe import Fit
from dato.emoji_sd.training.workspace import Workspace
from dato.errors import DatoError
from dato.utils.files import read_json, write_atomic
from dato.utils.hardware import hardware, versions

POINTS = 100  # of the loss curve in log.json


def run_stage(
    work: Workspace,
    stage: str,
    settings: Any,
    build: Callable[[], nn.Module],
    prepare: Callable[[nn.Module], Callable[[torch.Generator], Tensor]],
    save: Callable[[nn.Module, Path], None],
) -> None:
    """Train one stage to its end, or leave it alone if it is done; a killed one goes on from its last checkpoint.

    Args:
        work: the run.
        stage: its name, which is its folder's.
        settings: the stage's part of the recipe; its `fit` steers the loop.
        build: makes the model, its parameters at their start; those that shall not train do not require a gradient.
        prepare: given the model on the device, makes the function from a random generator (on the CPU, so that
            every device sees the same data) to one batch's loss.
        save: writes the trained model into a folder.

    Raises:
        DatoError: the stage was begun with other settings, or the loss is no longer finite.
    """
    folder, label = work.folder(stage), _label(work, settings)
    if work.done(stage):
        _same(stage, read_json(folder / "log.json")["settings"], label)
        return
    torch.manual_seed(work.seed)
    model = build().to(work.device, memory_format=torch.channels_last)
    log = fit(model, prepare(model), settings.fit, work, stage, label)
    with whole_folder(folder) as new:
        save(model, new)
        (new / "log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    for leftover in work.unfinished("").glob(f"{stage}.*"):
        leftover.unlink()


def fit(
    model: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    settings: Fit,
    work: Workspace,
    stage: str,
    label: dict[str, Any],
) -> dict[str, Any]:
    """Minimise `loss` over the model's trainable parameters; the EMA, where there is one, ends up in the model.

    Returns:
        The log: settings, steps, seconds of training, loss curve as [step, mean loss since the last], and on what.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
    ema = EMAModel(parameters, decay=settings.ema) if settings.ema else None
    generator = torch.Generator().manual_seed(work.seed)
    parts = {"model": model, "optimizer": optimizer} | ({"ema": ema} if ema else {})
    progressed = {"step": 0, "seconds": 0.0, "losses": [], "sum": 0.0, "count": 0}
    checkpoint = work.unfinished(f"{stage}.pt")
    if checkpoint.is_file():
        # weights_only: a checkpoint that somebody hands over must not be able to run code.
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        _same(stage, state["label"], label)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        generator.set_state(state["generator"])
        progressed = state["progressed"]
    if ema:
        ema.to(work.device)

    def save() -> None:
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"generator": generator.get_state(), "progressed": progressed, "label": label}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(checkpoint, buffer.getvalue())

    started = saved = time.monotonic()
    before = progressed["seconds"]
    every = max(1, settings.steps // POINTS)
    model.train()
    with progress() as bar:
        task = bar.add_task(stage, total=settings.steps, completed=progressed["step"])
        while progressed["step"] < settings.steps:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * decay(progressed["step"], settings)
            with work.autocast():
                value = loss(generator)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimizer.step()
            if ema:
                ema.step(parameters)
            progressed["step"] += 1
            progressed["sum"] += value.item()
            progressed["count"] += 1
            if not math.isfinite(progressed["sum"]):
                raise DatoError(f"{stage}: the loss is no longer finite at step {progressed['step']}")
            mean = progressed["sum"] / progressed["count"]
            if progressed["step"] % every == 0 or progressed["step"] == settings.steps:
                progressed["losses"].append([progressed["step"], mean])
                progressed["sum"], progressed["count"] = 0.0, 0
            bar.update(task, completed=progressed["step"], description=f"{stage} loss {mean:.4f}")
            now = time.monotonic()
            progressed["seconds"] = before + now - started
            if now - saved >= work.save_seconds:
                save()
                saved = time.monotonic()
    if ema:
        ema.copy_to(parameters)
    model.eval()
    return {
        "stage": stage,
        "settings": label,
        "steps": progressed["step"],
        "seconds": round(progressed["seconds"], 1),
        "losses": progressed["losses"],
        "hardware": hardware(work.device),
        "precision": "bf16 autocast" if work.bf16 else "float32",
        "versions": versions("torch", "diffusers", "transformers"),
    }


def decay(step: int, settings: Fit) -> float:
    """The learning rate at a step as a share of its highest: constant, then half a cosine down to 0."""
    constant = settings.constant * settings.steps
    if step < constant:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - constant) / (settings.steps - constant)))


def _label(work: Workspace, settings: Any) -> dict[str, Any]:
    # As JSON gives it back, so that what was read compares equal to what is asked for.
    return json.loads(json.dumps(asdict(settings) | {"seed": work.seed, "names": work.pictures.names}))


def _same(stage: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    for key in new:
        if old.get(key) != new[key]:
            reason = f"{key} was {old.get(key)}, now {new[key]}"
            raise DatoError(f"stage '{stage}' of this run has other settings ({reason}): choose another --out")
