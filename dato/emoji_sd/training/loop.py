"""The training loop of all stages: AdamW, a cosine schedule, EMA, a progress bar, and checkpoints to go on from."""

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
Loss = Callable[[torch.Generator], Tensor]


def run_stage(
    work: Workspace,
    stage: str,
    settings: Any,
    build: Callable[[], nn.Module],
    prepare: Callable[[nn.Module], Loss],
    save: Callable[[nn.Module, Path], None],
) -> None:
    """Train one stage to its end. Skip it if it is done, and go on from its last checkpoint if there is one.

    Args:
        work: The run.
        stage: The stage's name, which is also the name of its folder.
        settings: The stage's part of the recipe. Its `fit` has the settings of the loop.
        build: Makes the model with its initial parameters. Parameters that do not train require no gradient.
        prepare: Takes the model on the device and returns the loss of one batch, as a function of a random generator.
            The generator is on the CPU, so that every device sees the same data.
        save: Writes the trained model into a folder.

    Raises:
        DatoError: if the stage was begun with other settings, or the loss is not finite any more.
    """
    folder, label = work.folder(stage), _label(work, settings)
    if work.done(stage):
        _check_same(stage, read_json(folder / "log.json")["settings"], label)
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
    model: nn.Module, loss: Loss, settings: Fit, work: Workspace, stage: str, label: dict[str, Any]
) -> dict[str, Any]:
    """Minimise `loss` over the model's trainable parameters. If there is an EMA, the model ends with its values.

    Returns:
        The log: settings, steps, seconds of training, hardware, and the loss curve as [step, mean loss since the last].
    """
    training = _Training(model, settings, work, stage, label)
    training.restore()
    progressed = training.progressed
    started = saved = time.monotonic()
    before = progressed["seconds"]
    model.train()
    with progress() as bar:
        task = bar.add_task(stage, total=settings.steps, completed=progressed["step"])
        while progressed["step"] < settings.steps:
            mean = training.note(training.step(loss))
            bar.update(task, completed=progressed["step"], description=f"{stage} loss {mean:.4f}")
            now = time.monotonic()
            progressed["seconds"] = before + now - started
            if now - saved >= work.save_seconds:
                training.save()
                saved = time.monotonic()
    training.finish()
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
    """Return the learning rate at a step as a share of its highest: constant, then half a cosine down to 0."""
    constant = settings.constant * settings.steps
    if step < constant:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - constant) / (settings.steps - constant)))


class _Training:
    """The state of one stage: model, optimizer, EMA and progress, and its checkpoint."""

    def __init__(self, model: nn.Module, settings: Fit, work: Workspace, stage: str, label: dict[str, Any]) -> None:
        self.settings, self.work, self.stage, self.label = settings, work, stage, label
        self.model = model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, settings.learning_rate, weight_decay=settings.weight_decay)
        self.ema = EMAModel(self.parameters, decay=settings.ema) if settings.ema else None
        self.generator = torch.Generator().manual_seed(work.seed)
        self.checkpoint = work.unfinished(f"{stage}.pt")
        self.progressed: dict[str, Any] = {"step": 0, "seconds": 0.0, "losses": [], "sum": 0.0, "count": 0}

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one. Raise DatoError if it has other settings."""
        if self.checkpoint.is_file():
            # weights_only: a checkpoint of somebody else must not be able to run code.
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            _check_same(self.stage, state["label"], self.label)
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.generator.set_state(state["generator"])
            self.progressed = state["progressed"]
        if self.ema:
            self.ema.to(self.work.device)

    def save(self) -> None:
        """Write the checkpoint."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"generator": self.generator.get_state(), "progressed": self.progressed, "label": self.label}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.checkpoint, buffer.getvalue())

    def step(self, loss: Loss) -> float:
        """Make one step of the optimizer and return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * decay(self.progressed["step"], self.settings)
        with self.work.autocast():
            value = loss(self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        self.optimizer.step()
        if self.ema:
            self.ema.step(self.parameters)
        return value.item()

    def note(self, value: float) -> float:
        """Add the loss of a step to the loss curve and return the mean since its last point."""
        progressed, steps = self.progressed, self.settings.steps
        progressed["step"] += 1
        progressed["sum"] += value
        progressed["count"] += 1
        if not math.isfinite(progressed["sum"]):
            raise DatoError(f"{self.stage}: the loss is no longer finite at step {progressed['step']}")
        mean = progressed["sum"] / progressed["count"]
        if progressed["step"] % max(1, steps // POINTS) == 0 or progressed["step"] == steps:
            progressed["losses"].append([progressed["step"], mean])
            progressed["sum"], progressed["count"] = 0.0, 0
        return mean

    def finish(self) -> None:
        """Give the model the values of the EMA, and make it ready for use."""
        if self.ema:
            self.ema.copy_to(self.parameters)
        self.model.eval()

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer}
        return parts | ({"ema": self.ema} if self.ema else {})


def _label(work: Workspace, settings: Any) -> dict[str, Any]:
    # Through JSON, so that it compares equal to a label that was read from a file.
    return json.loads(json.dumps(asdict(settings) | {"seed": work.seed, "names": work.pictures.names}))


def _check_same(stage: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    for key in new:
        if old.get(key) != new[key]:
            reason = f"{key} was {old.get(key)}, now {new[key]}"
            raise DatoError(f"stage '{stage}' of this run has other settings ({reason}): choose another folder (`out`)")
