"""What dato's nodes are called, and what they take: the same for ComfyUI's newer interface and for the older one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dato.pruning import BASE_SCORES, RECOVERIES, Pruning
from dato.strategies import strategies

RULE, OTHER = "rule", "path or hub name"
SMALLEST = "smallest"
CATEGORY = "model_patches/unet"
_DEFAULT = Pruning()


@dataclass(frozen=True)
class Input:
    """An input of a node, besides the model.

    Attributes:
        kind: "FLOAT", "INT", "BOOLEAN", "STRING" or "COMBO".
        name: Its name.
        default: Its default.
        tooltip: What the interface says about it.
        options: The choices of a "COMBO".
        limits: (least, most, step) of a number.
    """

    kind: str
    name: str
    default: Any
    tooltip: str
    options: tuple[str, ...] = ()
    limits: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Node:
    """A node.

    Attributes:
        id: Its name in workflows. It never changes.
        title: Its name in the interface.
        description: What it does.
        inputs: What it takes besides the model.
        run: Takes the model, the inputs by name, and `node`, the node's id. Returns a model and a text.
        fingerprint: Takes the inputs. What it returns changes if the node has to run again.
    """

    id: str
    title: str
    description: str
    inputs: tuple[Input, ...]
    run: Callable[..., tuple[Any, str]]
    fingerprint: Callable[..., Any]


def _apply_schedule(model: Any, node: str | None = None, **inputs: Any) -> tuple[Any, str]:
    from dato.comfyui.apply import apply_schedule  # it imports torch and diffusers
    from dato.errors import DatoError

    source, path = inputs.pop("schedule"), inputs.pop("path")
    if source == OTHER and not path.strip():
        raise DatoError(f"dato: `schedule` is {OTHER!r}, but `path` is empty")
    name = {RULE: "", OTHER: path}.get(source, source)
    return _shown(*apply_schedule(model, name, node=node, **inputs), node)


def _prune_tokens(model: Any, node: str | None = None, **inputs: Any) -> tuple[Any, str]:
    from dato.comfyui.apply import prune_tokens

    limit = inputs.pop("max_downsample")
    inputs["max_downsample"] = None if limit == SMALLEST else int(limit)
    return _shown(*prune_tokens(model, node=node, **inputs), node)


def _shown(model: Any, settings: Any, node: str | None) -> tuple[Any, str]:
    from dato.comfyui.show import show
    from dato.comfyui.summary import what_will_run

    text = what_will_run(settings)
    show(text, () if node is None else (node,))
    return model, text


def _changed(path: str = "", **inputs: Any) -> Any:
    """Return when the file at `path` was last written; None if there is none."""
    file = Path(path)
    return file.stat().st_mtime if path and file.is_file() else None


_SHARE = (0.0, 1.0, 0.01)
NODES = (
    Node(
        "DatoApplySchedule",
        "dato: apply schedule",
        "Makes a UNet (SD 1.x, 2.x, SDXL) faster: in most steps it runs only a part of it, and continues the rest from "
        "the steps before.",
        (
            Input(
                "COMBO",
                "schedule",
                RULE,
                "rule: made for each run, for its number of steps and its sampler. Or a shipped schedule or front. Or "
                f"{OTHER}: see `path`.",
                (RULE, *sorted(strategies()), OTHER),
            ),
            Input(
                "STRING",
                "path",
                "",
                f"If `schedule` is {OTHER}: a file or folder of a front (pareto.json) or a schedule, or user/name on "
                "the Hugging Face hub.",
            ),
            Input(
                "COMBO",
                "pick",
                "speed-up",
                "Which point of a front: the best one of at least this speed-up, the fastest one of at least this "
                "quality, or its knee.",
                ("speed-up", "quality", "knee"),
            ),
            Input(
                "FLOAT",
                "speedup",
                2.0,
                "Of a front: how many times as fast as without dato. Of the rule: how many times fewer FLOPs the UNet "
                "takes.",
                limits=(1.05, 20.0, 0.05),
            ),
            Input("FLOAT", "quality", 0.0, "Least quality, in the front's metric.", limits=(-1000.0, 1000.0, 0.01)),
            Input("FLOAT", "start", 0.0, "Before this share of the run, all steps are whole.", limits=_SHARE),
            Input("FLOAT", "end", 1.0, "After this share of the run, all steps are whole.", limits=_SHARE),
        ),
        _apply_schedule,
        _changed,
    ),
    Node(
        "DatoPruneTokens",
        "dato: prune tokens",
        "Leaves tokens out of attention in every step (SiTo, DaTo). It replaces the ratios of a schedule.",
        (
            Input("FLOAT", "ratio", 0.5, "Share of the tokens to leave out.", limits=(0.0, 0.95, 0.01)),
            Input(
                "COMBO",
                "score",
                _DEFAULT.score,
                "How base tokens are chosen. " + " ".join(f"{s.name}: {s.summary}." for s in BASE_SCORES.values()),
                tuple(BASE_SCORES),
            ),
            Input(
                "COMBO",
                "max_downsample",
                SMALLEST,
                "Prune in blocks at a downsampling of at most this. smallest: where attention begins (1 in SD 1.x, 2 "
                "in SDXL).",
                (SMALLEST, "1", "2", "4", "8"),
            ),
            Input("BOOLEAN", "self_attention", True, "Prune around self-attention."),
            Input("BOOLEAN", "cross_attention", False, "Prune around cross-attention."),
            Input("BOOLEAN", "feed_forward", False, "Prune around the feed-forward."),
            Input("INT", "sx", _DEFAULT.sx, "Width of a patch, which has one base token.", limits=(1, 16, 1)),
            Input("INT", "sy", _DEFAULT.sy, "Height of a patch.", limits=(1, 16, 1)),
            Input("FLOAT", "noise_alpha", _DEFAULT.noise_alpha, "Weight of the noise.", limits=(0.0, 100.0, 0.01)),
            Input(
                "COMBO",
                "recover_from",
                _DEFAULT.recover_from,
                "What a token that was left out gets: the output of its most similar base token or kept token, or its "
                "own past.",
                RECOVERIES,
            ),
            Input(
                "BOOLEAN",
                "shared",
                _DEFAULT.shared,
                "All blocks of a step use one choice of tokens. Off: each block chooses anew, as in the papers.",
            ),
        ),
        _prune_tokens,
        lambda **inputs: None,
    ),
)
