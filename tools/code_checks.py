"""Reads test code of the `check(candidate)` kind, and takes it apart where every assertion is about one plain call."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agentenv.errors import UsageError
from agentenv.tools.code_inside import Unfit, bare, encode
from agentenv.tools.code_values import equal

_MAX_FOLDED = 1 << 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One call of the candidate, and what its outcome must be.

    Attributes:
        args: positional arguments, plain data.
        kwargs: keyword arguments, plain data.
        accepts: says of a decoded value whether the test holds.
        raises: name of the built-in exception that must be raised instead; empty when a value is expected.
        text: what is expected, for people.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    accepts: Callable[[Any], bool]
    raises: str = ""
    text: str


class _Composed(Exception):
    """The test does more than to compare one call of the candidate with a constant."""


def questions_of(test: str, *, entry_point: str) -> tuple[Question, ...] | None:
    """Take test code apart into calls whose expected values are constants; None where it must run as a program.

    Read are a function `check(candidate)`, or assertions at the top that call `entry_point`.

    Raises:
        UsageError: it is no Python, or asserts nothing.
    """
    try:
        tree = ast.parse(test)
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"the test code is not Python: {error}") from error
    if not any(isinstance(node, (ast.Assert, ast.Raise)) for node in ast.walk(tree)):
        raise UsageError("the test code asserts nothing, so every program would pass; write assert statements")
    names = frozenset({"candidate", entry_point})
    try:
        found = [_question(statement, names) for statement in _assertions(tree, names)]
    except _Composed:
        return None
    questions = tuple(question for question in found if question is not None)
    return questions or None


def _assertions(tree: ast.Module, names: frozenset[str]) -> list[ast.Assert]:
    checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if len(checks) > 1:
        raise _Composed
    for node in tree.body:
        if not (
            node in checks or _is_inert(node) or (isinstance(node, ast.Assert) and not checks) or _runs_check(node)
        ):
            raise _Composed
    body = checks[0].body if checks else tree.body
    if any(not (isinstance(node, ast.Assert) or _is_inert(node) or _runs_check(node)) for node in body):
        raise _Composed
    return [node for node in body if isinstance(node, ast.Assert)]


def _is_inert(node: ast.stmt) -> bool:
    """True for what constants do not depend on: docstrings, imports, and a dictionary of literals."""
    if isinstance(node, (ast.Pass, ast.Import, ast.ImportFrom)):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)


def _runs_check(node: ast.stmt) -> bool:
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "check"


def _question(statement: ast.Assert, names: frozenset[str]) -> Question | None:
    """Return what an assertion asks; None where it holds whatever the candidate is (`assert True`)."""
    test = statement.test
    if isinstance(test, ast.Constant) and test.value:
        return None
    text = ast.unparse(test)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _asked(test.operand, names, lambda value: not value, text)
    if isinstance(test, ast.Compare):
        return _compared(test, names, text)
    return _asked(test, names, bool, text)


def _compared(test: ast.Compare, names: frozenset[str], text: str) -> Question:
    if len(test.ops) != 1:
        raise _Composed
    compare = _COMPARISONS.get(type(test.ops[0]))
    if compare is None:
        raise _Composed
    left, right = test.left, test.comparators[0]
    if _is_call_of(left, frozenset({"abs"})) and isinstance(left, ast.Call) and len(left.args) == 1:
        return _distance(left.args[0], _constant(right), compare, names, text)
    if _is_call_of(left, names):
        expected = _constant(right)
        return _asked(left, names, lambda value: compare(value, expected), text)
    expected = _constant(left)
    return _asked(right, names, lambda value: compare(expected, value), text)


def _distance(
    difference: ast.expr, limit: Any, compare: Callable[[Any, Any], bool], names: frozenset[str], text: str
) -> Question:
    """Read `abs(candidate(...) - constant) < limit`, either way round."""
    if not isinstance(difference, ast.BinOp) or not isinstance(difference.op, ast.Sub):
        raise _Composed
    left, right = difference.left, difference.right
    call, other = (left, right) if _is_call_of(left, names) else (right, left)
    expected = _constant(other)
    return _asked(call, names, lambda value: compare(abs(value - expected), limit), text)


def _asked(call: ast.expr, names: frozenset[str], accepts: Callable[[Any], bool], text: str) -> Question:
    if not _is_call_of(call, names) or not isinstance(call, ast.Call):
        raise _Composed
    if any(keyword.arg is None for keyword in call.keywords):
        raise _Composed
    args = tuple(_constant(argument) for argument in call.args)
    kwargs = {str(keyword.arg): _constant(keyword.value) for keyword in call.keywords}
    try:
        encode((args, kwargs))
    except Unfit:
        raise _Composed from None
    return Question(args=args, kwargs=kwargs, accepts=lambda value: bool(accepts(bare(value))), text=text)


def _is_call_of(node: ast.expr, names: frozenset[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def _constant(node: ast.expr) -> Any:
    """Return a literal, or small sums and products of numbers and sums of texts, as tests write them."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_constant(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    operation = _FOLDED.get(type(node.op)) if isinstance(node, ast.BinOp) else None
    if operation is None or not isinstance(node, ast.BinOp):
        raise _Composed
    left, right = _constant(node.left), _constant(node.right)
    if isinstance(left, str) and isinstance(right, str) and operation is operator.add:
        return left + right
    for side in (left, right):
        if not isinstance(side, (int, float)) or abs(side) >= _MAX_FOLDED:
            raise _Composed
    try:
        return operation(left, right)
    except ArithmeticError:
        raise _Composed from None


_FOLDED: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}

_COMPARISONS: Mapping[type, Callable[[Any, Any], bool]] = {
    ast.Eq: lambda a, b: equal(a, b),
    ast.NotEq: lambda a, b: not equal(a, b),
    ast.Is: lambda a, b: type(a) is type(b) and a == b,
    ast.IsNot: lambda a, b: not (type(a) is type(b) and a == b),
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
