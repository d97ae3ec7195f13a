"""Files are read as UTF-8 whatever the locale is, found by suffixes of any case, and written as JSON that all read."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dato import DatoError
from dato.utils.files import dumps, has_suffix, read_json, read_text, write_atomic


def test_suffixes_in_capitals_are_suffixes():
    assert has_suffix("a/b.JPEG", ".png", ".jpeg") and has_suffix(Path("x.Safetensors"), ".safetensors")
    assert not has_suffix("jpeg", ".jpeg") and not has_suffix("a.jpeg/b", ".jpeg")


def test_text_is_utf_8_whatever_the_locale_is(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffein Bär\r\nкошка\n".encode())
    code = f"from dato.utils.files import read_text; print(ascii(read_text({str(file)!r})))"
    settings = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True)
    assert done.stdout.strip() == ascii("ein Bär\nкошка\n"), done.stderr


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_text_of_another_encoding_is_named(encoding, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("ein Bär", encoding=encoding)
    with pytest.raises(DatoError, match=r"prompts\.txt is not a text file \(UTF-8\): save it as UTF-8$"):
        read_text(file)


def test_text_as_it_is(tmp_path):
    file = tmp_path / "text"
    file.write_bytes(b"a\rb\r\nc\n")
    assert read_text(file) == "a\nb\nc\n" and read_text(file, newlines=False) == "a\rb\r\nc\n"


def test_names_that_are_not_utf_8_are_written(tmp_path):
    data = {"model": os.fsdecode(b"caf\xe9"), "prompts": ["кошка"]}
    write_atomic(tmp_path / "front.json", dumps(data))
    assert read_json(tmp_path / "front.json") == data
    assert "кошка" in read_text(tmp_path / "front.json")


def test_what_json_does_not_have_is_null():
    data = {"a": math.nan, "b": [1.5, -math.inf], "c": [{"d": math.inf}, [2, math.nan]], "e": "NaN", "f": (math.nan,)}
    text = dumps(data)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, None],
        "c": [{"d": None}, [2, None]],
        "e": "NaN",
        "f": [None],
    }
