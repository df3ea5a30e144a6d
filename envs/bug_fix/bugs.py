"""Puts bugs into a function by changing its syntax tree, and keeps those that some arguments reveal."""

from __future__ import annotations

import ast
import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentenv.envs.bug_fix.functions import SUBJECTS, Arguments, Subject
from agentenv.envs.drawing import pick, pick_distinct
from agentenv.tools.code_tests import CallTest

NUM_TESTS = 24
_MAX_TICKS = 2_000


@dataclass(frozen=True, kw_only=True)
class BrokenFunction:
    """A function with bugs.

    Attributes:
        name: of the function.
        right: its source as it should be, in the same layout.
        broken: its source with the bugs.
        tests: calls with what must come of them; some fail on the broken one.
        failing: index of a test that fails.
    """

    name: str
    right: str
    broken: str
    tests: tuple[CallTest, ...]
    failing: int


class _TooLong(Exception):
    """A changed loop did not end soon."""


def break_function(rng: np.random.Generator, *, num_bugs: int) -> BrokenFunction:
    """Draw a function, tests, and bugs on different lines, each revealed by a test even where it is the only one."""
    while True:
        subject = pick(rng, SUBJECTS)
        tests = _tests(rng, subject)
        right = _plain(subject)
        lines = right.splitlines()
        bugs: dict[int, str] = {}
        for index, line in pick_distinct(rng, _line_changes(subject), count=len(_line_changes(subject))):
            alone = "\n".join([*lines[:index], line, *lines[index + 1 :]])
            if len(bugs) < num_bugs and index not in bugs and set(_outcomes(alone, subject.name, tests)) != {"right"}:
                bugs[index] = line
        broken = "\n".join(bugs.get(index, line) for index, line in enumerate(lines))
        outcomes = _outcomes(broken, subject.name, tests)
        if len(bugs) == num_bugs and set(outcomes) != {"right"}:
            failing = outcomes.index("wrong") if "wrong" in outcomes else outcomes.index("endless")
            return BrokenFunction(name=subject.name, right=right, broken=broken, tests=tests, failing=failing)


def _tests(rng: np.random.Generator, subject: Subject) -> tuple[CallTest, ...]:
    drawn: list[Arguments] = [subject.draw(rng) for _ in range(NUM_TESTS)]
    return tuple(CallTest(args=copy.deepcopy(given), expected=subject.function(*given)) for given in drawn)


@functools.cache
def _plain(subject: Subject) -> str:
    """Return the source in the layout in which broken ones are written."""
    return ast.unparse(ast.parse(subject.source))


@functools.cache
def _line_changes(subject: Subject) -> tuple[tuple[int, str], ...]:
    """Return every bug that changes one line: the line's index, and what stands there then."""
    lines = _plain(subject).splitlines()
    found: dict[tuple[int, str], None] = {}
    for index in range(len(_all_changes(ast.parse(subject.source)))):
        tree = ast.parse(subject.source)
        node, change = _all_changes(tree)[index]
        change(node)
        changed = ast.unparse(tree).splitlines()
        where = [number for number, line in enumerate(changed) if line != lines[number]]
        if len(where) == 1:
            found[where[0], changed[where[0]]] = None
    return tuple(found)


def _all_changes(tree: ast.Module) -> list[tuple[ast.AST, Callable[[Any], None]]]:
    return [(node, change) for node in ast.walk(tree) for change in _changes(node)]


_COMPARED: Mapping[type, tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
}
_COMPUTED: Mapping[type, tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
}


def _changes(node: ast.AST) -> list[Callable[[Any], None]]:
    """Return the ways to break a node."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return [_setter("ops", [other()]) for other in _COMPARED.get(type(node.ops[0]), ())]
    if isinstance(node, ast.BinOp):
        return [_setter("op", other()) for other in _COMPUTED.get(type(node.op), ())]
    if isinstance(node, ast.BoolOp):
        return [_setter("op", ast.Or() if isinstance(node.op, ast.And) else ast.And())]
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return [_setter("value", node.value + 1), _setter("value", max(node.value - 1, 0))]
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        return [_setter("value", not node.value)]
    return []


def _setter(name: str, value: object) -> Callable[[Any], None]:
    return lambda node: setattr(node, name, value)


def _outcomes(source: str, name: str, tests: Sequence[CallTest]) -> list[str]:
    """Run our own changed function, its loops bounded; say of each test whether it is right, wrong or endless."""
    left = [0]
    function = _counted(source, name, left)
    outcomes: list[str] = []
    for test in tests:
        left[0] = _MAX_TICKS
        try:
            got = function(*copy.deepcopy(test.args))
        except _TooLong:
            outcomes.append("endless")
        except Exception:  # whatever the bug makes it raise
            outcomes.append("wrong")
        else:
            is_right = type(got) is type(test.expected) and got == test.expected
            outcomes.append("right" if is_right else "wrong")
    return outcomes


def _counted(source: str, name: str, left: list[int]) -> Callable[..., Any]:
    """Compile a source whose loops count down."""
    tree = _Ticking().visit(ast.parse(source))

    def tick() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise _TooLong

    space: dict[str, Any] = {"_tick": tick}
    exec(compile(ast.fix_missing_locations(tree), "<broken>", "exec"), space)
    return space[name]


class _Ticking(ast.NodeTransformer):
    """Calls `_tick` at the beginning of every loop's body."""

    def visit_While(self, node: ast.While) -> ast.While:
        return self._with_tick(node)

    def visit_For(self, node: ast.For) -> ast.For:
        return self._with_tick(node)

    def _with_tick(self, node: Any) -> Any:
        self.generic_visit(node)
        node.body.insert(0, ast.Expr(ast.Call(func=ast.Name(id="_tick", ctx=ast.Load()), args=[], keywords=[])))
        return node
