"""The run's page, with and without a browser, and its pictures."""

from __future__ import annotations

import io
import math
import re
import shlex
from dataclasses import replace
from itertools import pairwise

import pytest
from browsers import chromium
from conftest import FRONT_FILE
from PIL import Image

import dato
from dato.errors import DatoError
from dato.evaluation.baselines import family_of
from dato.front import Front
from dato.point import non_dominated
from dato.report.page import write_page
from dato.report.page_data import page_data
from dato.report.plots import front_picture
from dato.report.schedule_and_sample_pictures import samples_picture, schedules_picture
from dato.report.usage import pick_of
from dato.schedule import Schedule
from dato.search.hypervolume import Scale, by_evaluation
from dato.search.run_folder import Run
from dato.search.user_choices import pick_point

HOSTILE = "</script><script>window.hacked=1</script><b>bold</b> \"'&amp; %{x} <img src=x onerror=window.hacked=1>"


def strip(colour: str, kind: str = "PNG", images: int = 4) -> bytes:
    """A strip of small images of one colour, encoded."""
    data = io.BytesIO()
    Image.new("RGB", (64 * images, 64), colour).save(data, kind)
    return data.getvalue()


def make_run(name: str = "depth-1", slower: float = 1.0, **conditions) -> Run:
    """A run around a front, with a history in which candidate 3 failed."""
    front = dato.load_front(FRONT_FILE)
    points = [
        replace(p, latency_ms=p.latency_ms * slower, speedup=p.speedup / slower, quality=p.quality + slower - 1)
        for p in front.points
    ]
    front = replace(front, points=tuple(points), conditions={**front.conditions, **conditions})
    worse = [
        replace(p, schedule=replace(p.schedule, depths=(12, *[3] * (len(p.schedule) - 1))), quality=p.quality - 3)
        for p in points[::3]
    ]
    failed = replace(points[2], schedule=points[2].schedule.with_ratios(0.5), quality=math.nan)
    history = (*worse[:3], failed, *front.references.values(), *worse[3:], *points)
    samples = {p.schedule: strip("teal", "WEBP") for p in points} | {front.baseline.schedule: strip("orange")}
    return Run(name, front, history, samples, f"runs/{name}/pareto.json")


@pytest.fixture(scope="module")
def run() -> Run:
    return make_run()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def written(run, folder):
    write_page([run], folder / "report.html")
    return folder / "report.html"


# What needs no browser


def test_every_point_is_what_its_pick_gives(run):
    for front in (run.front, *(dato.load_front(f"emoji-sd-plms20-{kind}") for kind in ("depth", "ratio"))):
        for point in front.points:
            assert front.pick(**pick_of(front, point)) is point


def test_the_commands_lead_to_their_point(run):
    for point, shown in zip(run.front.points, page_data([run])["runs"][0]["points"], strict=True):
        words = shlex.split(shown["shell"])
        assert words[words.index("--strategy") + 1] == "runs/depth-1/pareto.json"
        assert pick_point(run.front, words[words.index("--pick") + 1]) is point
        assert words[-1] == run.front.conditions["prompts"][0]
        asked = float(re.search(r"\.pick\(speedup=([\d.]+)\)", shown["python"])[1])
        assert run.front.pick(speedup=asked) is point
        assert "**point.kwargs" in shown["python"] and 'set_scheduler(pipe, "dpm++2m")' in shown["python"]
        compile(shown["python"], "page", "exec")


def test_a_point_without_steps_of_its_own_is_patched_by_path():
    run = Run("plms", dato.load_front("emoji-sd-plms20-depth"), file="emoji-sd-plms20-depth")
    shown = page_data([run])["runs"][0]["points"][0]
    assert 'dato.apply_patch(pipe, "emoji-sd-plms20-depth", speedup=' in shown["python"]
    assert "num_inference_steps=20" in shown["python"]


def test_points_that_were_timed_with_compiled_calls_are_patched_so(run):
    front = replace(run.front, conditions={**run.front.conditions, "compiled": True})
    (shown,) = page_data([replace(run, front=front)])["runs"]
    for point in (*shown["points"], *shown["references"]):
        assert "dato.apply_patch(pipe, point, compile=True)" in point["python"]
    assert ("compiled", "yes") in dict(shown["settings"])["Judging"]


def test_points_that_only_a_quality_or_nothing_picks():
    front = make_run().front
    one, two = front.points[10], replace(front.points[11], speedup=front.points[10].speedup)
    same_speed = Front((one, two), front.baseline, {}, front.conditions)
    assert set(pick_of(same_speed, two)) == {"speedup"}
    assert set(pick_of(same_speed, one)) == {"quality"}  # the other is as fast, and better
    shell = shlex.split(page_data([Run("same", same_speed)])["runs"][0]["points"][0]["shell"])
    assert pick_point(same_speed, shell[shell.index("--pick") + 1]) is one
    twins = Front((one, replace(one)), front.baseline, {}, front.conditions)
    assert pick_of(twins, twins.points[1]) == {}
    shown = page_data([Run("twins", twins)])["runs"][0]["points"][1]
    assert shown["shell"] is None and ".points[1]" in shown["python"]


def test_a_distance_has_the_fields_sign():
    front = make_run(quality="frechet").front
    points = tuple(replace(p, quality=p.quality - 100) for p in front.points)
    front = replace(front, points=points, baseline=replace(front.baseline, quality=-1.0))
    data = page_data([Run("fid", front, points)])
    assert data["metrics"][0] == {"name": "frechet", "label": "Fréchet distance", "lower": True, "digits": 2}
    shown = data["runs"][0]["points"][0]
    assert shown["values"]["frechet"] == pytest.approx(-points[0].quality) and points[0].quality < 0
    same_speed = Front((points[1], replace(points[2], speedup=points[1].speedup)), front.baseline, {}, front.conditions)
    shell = shlex.split(page_data([Run("fid", same_speed)])["runs"][0]["points"][0]["shell"])
    known = -points[1].quality  # a distance, as the command line takes it
    assert float(shell[shell.index("--pick") + 1].removeprefix("quality=")) == pytest.approx(known, abs=0.1)
    assert pick_point(same_speed, shell[shell.index("--pick") + 1]) is points[1]
    assert data["runs"][0]["volume"]["worst"] == pytest.approx(-points[0].quality)


def test_a_strip_holds_as_many_images_as_their_shape_allows():
    run = make_run(height=64, width=128)
    sample = page_data([run])["runs"][0]["stock"]["sample"]
    assert (sample["width"], sample["height"], sample["count"]) == (256, 64, 2)
    assert sample["uri"].startswith("data:image/png;base64,")


def test_references_by_kind():
    assert family_of(Schedule.full(20)) == "stock, fewer steps"
    assert family_of(Schedule.uniform(20, 3, 1)) == family_of(Schedule.uniform(20, 20, 0)) == "uniform schedules"
    assert family_of(Schedule.uniform(20, 3, 1, 1)) == family_of(Schedule.growing(20)) == "other methods"
    assert family_of(Schedule((12, 12, 0, 12, 0))) == family_of(Schedule.full(20).with_ratios(0.5)) == "other methods"


def test_hypervolume_counts_what_is_found(run):
    values = by_evaluation(run.history, Scale.of([run.history]))
    assert len(values) == len(run.history) and values == sorted(values) and 0 < values[-1] < 1
    assert values[3] == values[2]  # that candidate failed
    # A staircase below the reference point (1, 1), summed by hand.
    scale, area, missing = Scale.of([run.history]), 0.0, 1.0
    found = [p for p in run.history if math.isfinite(p.quality)]
    for share, left in sorted(scale.objectives(p) for p in non_dominated(found)):
        area += max(0, 1 - share) * max(0, missing - left)
        missing = min(missing, left)
    assert values[-1] == pytest.approx(area)


def test_hypervolume_of_nothing_but_failures():
    failed = replace(make_run().history[0], quality=math.nan)
    with pytest.raises(DatoError, match="finite"):
        Scale.of([[failed]])
    assert page_data([replace(make_run(), history=(failed,))])["runs"][0]["volume"] is None


def test_bad_input(run, tmp_path):
    with pytest.raises(DatoError, match="at least one run"):
        write_page([], tmp_path / "page.html")
    with pytest.raises(DatoError, match="different names"):
        write_page([run, run], tmp_path / "page.html")
    broken = replace(run, samples={run.front.points[0].schedule: b"no image"})
    with pytest.raises(DatoError, match="depth-1: a sample is no PNG"):
        write_page([broken], tmp_path / "page.html")
    with pytest.raises(DatoError, match="no sample images"):
        samples_picture(replace(run, samples={}), tmp_path / "samples.png")
    with pytest.raises(DatoError, match="one quality metric"):
        front_picture([run, make_run("b", quality="ssim")], tmp_path / "front.png")
    assert not list(tmp_path.iterdir())


def test_the_page_loads_nothing(written):
    text = written.read_text("utf-8")
    # plotly.js names addresses for maps, which this page has none of; the policy forbids to follow them anyway.
    own = re.sub(r"<script>.*?</script>", "", text, count=1, flags=re.DOTALL)
    assert not re.search(r"""(src|href|action)\s*=\s*["']?(https?:|//)|@import|url\(""", own)
    assert "default-src 'none'" in text and "unsafe-eval" not in text


def test_pictures(run, tmp_path):
    front_picture([run, make_run("b", 1.2)], tmp_path / "front.png")
    schedules_picture(run.front, tmp_path / "schedules.png")
    schedules_picture(dato.load_front("emoji-sd-plms20-ratio"), tmp_path / "ratios.png")
    samples_picture(run, tmp_path / "samples.png")
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG" and min(image.size) > 200
    assert len(list(tmp_path.iterdir())) == 4


# In a browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def opened(browser):
    """Pages that are open already, by path, each with the list of what went wrong in it."""
    return {}


@pytest.fixture
def visit(browser, opened):
    """Shows a page with its knee chosen; at the end of a test nothing may have been complained about or fetched."""

    def open_page(path, width=1280):
        if path not in opened:
            page, trouble = browser.new_page(), []
            page.on("console", lambda message: trouble.append(message.text))
            page.on("pageerror", lambda error: trouble.append(str(error)))
            page.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or trouble.append(r.url))
            page.set_default_timeout(15_000)
            page.goto(path.as_uri())
            opened[path] = page, trouble
        page = opened[path][0]
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_selector("#plot .scatterlayer")
        page.click("#points button:has-text('★')")
        return page

    yield open_page
    assert not [what for _, trouble in opened.values() for what in trouble]


def check_shown(page, label, point):
    """The page says of the chosen point what the front says."""
    assert page.inner_text("#point-heading") == label
    assert page.inner_text("[data-value=speedup]") == f"{point.speedup:.2f}×"
    assert page.inner_text("[data-value=latency]") == f"{point.latency_ms:.0f} ms"
    assert page.inner_text("[data-value=psnr]") == f"{point.quality:.2f}"
    assert page.inner_text("[data-value=ssim]") == f"{point.metrics['ssim']:.4f}"
    assert page.locator("#schedule-strip .call").count() == len(point.schedule)
    depths = page.eval_on_selector_all("#schedule-strip b", "all => all.map(b => b.textContent)")
    assert depths == [str(depth) if depth else "·" for depth in point.schedule.depths]


def test_pick_by_keys(run, written, visit):
    page, points = visit(written), run.front.points
    knee = points.index(run.front.knee())
    check_shown(page, f"Point {knee}", points[knee])
    page.focus("#plot")
    page.keyboard.press("ArrowRight")  # the axis is the speed-up: to the right it is faster
    check_shown(page, f"Point {knee - 1}", points[knee - 1])
    page.keyboard.press("Home")
    check_shown(page, f"Point {len(points) - 1}", points[-1])
    assert page.is_disabled("#left") and page.get_attribute("#left", "aria-label") == "Next slower point"
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")  # there is none further
    check_shown(page, "Point 0", points[0])
    page.select_option("#pick-axis", "share")
    page.focus("#plot")
    page.keyboard.press("ArrowRight")
    check_shown(page, "Point 1", points[1])
    assert f"{points[1].speedup:.2f}×" in page.inner_text("#live")
    row = page.locator("#points button").nth(5)
    row.focus()
    page.keyboard.press("Enter")
    check_shown(page, row.inner_text(), points[5])
    assert row.get_attribute("aria-current") == "true" and page.locator("[aria-current]").count() == 1


def test_pick_by_mouse(run, written, visit):
    page = visit(written)
    page.evaluate("scrollTo(0, 0)")
    # Where plotly drew point 20 of the front.
    x, y = page.evaluate(
        """() => {
            const plot = document.getElementById("plot"), layout = plot._fullLayout;
            const front = plot.data.find((trace) => trace.name === "the front"), box = plot.getBoundingClientRect();
            return [box.x + layout.xaxis._offset + layout.xaxis.d2p(front.x[20]),
                    box.y + layout.yaxis._offset + layout.yaxis.d2p(front.y[20])];
        }"""
    )
    page.mouse.move(x, y)
    page.mouse.click(x, y)
    page.wait_for_selector("#point-heading:text-is('Point 20')")
    check_shown(page, "Point 20", run.front.points[20])
    assert "as good as more than 40 plain steps,<br>more than 1.4× as fast as those" in page.evaluate(
        "plot.data.find((trace) => trace.name === 'the front').hovertext[20]"
    )
    page.get_by_role("button", name="25 steps", exact=True).click()
    check_shown(page, "25 steps", run.front.references["25 steps"])
    assert 'references["25 steps"]' in page.inner_text("#use") and "generate.py" not in page.inner_text("#use")
    page.get_by_role("button", name="Stock", exact=True).click()
    assert "remove_patch" in page.inner_text("#use")


def test_plain_steps_of_the_chosen_point(run, written, visit):
    page = visit(written)
    for number, (steps, faster) in {9: ("16", "2.6×"), 0: ("<5", "–"), 14: (">40", ">2.3×")}.items():
        button = page.get_by_role("button", name=re.compile(rf"^(★ )?Point {number}$"))
        button.click()
        row = page.locator("#points tr", has=button)
        assert page.inner_text("[data-value=plain-steps]") == steps
        assert page.inner_text("[data-value=over-plain-steps]") == faster
        assert (steps if faster == "–" else f"{steps} ({faster})") in row.inner_text().split("\t")
    assert "interpolated between those that were measured" in page.inner_text("#points-meanings")
    page.get_by_role("button", name="25 steps", exact=True).click()
    assert page.inner_text("[data-value=plain-steps]") == page.inner_text("[data-value=over-plain-steps]") == "–"
    page.get_by_role("button", name="Stock", exact=True).click()
    assert page.locator("[data-value=plain-steps]").count() == 0


def test_images_counts_and_copy(run, written, visit):
    page = visit(written)
    images = page.locator("#image-strips img")
    assert images.count() == 2
    assert images.evaluate_all("all => all.every(i => i.complete && i.naturalWidth === 256)")
    assert page.locator("#image-strips li").all_inner_texts() == run.front.conditions["prompts"][:4]
    facts = page.inner_text("#overview")
    search = run.front.conditions["search"]
    assert re.search(rf"candidates\s+{search['candidates']}\b", facts)
    assert re.search(rf"images\s+{search['images']}\b", facts)
    assert re.search(r"failures\s+1\b", facts)
    assert "reference point is stock's time" in page.inner_text("#volume-words")
    page.click(".copy >> nth=0")
    page.wait_for_selector(".copy:text-is('Copied')")
    page.select_option("#pick-metric", "clip-score")
    assert "CLIP score" in page.text_content("#plot .ytitle")


@pytest.mark.parametrize("width", [360, 1280])
def test_no_wider_than_the_screen(written, visit, width):
    page = visit(written, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Headings go down one level at a time, and everything to be operated has a name.
    levels = page.eval_on_selector_all("h1,h2,h3", "all => all.map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    name = "(e.getAttribute('aria-label') || e.alt || e.textContent.trim() || e.labels?.[0]?.textContent)"
    ours = "button,select,img,[role]:not(.modebar)"
    assert page.eval_on_selector_all(ours, f"all => all.filter(e => !{name}).map(e => e.outerHTML)") == []


def test_several_runs(run, folder, visit):
    other = make_run("ratio-2", 1.3)
    write_page([run, other], folder / "two.html")
    page = visit(folder / "two.html", 360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    own = page.evaluate(
        "plot.data.filter(t => t.mode === 'lines+markers').map(t => [t.name, t.marker.symbol, t.line.dash])"
    )
    assert [name for name, *_ in own] == ["depth-1", "ratio-2"]
    assert own[0][1] != own[1][1] and own[0][2] != own[1][2]  # not by colour alone
    page.focus("#plot")
    page.keyboard.press("ArrowDown")
    assert page.input_value("#pick-run") == "1" and "ratio-2" in page.inner_text("#point-note")
    page.keyboard.press("End")
    check_shown(page, "Point 0", other.front.points[0])
    assert "runs/ratio-2/pareto.json" in page.inner_text("#use")
    page.select_option("#pick-run", "0")
    assert "runs/depth-1/pareto.json" in page.inner_text("#use")


def test_text_stays_text(folder, visit):
    front = make_run().front
    conditions = {**front.conditions, "prompts": [HOSTILE], "model": HOSTILE, "hardware": "{{script}} {{data}}"}
    front = replace(front, conditions=conditions, references={HOSTILE: front.references["25 steps"]})
    hostile = Run(HOSTILE, front, tuple(front.points), {front.baseline.schedule: strip("red", images=1)})
    write_page([hostile, make_run("tame")], folder / "hostile.html")
    page = visit(folder / "hostile.html")
    assert page.locator("table button", has_text=HOSTILE).count() == 1
    assert page.evaluate("window.hacked") is None
    assert page.locator("b:text-is('bold'), img[src=x]").count() == 0
    assert "{{script}} {{data}}" in page.inner_text("#settings")
    assert HOSTILE in page.inner_text("#point-note")
    page.click("#points tr.other button >> nth=0")
    assert page.inner_text("#point-heading") == HOSTILE
    assert HOSTILE in page.locator("#plot .annotation-text, #plot .legendtext").all_text_contents()
    assert page.evaluate("window.hacked") is None


def test_a_run_of_its_front_alone(folder, visit):
    front = make_run().front
    bare = Front(front.points[:1], front.baseline, {}, {"calls": 50, "quality": "psnr"})
    write_page([Run("bare", bare)], folder / "bare.html")
    page = visit(folder / "bare.html")
    check_shown(page, "Point 0", front.points[0])
    assert page.is_hidden("#images") and page.is_hidden("#progress")
    assert page.inner_text("[data-value=plain-steps]") == "–" and page.inner_text("#points-meanings") == ""
    assert page.is_disabled("#left") and page.is_disabled("#right")
    assert "--strategy bare/pareto.json" in page.inner_text("#use")


def test_samples_of_a_validated_front_have_the_validation_prompts():
    prompts = ["a validated cat", "a validated dog"]
    run = make_run(validation_prompts=prompts)
    assert page_data([run])["runs"][0]["prompts"] == prompts == run.sample_prompts
    assert make_run().sample_prompts == list(make_run().front.conditions["prompts"])
