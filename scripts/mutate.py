"""Find out what no test notices: put one small fault after another into a file, and run the tests that run that line.

    pip install mutmut==3.6.0
    python scripts/mutate.py dato/schedule.py

The files on disk stay as they are: each fault is put into a process of its own, into what it imports. It comes from a
process that has loaded the heavy packages already, so a fault takes a second. `--sample 100` puts in so many of each
file, drawn at random, always the same. `--survivors` runs those again that nobody noticed. `--table` only prints the
table. What is known is in `runs/mutation`, and is not run again unless the file has changed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import importlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from mutation_faults import Fault, faults
from mutation_process import ROOT, ChangedModule, Notes, in_a_child, run_tests

JOURNALS = ROOT / "runs" / "mutation"
_FRONTS = ["tests/test_front.py", "tests/test_schemas.py", "tests/cli/test_export.py", "tests/hub"]
_UNET = [f"tests/unet/test_{name}.py" for name in ("cache", "ladder", "forecast")] + ["tests/test_call.py"]
_TOKENS = [f"tests/tokens/test_{name}.py" for name in ("device", "masks", "pruner", "recovery", "scores", "selection")]


def _examples(module: str) -> str:
    """Return the test of the examples in a module's docstrings."""
    return f"tests/test_docs.py::test_the_examples_in_docstrings_are_right[{module}]"


# Each file, and the everyday tests that are run against its faults.
TESTS = {
    "dato/generation/protocols.py": ["tests/generation/test_protocols.py"],
    "dato/utils/timing.py": ["tests/utils/test_timing.py"],
    "dato/schemas/__init__.py": ["tests/test_schemas.py", _examples("dato.schemas")],
    "dato/strategies.py": [*_FRONTS, _examples("dato.strategies")],
    "dato/point.py": [*_FRONTS, "tests/test_plain_steps.py"],
    "dato/front.py": [*_FRONTS, "tests/test_plain_steps.py", _examples("dato.front")],
    "dato/search/presets.py": ["tests/search/test_paper_settings.py", "tests/search/test_presets.py"],
    "dato/schedule.py": ["tests/test_schedule.py", "tests/test_call.py", "tests/test_schemas.py"],
    "dato/unet/forecast.py": _UNET,
    "dato/unet/cache.py": _UNET,
    "dato/unet/ladder.py": _UNET,
    "dato/tokens/__init__.py": ["tests/test_imports.py"],
    "dato/tokens/indexing.py": _TOKENS,
    "dato/tokens/similarity.py": _TOKENS,
    "dato/tokens/selection.py": _TOKENS,
    "dato/tokens/scores.py": _TOKENS,
    "dato/tokens/recovery.py": _TOKENS,
    "dato/tokens/pruner.py": _TOKENS,
}
MISSED = ("survived", "no tests")
MOST = 60.0  # seconds of tests that are run for a fault; one that only later tests notice counts as missed
QUICK = 0.3  # seconds; tests that take longer come last


def unchanged(tests: Sequence[str], files: Sequence[str]) -> dict[str, Any]:
    """Run tests without a fault, in a child: which pass, how long each takes, and which lines of each file it runs."""
    import coverage

    watch = coverage.Coverage(data_file=None, include=[str(ROOT / file) for file in files])
    notes = Notes(watch)
    watch.start()
    code = run_tests(tests, notes)
    watch.stop()
    lines = {file: watch.get_data().contexts_by_lineno(str(ROOT / file)) for file in files}
    mine = (str(ROOT), str(ROOT / "tests"))
    modules = [
        name
        for name, module in list(sys.modules.items())
        if getattr(module, "__file__", None) and not str(module.__file__).startswith(mine) and name != "__main__"
    ]
    return {"code": code, "failed": notes.failed, "seconds": notes.seconds, "lines": lines, "modules": modules}


@lru_cache(maxsize=1)
def known_of(tests: tuple[str, ...]) -> dict[str, Any]:
    """Return what `unchanged` tells of these tests, and load here what they load and is not ours."""
    files = [file for file in TESTS if tuple(TESTS[file]) == tests]
    known = in_a_child(lambda: unchanged(tests, files), 1800)
    if known is None or known["code"] != 0:
        failed = known and (known.get("failed") or known["code"])
        sys.exit(f"{', '.join(files)}: without a fault the tests have to pass: {failed}")
    for module in known["modules"]:
        with contextlib.suppress(BaseException), open(os.devnull, "w") as quiet, contextlib.redirect_stderr(quiet):
            importlib.import_module(module)
    gc.freeze()
    return known


def tests_of(file: str, fault: Fault, known: dict[str, Any]) -> list[str]:
    """Return the tests that run the changed line, quick ones first. A line that is run at import concerns all tests.

    If they take long, the first `MOST` seconds of them.
    """
    seconds, tests = known["seconds"], set()
    for line in range(fault.lines[0], fault.lines[1] + 1):
        tests.update(known["lines"][file].get(str(line), ()))
    if "" in tests or fault.definition:
        tests = set(seconds)

    def order(test: str) -> tuple[bool, str, float]:
        return seconds[test] > QUICK, test.partition("::")[0], seconds[test]

    chosen = sorted(tests & set(seconds), key=order)
    before = accumulate((seconds[test] for test in chosen), initial=0.0)
    return [test for test, spent in zip(chosen, before, strict=False) if spent < MOST]


def noticed(file: str, fault: Fault, known: dict[str, Any]) -> tuple[str, str]:
    """Return what came of a fault, "killed", "timeout", "survived" or "no tests", and the test that noticed it."""
    tests = tests_of(file, fault, known)
    if not tests:
        return "no tests", ""
    finder = ChangedModule(file, fault.source)

    def work(which: list[str]) -> Callable[[], Any]:
        def run() -> dict[str, Any]:
            notes = Notes()
            return {"code": run_tests(which, notes, finder), "by": notes.failed or ""}

        return run

    limit = 15 + 5 * sum(known["seconds"][test] for test in tests)
    result = in_a_child(work(tests), limit)
    if result and result["code"] in (4, 5):  # the fault changed the names of tests
        result = in_a_child(work(TESTS[file]), 15 + 5 * sum(known["seconds"].values()))
    if result is None:
        return "timeout", ""
    return ("survived", "") if result["code"] == 0 else ("killed", result.get("by", ""))


def journal_of(file: str) -> Path:
    """Return where the results of a file are."""
    return JOURNALS / (file.replace("/", ".") + ".json")


def load(file: str) -> dict[str, Any]:
    """Return the results of a file by number, if it has not been changed since."""
    with contextlib.suppress(OSError, ValueError):
        data = json.loads(journal_of(file).read_text("utf-8"))
        if data["sha"] == _sha(file):
            return data["results"]
    return {}


def save(file: str, results: dict[str, Any]) -> None:
    """Write the results of a file."""
    JOURNALS.mkdir(parents=True, exist_ok=True)
    journal_of(file).write_text(json.dumps({"sha": _sha(file), "results": results}, indent=1), encoding="utf-8")


def _sha(file: str) -> str:
    return hashlib.sha256((ROOT / file).read_bytes()).hexdigest()


def examine(file: str, sample: int, *, survivors: bool = False) -> None:
    """Put each fault into a file that has no result yet; with `survivors` those again that nobody noticed."""
    all_faults, results = faults((ROOT / file).read_text("utf-8")), load(file)
    random.Random(0).shuffle(all_faults)
    if survivors:
        again = {number for number, told in results.items() if told["result"] in MISSED}
        todo = [fault for fault in all_faults if str(fault.number) in again]
    else:
        todo = [fault for fault in all_faults[:sample] if str(fault.number) not in results]
    if not todo:
        return
    known = known_of(tuple(TESTS[file]))
    spent = sum(known["seconds"].values())
    print(f"{file}: {len(todo)} of {len(all_faults)} faults, {spent:.0f} s of tests", flush=True)
    for fault in todo:
        began = time.monotonic()
        result, by = noticed(file, fault, known)
        told = {"line": fault.lines[0], "was": fault.was, "now": fault.now, "result": result, "by": by}
        results[str(fault.number)] = told | {"seconds": round(time.monotonic() - began, 1)}
        save(file, results)
        if result in MISSED:
            print(f"{file}:{fault.lines[0]}: {result}: {fault.was}  ->  {fault.now}", flush=True)


def table(files: Iterable[str]) -> str:
    """Return the results so far as a table in Markdown."""
    rows = ["| file | faults put in | noticed | share |", "|---|---|---|---|"]
    for file in files:
        told = [each["result"] for each in load(file).values()]
        if told:
            every, found = len(faults((ROOT / file).read_text("utf-8"))), sum(each not in MISSED for each in told)
            put_in = f"{len(told)}" + ("" if len(told) == every else f" of {every}")
            rows.append(f"| `{file}` | {put_in} | {found} | {100 * found / len(told):.0f}% |")
    return "\n".join(rows)


def main() -> None:
    """Read the command line, examine files one after another, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=list(TESTS), help="which files; none: all that have tests here")
    parser.add_argument("--sample", type=int, metavar="N", default=10**6, help="at most N faults of each file")
    parser.add_argument("--survivors", action="store_true", help="run those again that nobody noticed")
    parser.add_argument("--table", action="store_true", help="print the table of what is known, and run nothing")
    given = parser.parse_args()
    unknown = [file for file in given.files if file not in TESTS]
    if unknown:
        parser.error(f"no tests are named for {unknown[0]}; known are {', '.join(TESTS)}")
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: threads do not survive a fork
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for file in () if given.table else given.files:
        examine(file, given.sample, survivors=given.survivors)
    print(table(given.files))


if __name__ == "__main__":
    main()
