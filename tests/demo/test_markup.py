"""Results as HTML: what comes from outside stays text, every term has a hint, and numbers are those of the result."""

import html
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from demo_jobs import CHOICE, OTHER, job

from dato.demo import markup, texts
from dato.demo.choices import Choice
from dato.demo.job import Result, Shot, Snapshot

HOSTILE = "<img src=x onerror=window.hacked=1> \"' ${1+1} {{value}} {PSNR} </textarea>"
USE = markup.Use("lines", "command", b"file", "name.png")


def shot(level, ms=500.0):
    return Shot(torch.full((3, 8, 8), level), ms, 4)


def result(choice=CHOICE, psnr=40.0):
    return Result(choice, shot(0.5), choice.source, psnr)


class Tags(HTMLParser):
    """The names of all tags, and their attributes that hold scripts."""

    def __init__(self):
        super().__init__()
        self.names, self.handlers = [], []

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.handlers += [name for name, value in attributes if name.startswith("on") or value == "x"]


def plain(markup_text):
    """The text that a reader sees, hints aside."""
    without = re.sub(r'<span class="hint".*?</span>', "", markup_text)
    return html.unescape(re.sub(r"<[^>]+>", " ", without))


def test_text_from_outside_stays_text():
    choice = Choice(HOSTILE, CHOICE.source, HOSTILE, (HOSTILE,), HOSTILE)
    task = job(choice, prompt=HOSTILE)
    use = markup.Use(HOSTILE, HOSTILE, b"file", HOSTILE)
    done = Snapshot(results=(result(choice),), stock=shot(0.4), notes=(HOSTILE,), over=True)
    pages = [markup.view(task, done, [use]), markup.status(done), markup.marks([HOSTILE, "2x"])]
    pages += [markup.status(Snapshot(error=HOSTILE, over=True)), markup.status(Snapshot(doing=HOSTILE, calls=4))]
    pages.append(markup.gallery([markup.card_of(task, done.results[0], done.stock, use)], 12))
    for page in pages:
        found = Tags()
        found.feed(page)
        assert "textarea" not in found.names and not found.handlers and found.names.count("div") >= 1


def test_every_term_of_a_text_has_a_hint_and_every_hint_is_used():
    written = " ".join(value for name, value in vars(texts).items() if name.isupper() and isinstance(value, str))
    known = {*texts.HINTS, "name", "search", "again", "call", "number", "calls", ""}
    assert set(re.findall(r"\{([\w -]*)\}", written)) <= known
    assert all(hint.endswith(".") for hint in (*texts.HINTS.values(), *texts.TITLES.values()))
    shown = markup.text("{PSNR} of {search}, {unknown}", search="<a>")
    assert plain(shown).split() == ["PSNR", "of", "<a>", ",", "{unknown}"] and texts.HINTS["PSNR"] in html.unescape(
        shown
    )


def test_one_result_beside_stock():
    done = Snapshot(results=(result(),), stock=shot(0.4, 2000), over=True)
    shown = markup.view(job(), done, [USE])
    said = plain(shown)
    assert "500 ms" in said and "2 s" in said and "4.00×" in said and "40.0 dB" in said
    assert shown.count("<figure>") == 3 and shown.count("<img") == 3
    data = json.loads(html.unescape(re.search(r'data-schedule="([^"]*)"', shown)[1]))
    assert data["depths"] == list(CHOICE.source.depths) and data["rungs"] == 12


def test_before_stock_is_there_nothing_is_compared():
    shown = markup.view(job(), Snapshot(results=(result(psnr=None),)), [USE])
    assert shown.count("<img") == 1 and plain(shown).count("…") == 2


def test_three_results_have_a_difference_each():
    task = job(CHOICE, OTHER, CHOICE)
    done = Snapshot(results=(result(), result(OTHER), result()), stock=shot(0.4), over=True)
    shown = markup.view(task, done, [USE] * 3)
    assert shown.count("<img") == 7 and shown.count("<details>") == 3
    part = markup.view(task, Snapshot(results=(result(psnr=None),)), [USE])
    assert part.count("<img") == 1 and part.count("<details>") == 1


def test_the_difference_is_black_where_images_are_equal(monkeypatch):
    drawn = []
    monkeypatch.setattr(markup, "png", lambda image: drawn.append(image) or b"")
    other = shot(0.5)
    other.image[1, 2, 3] += 0.05
    markup._difference(other, shot(0.5))
    assert drawn[0][:, 2, 3].tolist() == pytest.approx([0.5] * 3) and drawn[0].sum() == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("snapshot", "said"),
    [
        (Snapshot(ahead=1), "Waiting: 1 other image before this one."),
        (Snapshot(ahead=2), "Waiting: 2 other images before this one."),
        (Snapshot(), "Starting."),
        (Snapshot(doing="stock", call=7, calls=50), "Stock : call of the UNet 7 of 50"),
        (Snapshot(doing="5.22x", call=60, calls=50), "5.22×: call of the UNet 50 of 50"),
        (Snapshot(stopped=True, over=True), "Stopped."),
        (Snapshot(over=True), "Done."),
        (Snapshot(error="memory ran out", over=True), "memory ran out"),
    ],
)
def test_the_line_says_what_is_going_on(snapshot, said):
    assert " ".join(plain(markup.status(snapshot)).split()) == said


def test_numbers_as_people_read_them():
    assert [markup.duration(ms) for ms in (4.4, 999.4, 2340, 41400)] == ["4 ms", "999 ms", "2.34 s", "41.4 s"]
    assert markup.decibels(100) == "equal" and markup.crossed("rule 2.5x, 10.80x, x2") == "rule 2.5×, 10.80×, x2"
