"""Draw the strip of images in README.md: stock and points of a front on the same prompts, with their speed-ups."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import dato
from dato.cli.console import main, out
from dato.errors import DatoError
from dato.generation import Sampling, generate
from dato.point import Point
from dato.utils.files import write_atomic
from dato.utils.images import picture

TILE, GAP, LABEL = 208, 8, 40  # pixels
PROMPTS = ("pineapple on a black background", "tomato on a blue background")  # held out: no search has used them
EVALUATION = Path(__file__).parent.parent / "benchmarks" / "emoji-sd-evaluation.json"


def draw_strip(
    front: Annotated[str, typer.Option(help="The front: a file, a run's folder or a shipped name.")] = "emoji-sd-depth",
    points: Annotated[str, typer.Option(help="Numbers of the points on the front, the first is 0.")] = "21,14,10",
    prompts: Annotated[str, typer.Option(help="Prompts, separated by semicolons.")] = ";".join(PROMPTS),
    seed: Annotated[int, typer.Option(help="Image i starts from the noise of seed + i.")] = 1000,
    evaluation: Annotated[Path, typer.Option(help="evaluation.json, which has measured the points.")] = EVALUATION,
    out_file: Annotated[Path, typer.Option("--out", help="The PNG.")] = Path("images/strip.png"),
) -> None:
    """Draw one column for stock and one for each point, and one row for each prompt."""
    loaded = dato.load_front(front)
    chosen = [(number, loaded.points[number]) for number in map(int, points.split(","))]
    labels = [f"{_speedup(evaluation, f'{front} {number}', point):.1f}x as fast" for number, point in chosen]
    texts, conditions = prompts.split(";"), loaded.conditions
    sampling = Sampling(conditions["steps"], conditions["guidance_scale"], seed=seed, batch_size=len(texts))
    pipe = dato.load_pipeline(scheduler=conditions["scheduler_name"])
    columns = [generate(pipe, texts, sampling).images]
    for _, point in chosen:
        with dato.patched(pipe, point):
            columns.append(generate(pipe, texts, replace(sampling, steps=point.steps or sampling.steps)).images)
    data = io.BytesIO()
    _draw(columns, [f"stock, {sampling.steps} steps", *labels]).save(data, "png", optimize=True)
    write_atomic(out_file, data.getvalue())
    out.print(f"written to {out_file}", highlight=False, soft_wrap=True, markup=False)


def _speedup(evaluation: Path, name: str, point: Point) -> float:
    """Return the measured speed-up of a point. Raise DatoError if the evaluation has another schedule of that name."""
    row = json.loads(evaluation.read_text(encoding="utf-8"))["rows"].get(name)
    if row is None or row["depths"] != list(point.schedule.depths):
        raise DatoError(f"{evaluation} has not measured {name}: evaluate this front first")
    return row["speedup"]


def _draw(columns: list[Tensor], labels: list[str]) -> Image.Image:
    """Return the picture: a label above each column of (n, 3, H, W) images, which are enlarged smoothly."""
    rows = len(columns[0])
    size = (len(columns) * (TILE + GAP) - GAP, LABEL + rows * (TILE + GAP) - GAP)
    strip = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(size=20)
    for column, (images, label) in enumerate(zip(columns, labels, strict=True)):
        left = column * (TILE + GAP)
        pen.text((left + TILE // 2, LABEL // 2), label, fill="#222222", font=font, anchor="mm")
        for row, image in enumerate(images):
            tile = picture(image).resize((TILE, TILE), Image.Resampling.BICUBIC)
            strip.paste(tile, (left, LABEL + row * (TILE + GAP)))
    return strip


if __name__ == "__main__":
    main(draw_strip)
