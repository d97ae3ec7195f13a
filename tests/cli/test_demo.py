"""`dato demo` before it serves: wrong input is one line and exit code 2."""

import importlib.util
import socket

import pytest
from conftest import call


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Runs `dato demo`, which has to refuse in one line."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        code, printed, errors = call(monkeypatch, capsys, "demo", *arguments)
        assert code == 2 and not printed and errors.startswith("error: ") and errors.count("\n") == 1
        return errors

    return run


def test_without_gradio_it_says_how_to_install_it(refused, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else found(name, *rest)
    )
    assert 'pip install "dato[demo]"' in refused()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--strategy", "no-such-front"), "no file and no shipped strategy 'no-such-front'"),
        (("--strategy", "bad.json"), "bad.json is not JSON"),
        (("--model", "no/such/model"), "no/such/model"),
        (("--prompts", "none.txt"), "cannot read none.txt"),
        (("--host", "192.0.2.1"), "cannot listen at --host 192.0.2.1"),
        (("--height", "65", "--port", "0"), "--height must be a multiple of 8"),
    ],
)
def test_wrong_input_is_one_line(refused, tmp_path, arguments, line):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -e .[demo]")
    (tmp_path / "bad.json").write_text("{")
    assert line in refused(*arguments)


def test_an_occupied_port_is_one_line(refused):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -e .[demo]")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused("--port", port)
        assert f"--port {port}: Address already in use; give another --port" in line
