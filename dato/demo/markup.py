"""Results as HTML. Every text from outside is escaped, and pictures are inside of the markup, so no file is served."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from dato.demo import texts
from dato.demo.job import Job, Result, Shot, Snapshot
from dato.report.page_data import schedule_data
from dato.utils.images import png

if TYPE_CHECKING:
    from torch import Tensor

    from dato.schedule import Schedule

GAIN = 10  # of the difference picture
SMALL = 256  # pixels; pixels of smaller images are shown as squares


@dataclass(frozen=True)
class Use:
    """How to make a result again: what the buttons copy, and the file that the link downloads."""

    python: str
    command: str
    file: bytes
    name: str


def text(template: str, **values: str) -> str:
    """Return a text of the page as HTML. {words} that are terms get their hint, names of values become code."""

    def filled(match: re.Match[str]) -> str:
        name = match[1]
        return code(values[name]) if name in values else term(name) if name in texts.HINTS else match[0]

    return re.sub(r"\{([\w -]+)\}", filled, escape(template))


def term(name: str, shown: str | None = None) -> str:
    """Return a term with its hint, which shows on hover, on a tap, and with the keyboard."""
    hint = escape(texts.HINTS[name].replace("{gain}", str(GAIN)))
    return (
        f'<span class="term" tabindex="0">{escape(shown or name)}<span class="hint" role="tooltip">{hint}</span></span>'
    )


def code(words: str) -> str:
    """Return words as code."""
    return f"<code>{escape(words)}</code>"


def block(inside: str, kind: str = "") -> str:
    """Return markup that gets the page's own style."""
    return f'<div class="dato {kind}">{inside}</div>'


def status(snapshot: Snapshot) -> str:
    """Return the line that says what is going on, with a bar of the UNet's calls."""
    bar, kind, notes = "", "", "".join(f'<p class="note">Note: {escape(note)}.</p>' for note in snapshot.notes)
    if snapshot.error:
        said, kind = escape(snapshot.error), "error"
    elif snapshot.stopped:
        said = texts.STOPPED
    elif snapshot.over:
        said = texts.DONE
    elif snapshot.ahead:
        said = texts.WAITING.format("1 other image" if snapshot.ahead == 1 else f"{snapshot.ahead} other images")
    elif snapshot.doing:
        name = term("stock", "Stock") if snapshot.doing == "stock" else escape(crossed(snapshot.doing))
        number = max(1, min(snapshot.call, snapshot.calls))
        said = texts.WORKING.format(
            name=name, call=term("call", "call of the UNet"), number=number, calls=snapshot.calls
        )
        bar = f'<progress max="{snapshot.calls}" value="{snapshot.call}" aria-label="calls of the UNet"></progress>'
    else:
        said = texts.STARTING
    return block(f'<p role="status" class="{kind}">{said}</p>{bar}{notes}', "status")


def view(job: Job, snapshot: Snapshot, uses: Sequence[Use]) -> str:
    """Return the images side by side, their numbers, their schedules, and how to make them again.

    Args:
        job: What was asked for.
        snapshot: What is there of it.
        uses: For each result, how to make it again.
    """
    stock, results = snapshot.stock, snapshot.results
    alone = len(job.choices) == 1
    columns = [_stock_column(job, stock)]
    for number, choice in enumerate(job.choices):
        result = results[number] if number < len(results) else None
        columns.append(_column(job, choice.name, result, stock, with_difference=not alone))
    if alone:
        columns.append(_difference(results[0].shot if results else None, stock))
    parts = [f'<div class="columns of-{len(columns)}">{"".join(columns)}</div>']
    parts += [_details(result, use, alone) for result, use in zip(results, uses, strict=False)]
    return block("".join(parts), "view")


def _stock_column(job: Job, stock: Shot | None) -> str:
    rows = [] if stock is None else [(term("time"), duration(stock.latency_ms)), (term("steps"), str(stock.steps))]
    return _figure(term("stock", "Stock"), None if stock is None else stock.image, job.prompt, rows)


def _column(job: Job, name: str, result: Result | None, stock: Shot | None, *, with_difference: bool) -> str:
    title = f"{term('dato')} {escape(crossed(name))}"
    if result is None:
        return _figure(title, None, job.prompt, [])
    known = stock is not None and result.psnr is not None
    rows = [
        (term("time"), duration(result.shot.latency_ms)),
        (term("steps"), str(result.shot.steps)),
        (term("speed-up"), f"{stock.latency_ms / result.shot.latency_ms:.2f}×" if known else "…"),
        (term("PSNR"), decibels(result.psnr) if known else "…"),
    ]
    figure = _figure(title, result.shot.image, job.prompt, rows)
    return f'<div class="stack">{figure}{_difference(result.shot, stock)}</div>' if with_difference else figure


def _difference(shot: Shot | None, stock: Shot | None) -> str:
    image = None
    if shot is not None and stock is not None:
        grey = (GAIN * (shot.image - stock.image).abs().amax(0, keepdim=True)).clamp(max=1)
        image = grey.expand(3, -1, -1)
    return _figure(f"{term('difference', 'Difference')}, {GAIN}× as strong", image, "difference to stock", [])


def _figure(title: str, image: Tensor | None, alt: str, rows: Sequence[tuple[str, str]]) -> str:
    if image is None:
        shown = '<div class="empty" aria-hidden="true"></div>'
    else:
        kind = ' class="small"' if max(image.shape[-2:]) < SMALL else ""
        height, width = image.shape[-2:]
        shown = f'<img{kind} src="{data_uri(png(image))}" width="{width}" height="{height}" alt="{escape(alt)}">'
    numbers = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f"<figure><figcaption>{title}</figcaption>{shown}<dl>{numbers}</dl></figure>"


def _details(result: Result, use: Use, alone: bool) -> str:
    """Return what is below the images: the front's words, the schedule, the lines and the command, and the file."""
    said = f'<p class="said">{text(crossed(result.choice.said))}</p>' if result.choice.said else ""
    inside = (
        f"{said}<h3>{term('schedule', 'Schedule')}</h3>{_schedule(result.schedule)}"
        f"<h3>Make it again</h3>{_copied('Python', use.python)}"
        f"{_copied('Command', use.command) if use.command else ''}"
        f'<p><a class="download" download="{escape(use.name)}" href="{data_uri(use.file)}">Download as PNG</a> '
        "<small>It holds its settings.</small></p>"
    )
    if alone:
        return f"<section>{inside}</section>"
    return f"<details><summary>{escape(crossed(result.choice.name))}: schedule, code, file</summary>{inside}</details>"


def _schedule(schedule: Schedule) -> str:
    """Return the place where page.js draws a schedule."""
    data = escape(json.dumps(schedule_data(schedule)))
    words = f'<p class="muted">{text(texts.SCHEDULE_WORDS)}</p>'
    return f'<div class="schedule" data-schedule="{data}"></div>{words}'


def _copied(name: str, lines: str) -> str:
    return (
        f'<div class="use"><div class="use-head"><span>{name}</span>'
        f'<button type="button" class="copy" aria-label="Copy: {name}">Copy</button></div>'
        f'<pre tabindex="0" aria-label="{name}"><code>{escape(lines)}</code></pre></div>'
    )


@dataclass(frozen=True)
class Card:
    """A result in the gallery."""

    file: bytes
    name: str
    prompt: str
    said: str


def card_of(job: Job, result: Result, stock: Shot, use: Use) -> Card:
    """Return the gallery's card of a result."""
    speedup = f"{stock.latency_ms / result.shot.latency_ms:.1f}×"
    said = f"{crossed(result.choice.name)}: {duration(result.shot.latency_ms)}, here {speedup}"
    return Card(use.file, use.name, job.prompt, f"{said}, {decibels(result.psnr or 0)}, seed {job.seed}")


def gallery(cards: Sequence[Card], most: int) -> str:
    """Return the results of the session, the newest first."""
    if not cards:
        return ""
    figures = "".join(
        f'<li><a download="{escape(card.name)}" href="{data_uri(card.file)}" '
        f'aria-label="Download: {escape(card.prompt)}, {escape(card.said)}">'
        f'<img src="{data_uri(card.file)}" alt=""></a>'
        f"<span>{escape(card.prompt)}</span><small>{escape(card.said)}</small></li>"
        for card in cards
    )
    note = texts.GALLERY_NOTE.format(most)
    return block(f'<h2>{texts.GALLERY}</h2><p class="muted">{note}</p><ul>{figures}</ul>', "gallery")


def marks(names: Sequence[str]) -> str:
    """Return the marks below the slider: one for each point, evenly spaced."""
    last = max(1, len(names) - 1)
    spans = "".join(
        f'<span style="--at:{number / last:.4f}">{escape(crossed(name))}</span>' for number, name in enumerate(names)
    )
    return block(
        f'<div class="marks" aria-hidden="true">{spans}</div>'
        f'<div class="ends" aria-hidden="true"><span>← {texts.SLOWEST}</span><span>{texts.FASTEST} →</span></div>'
    )


def data_uri(file: bytes) -> str:
    """Return a PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def duration(milliseconds: float) -> str:
    """Return a time as people read it: "460 ms", "2.34 s"."""
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3g} s"


def decibels(psnr: float) -> str:
    """Return a PSNR as text; equal images count as 100 dB."""
    return "equal" if psnr >= 100 else f"{psnr:.1f} dB"


def crossed(name: str) -> str:
    """Return a text in which a factor is written 5.2×, not 5.2x."""
    return re.sub(r"(?<=\d)x\b", "×", name)
