"""What is served: the page, and nothing else. And the page in a browser, if there is one."""

import asyncio
import re
import threading

import pytest
import torch
from browsers import chromium
from demo_jobs import PROMPT, a_studio, image_of, sessions_of

from dato.demo import texts
from dato.demo.server import Guard, address, bind
from dato.errors import DatoError


def answer(app, path, host="127.0.0.1:7860", method="GET"):
    """(status, headers, body) that an ASGI application answers with."""
    sent = []
    scope = {"type": "http", "path": path, "method": method, "headers": [(b"host", host.encode())], "query_string": b""}

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(part.get("body", b"") for part in sent[1:])


async def behind(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": b"inside"})


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/upload",
        "/gradio_api/proxy=http://127.0.0.1:22/",
        "/gradio_api/stream/1/1/1/playlist-file",
        "/gradio_api/component_server",
        "/gradio_api/info",
        "/assets/../../../etc/passwd",
        "/static//etc/passwd/..",
        "/monitoring",
        "/docs",
        "/openapi.json",
        "/config/../etc",
        "/\n",
    ],
)
def test_what_the_page_does_not_use_is_refused(path):
    assert answer(Guard(behind, None), path)[0] == 404


def test_what_the_page_uses_gets_through_and_may_load_nothing_from_elsewhere():
    for path in ("/", "/theme.css", "/assets/index-Ab_1.js", "/gradio_api/queue/join", "/gradio_api/heartbeat/abc1"):
        status, headers, body = answer(Guard(behind, None), path)
        assert (status, body) == (200, b"inside")
        policy = headers[b"content-security-policy"].decode()
        assert "default-src 'self'" in policy and "http" not in policy


def test_a_page_of_another_name_is_refused():
    """A page of another site that gives its own name this machine's address."""
    guard = Guard(behind, ("127.0.0.1", "localhost"))
    assert answer(guard, "/")[0] == 200 and answer(guard, "/", "localhost")[0] == 200
    assert answer(guard, "/", "evil.example:7860")[0] == 421 and answer(guard, "/", "")[0] == 421
    assert answer(Guard(behind, None), "/", "evil.example")[0] == 200


def test_a_port_is_bound_once():
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert address(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(DatoError, match=f"`port` {port}"):
            bind("127.0.0.1", port)
    with bind("0.0.0.0", 0) as everywhere:
        assert address(everywhere).startswith("http://127.0.0.1:")


@pytest.fixture
def served(pipe):
    """The page of a front with few steps, served: (address, pipeline)."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -e .[demo]")
    from dato.demo.heading import heading
    from dato.demo.page import make_page
    from dato.demo.server import application, server_of

    with a_studio(pipe) as studio, bind("127.0.0.1", 0) as listening:
        page = make_page(sessions_of(studio), heading("emoji-sd", pipe, studio.stock), "", 3, PROMPT)
        server = server_of(application(page, "127.0.0.1"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield address(listening), pipe
        server.should_exit = True
        thread.join()


def test_gradios_own_answers(served):
    """The real application: its page names no address elsewhere that a browser would load, and gives no file."""
    import urllib.error
    import urllib.request

    place, _ = served
    text = urllib.request.urlopen(place).read().decode()
    assert texts.TITLE in text
    loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"'](https?:[^\"']+)", text)
    assert loaded == []
    for path in ("/gradio_api/file=/etc/hostname", "/gradio_api/info", "/gradio_api/upload_progress?upload_id=1"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(place + path)


# In a browser


@pytest.fixture
def browser():
    with chromium() as browser:
        yield browser


def png_of(page):
    """The image (3, H, W) that a page shows of dato."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    source = page.locator(".dato.view:visible img").nth(1).get_attribute("src")
    picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def open_page(page, place):
    """Open the page and wait for its parts. They appear one after another, and Tab goes only to one that is there."""
    page.goto(place)
    for part in ("#dato-prompt textarea", "#dato-seed input", "#dato-generate", "#dato-front input[type=range]"):
        page.wait_for_selector(part)


def wait_until_done(page, trouble):
    from playwright.sync_api import TimeoutError

    try:
        page.wait_for_selector("#dato-status:has-text('Done.')")
    except TimeoutError:
        pytest.fail(f"not done: {page.inner_text('#dato-status')!r}, {trouble}")


def test_the_page_in_a_browser(served, browser):
    """Two tabs, the keyboard only in one of them; an error is a line; nothing is loaded from elsewhere."""
    place, pipe = served
    pages, trouble = [browser.new_page(), browser.new_page()], []
    for page in pages:
        page.on("console", lambda message: message.type == "error" and trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((place, "data:")) or trouble.append(asked.url))
        page.set_default_timeout(120_000)
        open_page(page, place)
    first, second = pages

    first.focus("#dato-prompt textarea")
    first.keyboard.press("Tab")
    first.keyboard.press("ControlOrMeta+a")
    first.keyboard.type("1")
    assert first.input_value("#dato-seed input") == "1"
    second.fill("#dato-seed input", "2")
    first.keyboard.press("Enter")
    second.click("#dato-generate")
    for page in pages:
        wait_until_done(page, trouble)
    for page, seed in ((first, 1), (second, 2)):
        schedule = page.evaluate("document.querySelectorAll('.dato .schedule .call').length")
        assert schedule == 4
        shown = png_of(page)
        choice = sessions_of(None).choices[3]
        image = image_of(pipe, choice.source.schedule, seed=seed)
        assert torch.equal(shown, (image * 255).round().to(torch.uint8))
        assert page.locator("#dato-gallery li").count() == 1

    slider = first.locator("#dato-front input[type=range]")
    slider.focus()
    before = slider.get_attribute("aria-valuetext")
    first.keyboard.press("ArrowRight")
    first.wait_for_function("document.querySelectorAll('#dato-gallery li').length == 2")
    assert slider.get_attribute("aria-valuetext") == sessions_of(None).choices[4].name.replace("x", "×") != before
    assert second.locator("#dato-gallery li").count() == 1

    first.fill("#dato-prompt textarea", " ")
    first.click("#dato-generate")
    first.wait_for_selector("#dato-status:has-text('type a prompt first')")
    first.fill("#dato-seed input", "-3")
    first.fill("#dato-prompt textarea", PROMPT)
    first.click("#dato-generate")
    first.wait_for_selector("#dato-status:has-text('the seed must be a whole number')")
    first.set_viewport_size({"width": 360, "height": 800})
    assert first.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert trouble == []
