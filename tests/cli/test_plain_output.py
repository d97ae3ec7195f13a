"""Output in every encoding: what it cannot hold becomes plain characters, and nothing is lost."""

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import FRONT_FILE

from dato import DatoError
from dato.cli.options import prompt_text
from dato.cli.plain_output import plain, use_plain_output

NO_UTF_8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def dato(*arguments, **settings):
    """What the command prints, as bytes, in a process of its own."""
    code = "from dato.cli.main import main; main()"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "PYTHONIO"))}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, env=environment | settings)


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "ascii"}, NO_UTF_8])
def test_a_front_is_shown_in_every_encoding(settings):
    done = dato("show", str(FRONT_FILE), **settings)
    assert done.returncode == 0 and not done.stderr
    encoding = settings.get("PYTHONIOENCODING", "ascii")
    nothing = "·" if encoding == "cp1252" else "."  # cp1252 has this one
    printed = done.stdout.decode(encoding)
    assert "The front (* its knee)" in printed and "Depth: # whole UNet" in printed and f"{nothing} nothing" in printed
    whole = dato("show", str(FRONT_FILE), PYTHONIOENCODING="utf-8").stdout.decode()
    assert whole.count("█") > 100
    # Every call is there, in its place.
    assert printed.count("#") == whole.count("█")


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "cp1252"}, NO_UTF_8])
def test_errors_and_help_too(settings):
    done = dato("show", "кошка.json", **settings)
    # Without UTF-8 a command gets names in bytes.
    name = rb"'\udcd0\udcba" if settings is NO_UTF_8 else rb"\u043a\u043e\u0448\u043a\u0430.json"
    assert done.returncode == 2 and name in done.stderr and b"Traceback" not in done.stderr
    for command in (("--help",), ("search", "depth", "--help"), ("evaluate", "--help")):
        done = dato(*command, **settings)
        assert done.returncode == 0 and b"--" in done.stdout and not done.stderr


def test_prompts_are_utf_8_where_the_locale_is_not():
    assert prompt_text(os.fsdecode("café".encode())) == "café" and prompt_text("кошка") == "кошка"
    with pytest.raises(DatoError, match="the prompt is not UTF-8"):
        prompt_text(os.fsdecode(b"caf\xe9"))


def test_what_the_user_chose_stays():
    done = dato("show", "emoji-sd-depth", PYTHONIOENCODING="ascii:replace")
    assert done.returncode == 0 and b"? whole UNet" in done.stdout


def test_characters_have_likenesses():
    text = "█·★–±×…→│─┌┼é\u2588⠋\u00a0„"
    assert "".join(map(plain, text)) == "#.*-+-x...->|-++e#* \\u201e"
    assert plain("猫") == r"\u732b" and plain("½") == r"\xbd" and plain("\ud800") == r"\ud800"


def test_lone_bytes_go_out_as_they_came(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    use_plain_output()
    print("caf\udce9 ★", flush=True)
    assert raw.getvalue() == b"caf\xe9 " + "★\n".encode()


def test_bars_and_spinners_in_ascii(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii"))
    use_plain_output()
    from rich.console import Console

    console = Console(stderr=True, force_terminal=True, width=60)
    with console.status("Loading…"):
        console.print("★")
    sys.stderr.flush()
    assert b"Loading" in raw.getvalue() and b"*" in raw.getvalue()


def test_lines_of_json_are_ascii(capsys):
    from dato.cli.display import Lines

    Lines().note("「猫」 ★ \u2028")
    Lines()._say("event", value=float("nan"))
    first, second = capsys.readouterr().out.splitlines()
    assert first.isascii() and json.loads(first)["text"] == "「猫」 ★ \u2028"
    assert json.loads(second, parse_constant=pytest.fail) == {"event": "event", "value": None}


def test_streams_that_are_no_text_files_stay(monkeypatch):
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=print))
    monkeypatch.setattr(sys, "stderr", None)
    use_plain_output()
