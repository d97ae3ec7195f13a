"""Commands start at once: what a command does not need is not imported. Modules are counted, not seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "accelerate",
    "diffusers",
    "huggingface_hub",
    "matplotlib",
    "peft",
    "pymoo",
    "ray",
    "safetensors",
    "scipy",
    "torch",
    "transformers",
}
SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMAND = "from dato.cli.main import main; main()"
# Runs some code with the arguments of a command line, and prints the exit code and the imported modules.
RUN = """
import json, sys
try:
    exec({code!r}, {{"__name__": "__main__"}})
except SystemExit as left:
    code = left.code or 0
else:
    code = 0
print()
print(json.dumps([code, sorted(sys.modules)]))
"""


def imported(*arguments, cwd=None, code=COMMAND):
    """(what the command printed, the modules that it imported) in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(code=code), *arguments], capture_output=True, text=True, check=True, cwd=cwd
    )
    printed, _, last = done.stdout.rstrip().rpartition("\n")
    code, modules = json.loads(last)
    assert code == 0, done.stderr
    return printed, set(modules)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("search", "--help"),
        ("search", "depth", "--help"),
        ("search", "ratio", "--help"),
        ("search", "joint", "--help"),
        ("generate", "--help"),
        ("demo", "--help"),
        ("evaluate", "--help"),
        ("benchmark", "--help"),
        ("generalise", "--help"),
        ("pruned-tokens", "--help"),
        ("share", "--help"),
        ("report", "--help"),
        ("show", "--help"),
        ("show", "emoji-sd-depth"),
        ("export", "--help"),
        ("export", "emoji-sd-depth", "--order", "0"),
        ("report", "emoji-sd-depth", "--out", "page.html"),
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(arguments, tmp_path):
    printed, modules = imported(*arguments, cwd=tmp_path)
    assert not HEAVY & modules and printed.strip()


@pytest.mark.parametrize(
    "script",
    [
        "benchmark",
        "compare_rule",
        "compare_searches",
        "evaluate",
        "generalise",
        "generate",
        "pruned_tokens",
        "train_emoji_sd",
    ],
)
def test_help_of_a_script_imports_nothing_heavy(script, tmp_path):
    printed, modules = imported("--help", cwd=tmp_path, code=(SCRIPTS / f"{script}.py").read_text())
    assert not HEAVY & modules and "--device" in printed


def test_help_of_all_commands_imports_the_module_of_none(tmp_path):
    printed, modules = imported("--help", cwd=tmp_path)
    assert all(name in printed for name in ("generate", "search", "show", "pruned-tokens"))
    assert not {"dato.cli.generate", "dato.cli.search", "dato.cli.show", "dato.front", "dato.metrics"} & modules


@pytest.mark.parametrize("module", ["dato", "dato.search", "dato.search.options", "dato.search.run_folder"])
def test_packages_are_light(module):
    code = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())
