"""Sharing fronts: what is uploaded, what the card says, and the hub's own client against a small fake hub."""

import base64
import hashlib
import json
import os
import re
import threading
import warnings
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from conftest import call, tiny_unet
from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import LocalEntryNotFoundError, LocalTokenNotFoundError

import dato
import dato.hub.repository
from dato import DatoError, Front, Point, Schedule, load_front
from dato.hub import card_in, front_card, is_name
from dato.hub.paths import without_paths

SD = "stable-diffusion-v1-5/stable-diffusion-v1-5"
CONDITIONS = {
    "model": SD,
    "dtype": "float16",
    "height": 512,
    "width": 768,
    "scheduler": "PNDMScheduler",
    "scheduler_name": None,
    "steps": 3,
    "calls": 3,
    "guidance_scale": 7.5,
    "prompts": ["a cat", "a road to /home/of/dogs"],
    "quality": "frechet",
    "clip": None,
    "hardware": "A | GPU",
    "search": {"failures": {}},
}


def point(quality, latency, depth=1, **own):
    return Point(Schedule([12, depth, depth]), quality, latency, 100 / latency, {}, **own)


def front_of(**conditions):
    points = point(-20, 20, 0), point(-3.5, 25), point(-2, 60, 5, steps=3, scheduler="dpm++2m")
    stock = Point(Schedule.full(3), 0.0, 100.0, 1.0, {})
    return Front(points, stock, {"N=2 d=1": point(-30, 50)}, CONDITIONS | conditions)


def card_of(front, name):
    return front_card(front.to_dict(), front.knee_index, name)


def without_places(front):
    return replace(front, conditions=without_paths(front.conditions))


@pytest.fixture
def front():
    return front_of()


class Hub(ThreadingHTTPServer):
    """A hub of the few answers that dato asks for; `files` are {(repo, revision): {path: bytes}}."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.url, self.files, self.asked, self.refuse = f"http://127.0.0.1:{self.server_port}", {}, [], {}


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        pattern = r"(?:/api/models)?/([^/]+/[^/]+)(?:/resolve/([^/]+)/([^?]+))?"  # of a file, or of the repository
        repo, revision, path = re.fullmatch(pattern, self.path).groups()
        self.server.asked.append((self.command, repo, revision, path, self.headers.get("Authorization")))
        if repo in self.server.refuse or not any(known == repo for known, _ in self.server.files):
            status, reason = self.server.refuse.get(repo, (401, "RepoNotFound"))
            return self.answer(status, reason=reason)
        files = self.server.files.get((repo, revision))
        if files is None or path not in files:
            return self.answer(404, reason="RevisionNotFound" if files is None else "EntryNotFound")
        return self.answer(200, files[path])

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server, parts = self.server, self.path.partition("?")[0].split("/")[2:]
        server.asked.append((self.path, self.headers.get("Authorization"), body))
        if parts[0] == "repos":
            asked = json.loads(body)
            repo = f"{asked['organization'] or 'me'}/{asked['name']}"
            if repo in server.refuse:
                return self.answer(server.refuse[repo][0], reason=server.refuse[repo][1])
            server.files.setdefault((repo, "main"), {})
            return self.say({"url": f"{server.url}/{repo}"})
        if parts == ["validate-yaml"]:
            return self.say({"errors": [], "warnings": []})
        repo, revision = "/".join(parts[1:3]), parts[-1]
        if parts[-2] == "branch":
            server.files.setdefault((repo, revision), dict(server.files[repo, "main"]))
        if parts[-2] == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self.say({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        if parts[-2] == "commit":
            request = "create_pr=1" in self.path
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file" and not request:
                    server.files[repo, revision][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            place = f"{server.url}/{repo}"
            addresses = {"commitUrl": f"{place}/commit/abc", "pullRequestUrl": f"{place}/discussions/1"}
            return self.say(addresses | {"commitOid": "abc"})
        return self.say({})

    def say(self, value):
        self.answer(200, json.dumps(value).encode())

    def answer(self, status, data=b"", reason=None):
        self.send_response(status)
        digest = hashlib.sha1(data).hexdigest()
        for name, value in {"ETag": f'"{digest}"', "X-Repo-Commit": digest, "X-Error-Code": reason}.items():
            if value is not None:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_login")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def nothing_asked(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(dato.hub.repository, "hf_hub_download", fail)


def refused(message, function, *arguments, **options):
    with pytest.raises(DatoError, match=message) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Folders


def test_a_saved_front_comes_back_equal(front, tmp_path, nothing_asked):
    assert front.save_pretrained(tmp_path / "deep" / "mine") is None
    folder = tmp_path / "deep" / "mine"
    assert {path.name for path in folder.iterdir()} == {"pareto.json", "README.md"}  # nothing temporary stays
    assert Front.from_pretrained(folder) == Front.from_pretrained(str(folder)) == load_front(folder) == front
    assert Front.from_pretrained(tmp_path, subfolder="deep/mine") == front
    front.save(tmp_path / "pareto.json")
    assert (tmp_path / "pareto.json").read_bytes() == (folder / "pareto.json").read_bytes()
    assert Front.from_pretrained(tmp_path) == front  # a run's folder has no card


def test_a_write_that_fails_leaves_what_was_there(front, tmp_path, monkeypatch):
    front.save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused("No space left", front_of(hardware="other").save_pretrained, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_folders_that_hold_no_front_are_refused(front, tmp_path, nothing_asked, monkeypatch):
    refused(r"a folder without pareto\.json", Front.from_pretrained, tmp_path)
    front.save_pretrained(tmp_path / "front")
    refused(r"x is a folder without pareto\.json", Front.from_pretrained, tmp_path / "front", subfolder="x")
    refused(f"there is no folder '{tmp_path}/none'", Front.from_pretrained, tmp_path / "none")
    (tmp_path / "pareto.json").write_text(Schedule.full(3).to_json())
    refused("one schedule, not a front", Front.from_pretrained, tmp_path)
    (tmp_path / "file").write_text("")
    refused("cannot write", front.save_pretrained, tmp_path / "file")
    (tmp_path / "front" / "README.md").write_bytes(b"\xff\xfe")
    refused("not a text file", front.save_pretrained, tmp_path / "front")
    refused(r"private= is for push_to_hub=True", front.save_pretrained, tmp_path, private=True)
    refused("'a b' cannot be a repository's id", front.save_pretrained, tmp_path, repo_id="a b")
    monkeypatch.chdir(tmp_path)
    Path("user/name").mkdir(parents=True)  # what is there as a folder is that folder
    refused(r"user/name is a folder without", load_front, "user/name")


def test_a_folder_patches(front, tmp_path):
    front.save_pretrained(tmp_path)
    unet = tiny_unet()
    dato.apply_patch(unet, tmp_path)
    assert dato.current_schedule(unet) == front.knee().schedule
    dato.apply_patch(unet, str(tmp_path), speedup=4.5)
    assert dato.current_schedule(unet) == front.points[0].schedule
    dato.remove_patch(unet)


# The card


def test_the_card_of_compiled_calls_says_so(front):
    text = card_of(replace(front, conditions={**front.conditions, "compiled": True}), "user/name")
    assert "dato.apply_patch(pipe, point, compile=True)" in text and "- calls: compiled, stock's too\n" in text


def test_the_card_says_what_the_front_holds(front, tmp_path):
    front.save_pretrained(tmp_path, repo_id="user/name")
    text = (tmp_path / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.to_dict() == {  # and no license: that is the user's to choose
        "library_name": "dato",
        "base_model": SD,
        "tags": ["stable-diffusion", "dato", "caching", "token-pruning"],
    }
    assert card.text.startswith("\n# name\n\n3 schedules of feature caching and token pruning for ")
    assert f" for {SD}, found by dato:\n1.67x to 5.00x as fast as stock.\n" in text
    table = """
| point | speed-up | Fréchet distance | steps | sampler |
| --- | --- | --- | --- | --- |
| 0 | 5.00x | 20 | 3 | PNDMScheduler |
| 1 ★ | 4.00x | 3.5 | 3 | PNDMScheduler |
| 2 | 1.67x | 2 | 3 | dpm++2m |
| stock | 1.00x | 0 | 3 | PNDMScheduler |

"""
    assert table in text
    conditions = f"""
- model: {SD}
- hardware: A | GPU
- dtype: float16
- size: 768 x 512
- steps of stock: 3
- guidance scale: 7.5
- quality metric: Fréchet distance
- prompts: 2
"""
    assert conditions in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert code.splitlines()[2:] == [
        'point = dato.load_front("user/name").knee()  # or .pick(speedup=...), .pick(quality=...)',
        "dato.apply_patch(pipe, point)",
        'image = pipe("a prompt", guidance_scale=7.5, **{"num_inference_steps": 3} | point.kwargs).images[0]',
    ]
    front.save_pretrained(tmp_path / "mine")
    assert 'load_front("mine")' in (tmp_path / "mine" / "README.md").read_text()  # and not the whole place


class Recorder:
    """A pipeline that only notes what it was called with."""

    def __init__(self, pipe):
        self.unet, self.scheduler, self.calls = pipe.unet, pipe.scheduler, []

    def __call__(self, *arguments, **options):
        self.calls.append((arguments, options))
        return SimpleNamespace(images=[None])


@pytest.mark.parametrize("name", ["emoji-sd-depth", "emoji-sd-plms20-depth"])
@pytest.mark.parametrize("pick", ["knee()", "points[0]", "points[-1]"])
def test_the_cards_python_runs(name, pick, pipe):
    front, recorder = load_front(name), Recorder(pipe)
    code = re.search(r"```python\n(.*?)```", card_of(front, name), re.DOTALL)[1].replace("knee()", pick)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # as dato warns if the sampler is not the point's
        exec(code, {"pipe": recorder})
    point = eval(f"front.{pick}", {"front": front})
    assert dato.current_schedule(pipe) == point.schedule
    steps = point.steps or front.conditions["steps"]
    assert recorder.calls == [(("a prompt",), {"guidance_scale": 3.0, "num_inference_steps": steps})]


def test_little_is_known_of_some_fronts():
    text = card_of(replace(front_of(), conditions={"calls": 3, "quality": "mine"}), "x")
    assert "base_model" not in text and "for a UNet" in text and "| 0 | 5.00x | -20 |  |  |" in text
    assert 'pipe("a prompt", **point.kwargs)' in text and "None" not in text
    odd = front_of(model="a: [b\n---\nlicense: mit", hardware="x\n---\ny")
    assert "license" not in ModelCard(card_of(odd, "x")).data.to_dict()


PLACES = [
    ("model", "/home/me/models/sd15", "sd15"),
    ("model", "/home/me/my models/sd15/", "sd15"),
    ("model", "~/models/sd15", "sd15"),
    ("model", "../models/sd15", "sd15"),
    ("model", "all/my/models", "models"),
    ("model", "C:\\Users\\me\\sd15", "sd15"),
    ("model", "file:///home/me/sd15", "sd15"),
    ("model", f"/home/me/.cache/huggingface/hub/models--{SD.replace('/', '--')}/snapshots/0123abcd", SD),
    ("model", SD, SD),
    ("model", "emoji-sd", "emoji-sd"),
    ("clip", "/home/me/clip", "clip"),
    ("clip", "openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16"),
    ("statistics", "/home/me/real.safetensors", "real.safetensors"),
    ("real", "pictures/of/mine/", "mine"),
    ("hardware", "AMD EPYC, 2 threads", "AMD EPYC, 2 threads"),
    ("latency", "end to end/per image, and/or 1 / 2", "end to end/per image, and/or 1 / 2"),
    ("note", "see https://example.org/a/b/c", "see https://example.org/a/b/c"),
    ("note", "read '/home/me/x y' and C:\\Users\\me\\z", "z"),
    ("note", "read (/home/me/x) and file:///home/me/y, ~/a/b", "read (x) and y, b"),
    ("versions", {"torch": "2.9"}, {"torch": "2.9"}),
    ("search", {"depths": "/home/me/runs/depth-1"}, {"depths": "depth-1"}),
    ("search", {"warm_start": "runs/depth-1/pareto.json"}, {"warm_start": "pareto.json"}),
    ("search", {"depths": [0, 1], "alphabet": (0.5,)}, {"depths": [0, 1], "alphabet": (0.5,)}),
    ("search", {"failures": {"cannot open /home/me/x.bin": 3}}, {"failures": {"cannot open x.bin": 3}}),
    ("other", [{"places": ["/home/me/x", None, True]}], [{"places": ["x", None, True]}]),
]


@pytest.mark.parametrize(("key", "value", "kept"), PLACES)
def test_places_on_this_machine_stay_on_it(key, value, kept, tmp_path):
    front = front_of(**{key: value})
    front.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "pareto.json").read_text())["conditions"][key] == json.loads(json.dumps(kept))
    assert without_places(front).conditions[key] == kept
    assert front.conditions[key] == value  # what is in memory, or in the run's folder, is as it was
    text = (tmp_path / "README.md").read_text()
    assert "/home/" not in text and "Users" not in text and str(tmp_path) not in text
    assert ModelCard(text).data.base_model == (SD if key != "model" or kept == SD else None)


def test_prompts_stay_what_they_are_and_folders_are_no_hub_ids(front, tmp_path, monkeypatch):
    assert without_places(front) == front  # whose prompts look like a place
    monkeypatch.chdir(tmp_path)
    local = front_of(model="models/sd15")
    assert without_places(local).conditions["model"] == "models/sd15"
    Path("models/sd15").mkdir(parents=True)
    assert without_places(local).conditions["model"] == "sd15"
    local.save_pretrained("x")
    assert "base_model" not in Path("x/README.md").read_text()


def test_a_card_that_was_edited_is_kept(front, tmp_path):
    card = tmp_path / "README.md"
    front.save_pretrained(tmp_path)
    other = front_of(hardware="another")
    other.save_pretrained(tmp_path)  # nobody has edited it
    text = card.read_text()
    assert "- hardware: another" in text
    card.write_bytes(text.replace("\n", "\r\n").encode())  # as git writes it on Windows: nobody has, still
    front.save_pretrained(tmp_path)
    assert "- hardware: A | GPU" in card.read_text()

    edited = card.read_text().replace("library_name: dato\n", "library_name: dato\nlicense: mit\n")
    card.write_text(edited)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.save_pretrained(tmp_path)  # the table is the same
    assert card.read_text() == edited and load_front(tmp_path) == other
    with pytest.warns(UserWarning, match=r"README\.md is kept as it was edited, and its table is not this front's"):
        replace(front, points=front.points[:2]).save_pretrained(tmp_path)
    assert card.read_text() == edited and len(load_front(tmp_path)) == 2
    card.write_bytes(edited.replace("\n", "\r\n").encode())
    front.save_pretrained(tmp_path)
    assert card.read_bytes() == edited.replace("\n", "\r\n").encode()
    card.write_text("# Mine\n")
    with pytest.warns(UserWarning, match="is kept"):
        front.save_pretrained(tmp_path)
    assert card.read_text() == "# Mine\n"


# The hub


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("user/name", True),
        ("user/my.name-2", True),
        ("user/name@main", True),
        ("user/name@refs/pr/1", True),
        ("user/name@", False),
        ("user/name@a b", False),
        ("name", False),
        ("a/b/c", False),
        ("./name", False),
        ("../name", False),
        ("~/name", False),
        ("/name", False),
        ("user/", False),
        ("runs\\name", False),
        ("runs/front.json", False),
        ("user/my name", False),
        ("user/name\n", False),
        ("", False),
    ],
)
def test_what_looks_like_a_name_on_the_hub(text, is_one):
    assert is_name(text) == is_one


def test_the_hub_is_not_asked_for_what_is_no_name_on_it(nothing_asked):
    for name in ("emoji-sd-dept", "runs/none.json", "./user/name", Path("user/name"), "a/b/c"):
        refused("no file and no shipped strategy", load_front, name)
    for name in ("name", "emoji-sd-depth", "runs/none.json", Path("user/name"), "/user/name"):
        refused("on the hub a front is called user/name", Front.from_pretrained, name)
    assert load_front("emoji-sd-depth")
    with pytest.raises(AssertionError, match="the hub was asked"):
        dato.hub.repository.hf_hub_download()


def test_pushed_and_loaded_by_its_name(front, hub, tmp_path):
    local = front_of(model="/home/me/sd15")
    address = local.push_to_hub("user/name")
    assert address == f"{hub.url}/user/name/commit/abc" and type(address) is str
    files = hub.files["user/name", "main"]
    assert set(files) == {"pareto.json", "README.md"}
    assert not any(b"/home/me" in data for data in files.values()) and b"/home/me" not in str(hub.asked).encode()
    assert b'load_front("user/name")' in files["README.md"]
    local.save_pretrained(tmp_path / "same", repo_id="user/name")
    assert {path.name: path.read_bytes() for path in (tmp_path / "same").iterdir()} == files

    shared = without_places(local)
    assert load_front("user/name") == Front.from_pretrained("user/name") == shared
    unet = tiny_unet()
    dato.apply_patch(unet, "user/name", speedup=4.5)
    assert dato.current_schedule(unet) == front.points[0].schedule

    other = front_of(hardware="another")
    other.push_to_hub("user/name", revision="v2")
    for loaded in (load_front("user/name@v2"), Front.from_pretrained("user/name", revision="v2")):
        assert loaded == other
    assert load_front("user/name") == shared
    hub.files["user/name", "main"]["sub/pareto.json"] = files["pareto.json"]
    assert Front.from_pretrained("user/name", subfolder="sub") == shared


def test_what_was_downloaded_is_there_offline(front, hub, tmp_path, monkeypatch):
    front.push_to_hub("user/name")
    elsewhere = {"cache_dir": tmp_path / "elsewhere"}
    assert load_front("user/name") == Front.from_pretrained("user/name", **elsewhere) == front
    assert (tmp_path / "elsewhere" / "models--user--name").is_dir()
    assert hub.asked[-1][-1] == "Bearer hf_of_the_login"
    Front.from_pretrained("user/name", token="hf_other")
    assert hub.asked[-1][-1] == "Bearer hf_other"
    asked = len(hub.asked)
    only = {"local_files_only": True}
    for place in ({}, elsewhere):
        assert Front.from_pretrained("user/name", **only, **place) == front
    refused("not in the cache, and local_files_only", Front.from_pretrained, "user/other", **only)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_front("user/name") == front
    refused("not in the cache, and HF_HUB_OFFLINE is set", load_front, "user/other")
    refused("HF_HUB_OFFLINE|offline", Front.from_pretrained, "user/name", force_download=True)
    refused("cannot share user/name: HF_HUB_OFFLINE is set", front.push_to_hub, "user/name")
    assert len(hub.asked) == asked

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    new = front_of(hardware="new")
    hub.files["user/name", "main"]["pareto.json"] = json.dumps(new.to_dict()).encode()
    assert Front.from_pretrained("user/name", **only) == front
    assert load_front("user/name") == new  # the hub's newest, if it can be asked


def test_what_the_hub_does_not_have_is_said_in_one_line(front, hub, monkeypatch):
    front.push_to_hub("user/name")
    hub.files["user/model", "main"] = {"config.json": b"{}"}
    hub.refuse["user/gated"] = (403, "GatedRepo")
    for name, message in [
        ("runs/foo", "it has no such repository, or a private one; check the name, or log in with `hf auth login`"),
        ("user/name@v3", "user/name has no revision 'v3'"),
        ("user/model", r"user/model has no pareto\.json: it holds no front of dato's"),
        ("user/gated", "its owner must give access: ask at https://huggingface.co/user/gated"),
        ("user--x/name", r"Cannot have -- or \.\. in repo_id"),
    ]:
        both = f"there is no file or folder '{name}', and it cannot be loaded from the hub: "
        for load in (load_front, Front.from_pretrained, lambda name: dato.apply_patch(tiny_unet(), name)):
            refused(both + f".*{message}", load, name)
    refused(r"user/name has no sub/pareto\.json", Front.from_pretrained, "user/name", subfolder="sub")
    refused("give one of them", Front.from_pretrained, "user/name@v1", revision="v2")

    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("An error happened\nand more") from ConnectionError("no route\nto host")

    monkeypatch.setattr(dato.hub.repository, "hf_hub_download", unreachable)
    refused("not in the cache, and the hub did not send it: no route$", load_front, "user/name")

    def broken(*_, **__):
        raise RuntimeError("of some library\nbelow")

    monkeypatch.setattr(dato.hub.repository, "hf_hub_download", broken)
    refused("from the hub: of some library$", load_front, "user/name")


def test_what_the_hub_has_is_read_strictly(front, hub, monkeypatch):
    files = hub.files["user/name", "main"] = {}
    good = front.to_dict()
    for data, message in [
        (b"{", "not JSON"),
        (b"\x80\x04N.", "not a text file"),  # a pickle
        (b"[]", "neither a front nor a schedule"),
        (json.dumps(good | {"version": 2}).encode(), "version 2 is not known here"),
        (json.dumps(good | {"extra": 2}).encode(), 'unknown key "extra"'),
        (Schedule.full(3).to_json().encode(), "user/name is one schedule, not a front"),
    ]:
        files["pareto.json"] = data
        message = refused(message, load_front, "user/name")
        assert "user/name" in message or "models--user--name" in message
    unet = tiny_unet()
    dato.apply_patch(unet, "user/name")  # that is no front, and runs
    assert dato.current_schedule(unet) == Schedule.full(3)
    monkeypatch.setattr(dato.hub.repository, "MAX_BYTES", 1000)
    files["pareto.json"] = json.dumps(good).encode()
    refused("that is no front", load_front, "user/name")


def test_what_a_push_asks_for(front, hub, tmp_path):
    def asked(kind):
        return [(token, body) for path, token, body in (a for a in hub.asked if len(a) == 3) if f"/{kind}" in path]

    front.push_to_hub("name", private=True, commit_message="Mine", token="hf_other")
    assert hub.files["me/name", "main"] and b'load_front("me/name")' in hub.files["me/name", "main"]["README.md"]
    token, body = asked("repos/create")[-1]
    assert token == "Bearer hf_other" and {"private": True, "visibility": "private"}.items() & json.loads(body).items()
    assert json.loads(asked("commit/")[-1][1].splitlines()[0])["value"]["summary"] == "Mine"
    hub.asked.clear()
    assert front.push_to_hub("user/name", create_pr=True) == f"{hub.url}/user/name/discussions/1"
    assert hub.files["user/name", "main"] == {}
    token, body = asked("repos/create")[-1]
    assert token == "Bearer hf_of_the_login" and not {"private", "visibility"} & set(json.loads(body))
    assert json.loads(asked("commit/")[-1][1].splitlines()[0])["value"]["summary"] == "Upload front with dato"
    assert [path for path, *_ in hub.asked if "commit/main?create_pr=1" in path]
    assert not [path for path, *_ in hub.asked if "/branch/" in path]

    assert front.save_pretrained(tmp_path / "mine", push_to_hub=True) == f"{hub.url}/me/mine/commit/abc"
    assert b'load_front("me/mine")' in hub.files["me/mine", "main"]["README.md"]
    (tmp_path / "mine" / "journal.jsonl").write_text("/home/me")  # of a run's folder nothing else goes along
    front.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="user/run", revision="v1")
    assert set(hub.files["user/run", "v1"]) == {"pareto.json", "README.md"} and not hub.files["user/run", "main"]


def test_an_edited_card_on_the_hub_is_kept_and_an_edited_one_here_goes_along(front, hub, tmp_path):
    front.push_to_hub("user/name")
    files = hub.files["user/name", "main"]
    front_of(hardware="another").push_to_hub("user/name")
    assert b"- hardware: another" in files["README.md"]  # nobody has edited it
    there = files["README.md"] = files["README.md"].replace(b"---\n", b"---\nlicense: mit\n", 1)
    front.push_to_hub("user/name")
    assert files["README.md"] == there and load_front("user/name") == front
    front.save_pretrained(tmp_path, push_to_hub=True, repo_id="user/name")  # here it is dato's own
    assert files["README.md"] == there
    here = (tmp_path / "README.md").read_text() + "\nMine.\n"
    (tmp_path / "README.md").write_text(here)
    front.save_pretrained(tmp_path, push_to_hub=True, repo_id="user/name")
    assert files["README.md"].decode() == here == (tmp_path / "README.md").read_text()


def test_a_push_that_fails_is_one_line(front, hub, monkeypatch):
    hub.refuse["user/theirs"] = (403, "Forbidden")
    message = refused(
        "cannot share user/theirs: the hub does not let you write there", front.push_to_hub, "user/theirs"
    )
    assert "log in with `hf auth login`" in message
    for bad in ("a/b/c", "user/na me", "", "user/name@v1"):
        refused("cannot be a repository's id", front.push_to_hub, bad)
    refused("leave out revision='v1'", front.push_to_hub, "user/name", create_pr=True, revision="v1")
    refused("404 Client Error.*Revision Not Found", front.push_to_hub, "user/name", revision="refs/pr/7")
    # The hub is gone between two requests: the card there may have been edited, and is not overwritten.
    hub.files["user/name", "main"] = {"README.md": b"edited"}

    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("no answer\nat all")

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", unreachable)
    refused("cannot share user/name: no answer$", front.push_to_hub, "user/name")
    assert hub.files["user/name", "main"] == {"README.md": b"edited"}

    def nobody(*_, **__):
        raise LocalTokenNotFoundError("Token is required")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", nobody)
    refused("log in with `hf auth login`", front.push_to_hub, "user/name")


# The command


def test_dato_share(front, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    front.save("runs/depth-1/pareto.json")
    code, printed, _ = call(monkeypatch, capsys, "share", "runs/depth-1", "user/name", "--dry-run", "look")
    assert code == 0 and printed.split() == ["written", "to", "look/pareto.json", "written", "to", "look/README.md"]
    assert load_front("look") == front and 'load_front("user/name")' in Path("look/README.md").read_text()
    assert not hub.asked
    edited = Path("look/README.md").read_text().replace("---\n", "---\nlicense: mit\n", 1)
    Path("look/README.md").write_text(edited)
    code, printed, _ = call(monkeypatch, capsys, "share", "look", "user/name", "--private", "--message", "Mine, edited")
    assert code == 0 and printed == f"shared: {hub.url}/user/name/commit/abc\n"
    files = hub.files["user/name", "main"]
    assert files == {"pareto.json": Path("look/pareto.json").read_bytes(), "README.md": edited.encode()}
    assert b"Mine, edited" in str(hub.asked).encode() and b'"private"' in str(hub.asked).encode()
    code, _, _ = call(monkeypatch, capsys, "share", "look", "user/name", "--dry-run", "again")
    assert code == 0 and Path("again/README.md").read_text() == edited
    code, printed, _ = call(monkeypatch, capsys, "show", "user/name")
    assert code == 0 and "5.00x" in printed
    code, printed, _ = call(monkeypatch, capsys, "share", "emoji-sd-depth", "user/emoji")
    assert code == 0 and b"base_model" not in hub.files["user/emoji", "main"]["README.md"]
    assert load_front("user/emoji") == load_front("emoji-sd-depth")


def test_dato_share_of_what_cannot_be(front, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    front.save("run/pareto.json")
    hub.refuse["user/theirs"] = (401, "Unauthorized")
    Path("file").write_text("")
    for arguments, message in [
        (("share", "nothing", "user/name"), "no file and no shipped strategy 'nothing'"),
        (
            ("share", "runs/none", "user/name"),
            "no file or folder 'runs/none', and it cannot be loaded from the hub: it has no",
        ),
        (("share", "dato-published", "user/name"), "one schedule, not a front"),
        (("share", "run", "user/a b"), "'user/a b' cannot be a repository's id"),
        (("share", "run", "user/a b", "--dry-run", "x"), "'user/a b' cannot be a repository's id"),
        (("share", "run", "user/theirs"), "log in with `hf auth login`"),
        (("share", "run", "user/name", "--dry-run", "file"), "cannot write"),
        (("generate", "a", "--strategy", "user/none"), "there is no file or folder 'user/none'"),
    ]:
        code, printed, errors = call(monkeypatch, capsys, *arguments)
        assert (code, printed) == (2, "") and message in errors and errors.count("\n") == 1, errors
    assert not hub.files and not Path("x").exists()


def test_a_readme_about_something_else_is_no_card(front, tmp_path):
    assert card_in(tmp_path) is None
    front.save_pretrained(tmp_path)
    assert card_in(tmp_path) == (tmp_path / "README.md").read_text()
    for text in ("# A project\n\nlibrary_name: dato\n", "---\nlibrary_name: diffusers\n---\n", ""):
        (tmp_path / "README.md").write_text(text)
        assert card_in(tmp_path) is None
