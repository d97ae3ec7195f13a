"""Draw a UNet as a ladder that is cut at a depth, with the cache that replaces what is below the cut."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer
from diffusers import UNet2DConditionModel
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import nn

from dato.cli.console import main, out
from dato.errors import DatoError
from dato.generation.pipelines import load_pipeline
from dato.generation.random_models import RANDOM_MODELS, random_pipeline
from dato.unet.diffusers_unet import Rung
from dato.unet.ladder import Ladder
from dato.utils.files import write_atomic

LEFT, RIGHT, WIDTH, HEIGHT = 1.55, 6.35, 2.75, 0.46  # centres of the two columns; a box
RUNS = {"facecolor": "#dce9f7", "edgecolor": "#2f6aa8", "color": "black"}
IDLE = {"facecolor": "#f4f4f4", "edgecolor": "#bbbbbb", "color": "#777777"}
CACHE = {"facecolor": "#fde6c8", "edgecolor": "#c77700", "color": "black"}


def draw_ladder(
    model: Annotated[
        str,
        typer.Option(help="The model: a random model's name (no weights are made), a folder or a hub id."),
    ] = "sd15-random",
    depth: Annotated[int, typer.Option(min=1, help="The depth of the call that is drawn.")] = 3,
    out_file: Annotated[Path, typer.Option("--out", help="The PNG.")] = Path("images/ladder.png"),
) -> None:
    """Draw a UNet as a ladder: rungs with the names of their modules, skips, mid block, and the cut at a depth."""
    pipe = random_pipeline(model, device="meta") if model in RANDOM_MODELS else load_pipeline(model)
    data = io.BytesIO()
    picture(pipe.unet, depth).savefig(data, format="png", dpi=170)
    write_atomic(out_file, data.getvalue())
    out.print(f"written to {out_file}", highlight=False, soft_wrap=True, markup=False)


def picture(unet: UNet2DConditionModel, depth: int) -> Figure:
    """Return the picture of a UNet as a ladder, cut at `depth`. Raise DatoError if the depth is not a partial one."""
    rungs = Ladder(unet).rungs
    if not 0 < depth < len(rungs):
        raise DatoError(f"--depth {depth}: a UNet of {len(rungs)} rungs is cut at 1 to {len(rungs) - 1}")
    names = {id(module): name for name, module in unet.named_modules()}
    ys = [-0.62 * index - (1.0 if index >= depth else 0.0) for index in range(len(rungs))]
    mid = ys[-1] - 0.75
    figure = Figure(figsize=(9, 0.93 * (1.9 - mid)), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.75, 7.95), ylim=(mid - 0.35, 1.2))
    axes.axis("off")

    size = unet.config.sample_size
    _box(axes, LEFT, 0.72, "noisy latents, timestep, text", "", RUNS)
    _box(axes, RIGHT, 0.72, "prediction", "conv_norm_out, conv_act, conv_out", RUNS)
    _arrow(axes, (LEFT, 0.72 - HEIGHT / 2), (LEFT, ys[0] + HEIGHT / 2), RUNS)
    _arrow(axes, (RIGHT, ys[0] + HEIGHT / 2), (RIGHT, 0.72 - HEIGHT / 2), RUNS)
    for index, (rung, y) in enumerate(zip(rungs, ys, strict=True)):
        style = RUNS if index < depth else IDLE
        size //= 2 if rung.downsample else 1
        _box(axes, LEFT, y, names[id(rung.down)], _also(rung, False, names), style)
        _box(axes, RIGHT, y, names[id(rung.up)], _also(rung, True, names), style)
        _arrow(axes, (LEFT + WIDTH / 2, y), (RIGHT - WIDTH / 2, y), style)
        middle, shape = (LEFT + RIGHT) / 2, f"skip: {rung.down.out_channels} x {size} x {size}"
        axes.text(middle, y + 0.05, shape, ha="center", va="bottom", fontsize=8, color=style["color"])
        axes.text(-0.72, y, f"rung {index}", va="center", fontsize=9, color=style["color"])
        if index and index != depth:
            _arrow(axes, (LEFT, ys[index - 1] - HEIGHT / 2), (LEFT, y + HEIGHT / 2), style)
            _arrow(axes, (RIGHT, y + HEIGHT / 2), (RIGHT, ys[index - 1] - HEIGHT / 2), style)
    _box(axes, (LEFT + RIGHT) / 2, mid, "mid_block", "", IDLE, RIGHT - LEFT + WIDTH)
    _arrow(axes, (LEFT, ys[-1] - HEIGHT / 2), (LEFT, mid + HEIGHT / 2), IDLE)
    _arrow(axes, (RIGHT, mid + HEIGHT / 2), (RIGHT, ys[-1] - HEIGHT / 2), IDLE)
    _cut(axes, depth, ys)
    return figure


def _cut(axes: Axes, depth: int, ys: list[float]) -> None:
    """Draw the line between what runs and what does not, and the cache that replaces everything below."""
    above, below = ys[depth - 1] - HEIGHT / 2, ys[depth] + HEIGHT / 2
    y = (above + below) / 2
    axes.plot([-0.72, RIGHT - WIDTH / 2 - 0.1], [y, y], "--", color="#c0392b", linewidth=1.3)
    last = "rung 0 runs" if depth == 1 else f"rungs 0 to {depth - 1} run, down and up"
    axes.text(-0.72, y + 0.07, f"depth {depth}: {last}", fontsize=10, color="#c0392b", va="bottom", weight="bold")
    axes.text(-0.72, y - 0.08, "nothing below the cut runs in this call", fontsize=9, color="#c0392b", va="top")
    _box(axes, RIGHT, y, "cache", f"what arrived at rung {depth - 1} in an earlier call", CACHE)
    _arrow(axes, (RIGHT, y + HEIGHT / 2), (RIGHT, above), CACHE)
    _arrow(axes, (RIGHT, below), (RIGHT, y - HEIGHT / 2), IDLE)
    filled = {"ha": "right", "va": "center", "fontsize": 8, "color": IDLE["color"]}
    axes.text(RIGHT - 0.12, (below + y - HEIGHT / 2) / 2, "deeper calls fill it", **filled)


def _also(rung: Rung, up: bool, names: dict[int, str]) -> str:
    """Return the names of the other modules of one side of a rung, without the block's name."""
    others = (rung.up_attention, rung.upsampler) if up else (rung.down_attention,)
    return "".join(f"+ {names[id(module)].split('.', 2)[2]} " for module in others if isinstance(module, nn.Module))


def _box(axes: Axes, x: float, y: float, name: str, more: str, style: dict[str, str], width: float = WIDTH) -> None:
    corner = x - width / 2, y - HEIGHT / 2
    colours = {"facecolor": style["facecolor"], "edgecolor": style["edgecolor"]}
    axes.add_patch(FancyBboxPatch(corner, width, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", **colours))
    text = {"ha": "center", "va": "center", "color": style["color"]}
    axes.text(x, y + (0.095 if more else 0), name, fontsize=9.5, **text)
    axes.text(x, y - 0.11, more.strip(), fontsize=8, **text)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], style: dict[str, str]) -> None:
    arrow = {"arrowstyle": "-|>", "color": style["edgecolor"], "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=arrow)


if __name__ == "__main__":
    main(draw_ladder)
