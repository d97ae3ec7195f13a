"""Which faults `scripts/mutate.py` puts into a file: one small change of its code each.

The changes are those of mutmut 3: a number plus 1, another text, True for False, `<` for `<=`, None for what is
assigned, and so on. mutmut itself changes functions and methods only, and no class or function that has a decorator. So
it would leave out presets, defaults, dataclasses and properties. Here all code of a file is changed. To save time, of
the ways in which mutmut changes one text or one argument there is one: text gets letters more, an argument that has a
keyword is left out, and another one is None.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

# Not changed: types, which code does not read; imports, of which every wrong one fails; the text of errors, of which
# tests read a part; `isinstance` and `len`, as in mutmut.
_LEFT_OUT = (
    m.Annotation()
    | m.Import()
    | m.ImportFrom()
    | m.Raise()
    | m.If(test=m.Name("TYPE_CHECKING"))
    | m.Call(func=m.Name("isinstance") | m.Name("len"))
)
# `zip(..., strict=True)` is an assertion: no test can fail without it unless the code is wrong.
_STRICT = m.Arg(keyword=m.Name("strict"))


@dataclass(frozen=True)
class Fault:
    """One changed file.

    Attributes:
        number: It counts the faults of the file from 0.
        lines: The lines of the changed statement, the first and the last one.
        was: The changed expression as it was.
        now: The expression now.
        definition: Whether the line runs when a function is defined, because it is a default of an argument.
        source: The whole changed file.
    """

    number: int
    lines: tuple[int, int]
    was: str
    now: str
    definition: bool
    source: str


class _Finder(cst.CSTVisitor):
    """Collect (original node, changed node, lines, whether it is a default of an argument)."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[cst.CSTNode, cst.CSTNode, tuple[int, int], bool]] = []
        self._statements: list[int] = []
        self._params = 0

    def on_visit(self, node: cst.CSTNode) -> bool:
        if m.matches(node, _LEFT_OUT | _STRICT):
            return False
        if isinstance(node, cst.BaseStatement):
            self._statements.append(self.get_metadata(PositionProvider, node).start.line)
        self._params += isinstance(node, cst.Parameters)
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                changes = operator(node)
                self._add(node, itertools.islice(changes, 1) if isinstance(node, cst.BaseString) else changes)
        return True

    def _add(self, node: cst.CSTNode, changes: Iterable[cst.CSTNode]) -> None:
        position = self.get_metadata(PositionProvider, node, None)
        if position is None or not self._statements:
            return
        for changed in changes:
            if isinstance(node, cst.Call) and not _is_wanted(node, changed):
                continue
            first = min(self._statements[-1], position.start.line)  # a decorator is above its class
            self.found.append((node, changed, (first, position.end.line), bool(self._params)))

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if m.matches(original_node, _LEFT_OUT | _STRICT):
            return
        if isinstance(original_node, cst.BaseStatement):
            self._statements.pop()
        self._params -= isinstance(original_node, cst.Parameters)


def _is_wanted(call: cst.Call, changed: cst.Call) -> bool:
    """Tell whether a call is to be changed in this way: see the top of this file."""
    if len(changed.args) < len(call.args):
        [gone] = [arg for arg in call.args if all(arg is not other for other in changed.args)]
        return gone.keyword is not None and not m.matches(gone, _STRICT)
    pairs = zip(call.args, changed.args, strict=True)
    return not any(one is not other and one.keyword and m.matches(other.value, m.Name("None")) for one, other in pairs)


def _is_same_number(node: cst.CSTNode, changed: cst.CSTNode) -> bool:
    """Tell whether a number is so large that one more makes no difference."""
    return isinstance(node, cst.BaseNumber) and node.evaluated_value == changed.evaluated_value


def faults(source: str) -> list[Fault]:
    """Return every fault of a file's source, in the order of the code."""
    wrapper, finder = MetadataWrapper(cst.parse_module(source)), _Finder()
    wrapper.visit(finder)
    module, seen, result = wrapper.module, {source}, []
    for node, changed, lines, definition in finder.found:
        new = module.deep_replace(node, changed).code
        if new in seen or _is_same_number(node, changed):
            continue
        seen.add(new)
        was, now = (module.code_for_node(each).strip() for each in (node, changed))
        result.append(Fault(len(result), lines, was, now, definition, new))
    return result
