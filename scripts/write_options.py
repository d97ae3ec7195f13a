"""Write docs/options.md: every argument and option, from signatures, docstrings and commands."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

import dato
import dato.search
from dato.cli.compare_rule import compare_rule
from dato.cli.compare_searches import compare_searches
from dato.cli.main import app
from dato.pruning import SITO_KEYWORDS
from dato.search.options import DepthSearch

PAGE = Path(__file__).parent.parent / "docs" / "options.md"
SAME_IN_SITO = ("sx", "sy", "noise_alpha", "sim_beta")
SCHEDULES = (
    "full",
    "uniform",
    "growing",
    "spread",
    "with_ratios",
    "with_order_at_most",
    "resampled",
    "for_rungs",
    "to_json",
    "from_json",
)
HEAD = """# Every option\n
`python scripts/write_options.py` writes this page from the code: it says what `help()` and `--help` say. Explained:
[get started](get-started.md), [how it works](how-it-works.md), [search your own model](search-your-own-model.md).\n"""
SEARCHES = """## `search_depth`, `search_joint` and `search_ratio`\n
The searches as functions of `dato.search`, on a pipeline that is loaded already. `search_ratio(pipe, front, ...)`
builds on a front. All further options of `dato search depth`, `joint` and `ratio` are keywords, too.\n\n"""
PRUNING = """## `Pruning`\n
How ratios are meant: `Schedule(..., pruning=dato.Pruning(...))`, or the fields as keywords of `apply_patch`, which
takes SiTo's names for them, too. SiTo's `prune_ratio` is an argument of `apply_patch` itself.\n\n"""


def page() -> str:
    """The whole page."""
    commands = {"dato": app}
    for command in (compare_rule, compare_searches):
        alone = commands[f"python scripts/{command.__name__}.py"] = typer.Typer(add_completion=False)
        alone.command()(command)
    tables = [text for name in commands for text in _command(name, typer.main.get_command(commands[name]))]
    return "\n".join([HEAD, *_python(), "## Commands\n", *tables])


def _python() -> Iterator[str]:
    yield f"## `apply_patch`\n\n`dato.{_call('apply_patch', dato.apply_patch)}`\n\n{_intro(dato.apply_patch)}\n"
    yield _table("argument | what", _section(dato.apply_patch).items())
    yield f"`with dato.patched(...)`: {_intro(dato.patched)}\n"
    yield f"`dato.remove_patch(pipe)`: {_intro(dato.remove_patch)}\n"
    yield f"## `sito`\n\n`dato.sito.{_call('apply_patch', dato.sito.apply_patch)}`\n\n{_intro(dato.sito.apply_patch)}\n"
    yield _table("argument | what", _section(dato.sito.apply_patch).items())
    yield f"`dato.sito.remove_patch(model)`: {_intro(dato.sito.remove_patch)}\n"
    yield f"## `rule`\n\n`dato.{_call('rule', dato.rule)}`\n\n{_intro(dato.rule)} See [the rule](rule.md).\n"
    yield _table("argument | what", _section(dato.rule).items())
    sito = {ours: theirs for theirs, ours in SITO_KEYWORDS.items()} | {name: name for name in SAME_IN_SITO}
    told = _section(dato.Pruning).items()
    rows = [(n, f"`{getattr(dato.Pruning, n)!r}`", f"`{sito[n]}`" if n in sito else "", text) for n, text in told]
    yield PRUNING + _table("field | default | SiTo's name | what", rows)
    yield f"## `Schedule`\n\n`dato.{_call('Schedule', dato.Schedule)}`\n"
    yield _table("field | what", _section(dato.Schedule).items())
    methods = [(f"Schedule.{name}", getattr(dato.Schedule, name)) for name in SCHEDULES]
    yield _table("constructor or method | what", [(_call(*each), _intro(each[1])) for each in methods])
    options = {field.name for field in fields(DepthSearch)}
    rows = [(name, text) for name, text in _section(dato.search.search_depth).items() if name not in options]
    yield SEARCHES + _table("argument | what", rows)


def _command(name: str, what: Any) -> Iterator[str]:
    for word, below in getattr(what, "commands", {}).items():
        yield from _command(f"{name} {word}", below)
    if not hasattr(what, "commands"):
        yield f"### `{name}`\n\n{_plain(what.help)}\n"
        yield _table("argument or option | default | what", [_row(p) for p in what.params if p.name != "help"])


def _row(option: Any) -> tuple[str, str, str]:
    names = [option.name.upper()] if option.param_type_name == "argument" else [*option.opts, *option.secondary_opts]
    nothing = "required" if option.required else ""
    default = nothing if option.default is None or option.default is False else f"`{option.default}`"
    shown = _plain(option.show_default) if isinstance(option.show_default, str) else default
    return " ".join(names), shown, _plain(option.help or "")


def _table(columns: str, rows: Any) -> str:
    """A table whose first column is code."""
    lines = [columns, " | ".join(["---"] * (columns.count("|") + 1)), *(f"`{a}` | {' | '.join(b)}" for a, *b in rows)]
    return "".join(f"| {line} |\n" for line in lines)


def _call(name: str, told: Any) -> str:
    """The signature without types."""
    bare = [p.replace(annotation=p.empty) for p in inspect.signature(told).parameters.values() if p.name != "self"]
    return name + re.sub(r"Pruning\(.*?\)", "Pruning()", str(inspect.Signature(bare)))


def _intro(told: Any) -> str:
    """A docstring up to its first section."""
    return _plain(re.split(r"^\w+:\n", inspect.getdoc(told), maxsplit=1, flags=re.M)[0])


def _section(told: Any) -> dict[str, str]:
    """Name -> text, of a docstring's Args or Attributes."""
    section = re.search(r"^(?:Args|Attributes):\n(.*?)(?=^\w+:\n|\Z)", inspect.getdoc(told), flags=re.M | re.S)[1]
    return {n: _plain(text) for n, text in re.findall(r"^    (\S+): (.*?)(?=^    \S|\Z)", section, flags=re.M | re.S)}


def _plain(text: str) -> str:
    """A line of text for a table's cell: nothing in it, but for code, is markup."""
    parts = " ".join(text.replace("|", r"\|").split()).split("`")
    return "`".join(re.sub(r"([*<\[])", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
