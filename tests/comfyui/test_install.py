"""`dato comfyui install PATH`."""

import os

import pytest
from conftest import call

from dato.comfyui.install import LINES


@pytest.fixture
def install(monkeypatch, capsys):
    """Run the command: (exit code, standard output, standard error)."""

    def run(path):
        code, printed, errors = call(monkeypatch, capsys, "comfyui", "install", path)
        return code, printed.strip(), errors.strip()

    return run


@pytest.fixture
def comfyui(tmp_path):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "custom_nodes").mkdir()
    return tmp_path


def test_install_and_install_again(install, comfyui):
    file = comfyui / "custom_nodes" / "dato" / "__init__.py"
    for path in (comfyui, comfyui / "custom_nodes"):
        code, out, err = install(path)
        assert (code, err) == (0, "") and out == f"written to {file}; start ComfyUI again"
        assert file.read_text("utf-8") == LINES and LINES.count("\n") == 2


@pytest.mark.parametrize("what", ["missing", "a file", "no ComfyUI", "another folder"])
def test_bad_paths(install, comfyui, what):
    path = comfyui
    if what == "missing":
        path = comfyui / "nothing"
    elif what == "a file":
        path = comfyui / "file"
        path.write_text("x")
    elif what == "no ComfyUI":
        path = comfyui / "comfy"
    else:
        (comfyui / "custom_nodes" / "dato").mkdir()
        (comfyui / "custom_nodes" / "dato" / "mine.py").write_text("x")
    code, out, err = install(path)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and err.startswith("error: ")
    assert not (comfyui / "custom_nodes" / "dato" / "__init__.py").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(install, comfyui):
    (comfyui / "custom_nodes").chmod(0o500)
    code, _, err = install(comfyui)
    assert code == 2 and "cannot write" in err
