"""The documentation is true: its examples run, its links lead somewhere, its options are those of the code."""

import doctest
import importlib
import re
import runpy
import shlex
import warnings
from pathlib import Path

import pytest
import typer
from conftest import ROOT

import dato
from dato.cli.compare_rule import compare_rule
from dato.cli.compare_searches import compare_searches
from dato.cli.main import app
from dato.generation.pipelines import load_pipeline

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"(?P<mark><!-- not run: [^>]+ -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
PUBLIC = {
    "dato.schedule": ["Schedule", "Schedule.uniform", "Schedule.growing", "Schedule.spread", "Schedule.resampled"],
    "dato.strategies": ["load_front"],
    "dato.schemas": ["front_schema", "schedule_schema"],
    "dato.front": ["Front.knee", "Front.pick", "Front.plain_steps"],
    "dato.plain_steps": ["plain_steps"],
    "dato.evaluation.rules": ["rules", "whole_calls"],
    "dato.unet.patch": ["apply_patch", "patched", "remove_patch"],
    "dato.unet.speedup_rule": ["rule"],
    "dato.pruning": ["Pruning"],
    "dato.samplers": ["set_scheduler"],
    "dato.sito": ["apply_patch"],
    "dato.tokens.selection": ["select_tokens"],
}


def blocks(page: Path, language: str, marked: bool = False) -> list[tuple[int, str]]:
    """(line, code) of a page's blocks in one language that are run, or, if `marked`, of all."""
    text = page.read_text("utf-8")
    return [
        (text.count("\n", 0, block.start("code")) + 1, block["code"])
        for block in FENCE.finditer(text)
        if block["language"] == language and (marked or not block["mark"])
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_the_python_on_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, code in blocks(page, "python"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # what a page shows should not end in a warning
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_that_is_not_run_is_at_least_python(page):
    for line, code in blocks(page, "python", marked=True):
        compile("\n" * (line - 1) + code, str(page), "exec")


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are linked to."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_images_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text("utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_code_that_a_page_names_exist(page):
    named = set(re.findall(r"`((?:dato|scripts|tests|benchmarks)/[\w./-]*)`", page.read_text("utf-8")))
    gone = {name for name in named if not (ROOT / name).exists()}
    assert not gone - {"scripts/study_forecasts.py"}  # the page names the commit that has it


def test_the_index_lists_every_page():
    linked = set(re.findall(r"\]\(([\w-]+\.md)", (ROOT / "docs/README.md").read_text("utf-8")))
    assert {page.name for page in PAGES if page.parent.name == "docs"} - {"README.md"} <= linked


def options_of(command) -> dict[str, set[str]]:
    """The options of each command by its words, as in "search depth"; of one command by none."""
    if hasattr(command, "commands"):
        below = {word: options_of(one) for word, one in command.commands.items()}
        return {f"{word} {more}".strip(): found for word, each in below.items() for more, found in each.items()}
    return {"": {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}}


def commands_in(code: str) -> list[list[str]]:
    """The words of each command in a shell block."""
    commands = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        commands.append([])
        for word in words:
            if word in ("&&", ";"):
                commands.append([])
            else:
                commands[-1].append(word)
    return [words for words in commands if words]


def test_commands_on_the_pages_have_the_options_that_they_show():
    known = {f"dato {words}": options for words, options in options_of(typer.main.get_command(app)).items()}
    for name, options in list(known.items()):
        script = name.removeprefix("dato ").replace(" ", "_").replace("-", "_")
        known[f"python {'search' if script.startswith('search') else 'scripts'}/{script}.py"] = options
    for command in (compare_rule, compare_searches):  # scripts only
        alone = typer.Typer()
        alone.command()(command)
        known[f"python scripts/{command.__name__}.py"] = options_of(typer.main.get_command(alone))[""]
    seen = 0
    for page in PAGES:
        for line, code in blocks(page, "bash"):
            for words in commands_in(code):
                fits = [name for name in known if name.split() == words[: name.count(" ") + 1]]
                assert fits or words[0] not in ("dato", "python"), f"{page.name}, {line}: {' '.join(words)}"
                for word in words if fits else ():
                    option = word.partition("=")[0]
                    assert not word.startswith("--") or option in known[fits[0]], f"{page.name}, {line}: {word}"
                seen += bool(fits)
    assert seen > 20


def test_the_page_of_options_is_what_the_script_writes():
    script = runpy.run_path(str(ROOT / "scripts/write_options.py"))
    assert script["PAGE"].read_text("utf-8") == script["page"](), "run python scripts/write_options.py"


@pytest.mark.parametrize("name", PUBLIC)
def test_the_examples_in_docstrings_are_right(name, monkeypatch):
    module, pipe = importlib.import_module(name), load_pipeline()
    monkeypatch.setattr("dato.generation.pipelines.load_pipeline", lambda: dato.remove_patch(pipe))  # loaded once
    found = {test.name: test for test in doctest.DocTestFinder().find(module) if test.examples}
    assert not {f"{name}.{public}" for public in PUBLIC[name]} - set(found), "a public name has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in found.values():
        runner.run(test)
    assert runner.failures == 0
