"""The page: a gradio app around `Sessions`. What it shows comes from `markup`, what it says from `texts`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from dato.demo import markup, texts
from dato.demo.choices import Choice
from dato.demo.job import Job, Snapshot
from dato.demo.sessions import COMPARE, FRONT, RULE, Sessions, seed_of
from dato.errors import DatoError

KEPT = 12  # results in the gallery
RULE_RANGE = (1.2, 8.0)  # speed-ups of the rule's slider
RULE_FIRST = 2.5
TABS = (FRONT, RULE, COMPARE)
_HERE = Path(__file__).parent
_REPORT = _HERE.parent / "report"
# Fonts that every system has; gradio's own themes would name others.
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")


def theme() -> gr.themes.Base:
    """Return the page's theme. It needs nothing from the network."""
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=SANS, font_mono=MONO)


def style() -> str:
    """Return the page's style sheet."""
    return (_REPORT / "schedule.css").read_text("utf-8") + (_HERE / "page.css").read_text("utf-8")


def head() -> str:
    """Return what stands in the head of the page: its script."""
    script = (_REPORT / "parts.js").read_text("utf-8") + (_HERE / "page.js").read_text("utf-8")
    titles = f"const datoTitles = {json.dumps(texts.TITLES)};"
    return f'<link rel="icon" href="data:,"><script>{titles}{script}</script>'


def make_page(
    sessions: Sessions, heading: str, without_front: str, first: int = 0, prompt: str = "", at_once: bool = False
) -> gr.Blocks:
    """Return the page.

    Args:
        sessions: What generates.
        heading: HTML above everything: what is loaded.
        without_front: HTML for the first tab, if there is no front.
        first: The number of the point with which the slider begins.
        prompt: With which the page begins.
        at_once: Whether an image is generated when the page opens.
    """
    choices = sessions.choices

    def stop_job(request: gr.Request) -> None:
        sessions.stop(str(request.session_hash))

    with gr.Blocks(title=texts.TITLE, analytics_enabled=False, fill_width=False) as page:
        gr.HTML(heading)
        with gr.Row(elem_classes="dato-inputs"):
            text = gr.Textbox(
                prompt, label="Prompt", placeholder="What to draw", lines=1, max_lines=3, scale=5, min_width=240,
                elem_id="dato-prompt",
            )  # fmt: skip
            seed = gr.Number(0, label="Seed", precision=0, scale=1, min_width=140, elem_id="dato-seed")
        with gr.Row(elem_classes="dato-buttons"):
            start = gr.Button("Generate", variant="primary", elem_id="dato-generate", min_width=120)
            stop = gr.Button("Stop", elem_id="dato-stop", min_width=90)
            other = gr.Button("Random prompt", elem_id="dato-random", min_width=140)
        tab = gr.State(FRONT if choices else RULE)
        status = gr.HTML(elem_id="dato-status")
        with gr.Tabs(selected=FRONT if choices else RULE, overflow_behavior="wrap"):
            with gr.Tab("Along the front", id=FRONT, elem_id="dato-tab-front") as front_tab:
                slider, front_view = _front_tab(choices, first, without_front)
            with gr.Tab("By a rule", id=RULE, elem_id="dato-tab-rule") as rule_tab:
                gr.HTML(markup.block(f"<p>{markup.text(texts.RULE_INTRO)}</p>"))
                speedup = gr.Slider(
                    *RULE_RANGE, RULE_FIRST, step=0.1, label="Speed-up", elem_id="dato-rule", buttons=[]
                )
                rule_view = gr.HTML(_empty())
            with gr.Tab("Compare three", id=COMPARE, elem_id="dato-tab-compare") as compare_tab:
                gr.HTML(markup.block(f"<p>{markup.text(texts.COMPARE_INTRO)}</p>"))
                compared = _compared(sessions, first)
                compare_view = gr.HTML(_empty())
        cards = gr.State([])
        gallery = gr.HTML(elem_id="dato-gallery")

        views = [front_view, rule_view, compare_view]
        inputs = [tab, text, seed, slider, speedup, *compared, cards]
        generates = {
            "fn": _generator(sessions),
            "inputs": inputs,
            "outputs": [status, *views, cards, gallery],
            "show_progress": "hidden",
            "trigger_mode": "multiple",
            "concurrency_limit": None,
            "api_visibility": "private",
        }
        plain = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        triggers = [start.click, text.submit, seed.submit, slider.input, speedup.input]
        gr.on(triggers, **generates)
        if at_once:
            page.load(**generates)
        other.click(sessions.random_prompt, text, text, **plain).then(**generates)
        stop.click(stop_job, **plain)
        for name, shown in zip(TABS, (front_tab, rule_tab, compare_tab), strict=True):
            shown.select(lambda name=name: name, None, tab, **plain)
        page.unload(stop_job)
    page.queue(api_open=False, default_concurrency_limit=None)
    return page


def _front_tab(choices: Sequence[Choice], first: int, without_front: str) -> tuple[gr.Slider, gr.HTML]:
    """Make the slider along the front, and the place of its results."""
    several = len(choices) > 1
    if not choices:
        gr.HTML(markup.block(f"<p>{without_front}</p>"))
    elif several:
        gr.HTML(markup.block(f"<p>{markup.text(texts.FRONT_INTRO)}</p>"))
    else:
        gr.HTML(markup.block(f"<p>{markup.text(texts.ONE_SCHEDULE, name=choices[0].name)}</p>"))
    slider = gr.Slider(
        0, max(1, len(choices) - 1), first, step=1, label="Speed-up", visible=several, elem_id="dato-front", buttons=[]
    )
    if several:
        gr.HTML(markup.marks([choice.name for choice in choices]))
    return slider, gr.HTML(_empty() if choices else "")


def _compared(sessions: Sessions, first: int) -> list[gr.Dropdown]:
    """Make the three lists of what can be compared. They begin with three different ones."""
    names, fronts = list(sessions.compared), len(sessions.choices)
    ends = (first - 4, first, first + 3) if fronts > 8 else (0, 1, 2)
    chosen = [names[max(0, min(number, len(names) - 1))] for number in ends]
    with gr.Row():
        return [
            gr.Dropdown(
                [(markup.crossed(name), name) for name in names],
                value=value,
                label=label,
                min_width=160,
                filterable=False,
            )
            for label, value in zip(("First", "Second", "Third"), chosen, strict=True)
        ]


def _generator(sessions: Sessions) -> Any:
    """Return the function behind the page's Generate button."""

    def generate(
        tab: str, text: str, seed: float, number: float, speedup: float, one: str, two: str, three: str, cards: list,
        request: gr.Request,
    ) -> Iterator[list[Any]]:  # fmt: skip
        def outputs(snapshot: Snapshot, view: Any, kept: Any = gr.skip(), gallery: Any = gr.skip()) -> list[Any]:
            views = [view if name == tab else gr.skip() for name in TABS]
            return [markup.status(snapshot), *views, kept, gallery]

        session = str(request.session_hash)
        try:
            job = Job((text or "").strip(), seed_of(seed), sessions.choose(tab, number, speedup, (one, two, three)))
        except DatoError as error:
            sessions.stop(session)
            yield outputs(Snapshot(error=str(error), over=True), gr.skip())
            return
        seen = None
        for snapshot in sessions.generate(session, job):
            shown = len(snapshot.results), snapshot.stock is None
            if shown == seen and not snapshot.over:
                yield outputs(snapshot, gr.skip())
                continue
            seen = shown
            uses = [sessions.use(job, result, snapshot) for result in snapshot.results]
            view = markup.view(job, snapshot, uses)
            if snapshot.stock is None or not snapshot.over or snapshot.stopped or snapshot.error:
                yield outputs(snapshot, view)
                continue
            new = [
                markup.card_of(job, result, snapshot.stock, use)
                for result, use in zip(snapshot.results, uses, strict=True)
            ]
            kept = [*new, *cards][:KEPT]
            yield outputs(snapshot, view, kept, markup.gallery(kept, KEPT))

    return generate


def _empty() -> str:
    return markup.block(f'<p class="muted">{texts.EMPTY}</p>')
