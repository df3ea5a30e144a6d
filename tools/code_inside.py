"""Runs inside a sandbox, beside code that a model wrote: calls it and reports its values as bounded JSON.

The text of this file is sent into the sandbox, so it needs the standard library only. Outside it is imported for
`encode` and `decode`. What comes out of the sandbox may be forged by the candidate, which therefore gains nothing: only
values come out, and what they should be stands outside.
"""

from __future__ import annotations

import builtins
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

MAX_DEPTH = 60
MAX_NODES = 50_000
MAX_EQUAL_HASHES = 100
MAX_TEXT = 200_000
_SHOWN = 300
_DECIMAL_BITS = 128

_PLAIN = (type(None), bool, str)
_BASES = (int, float, complex, str, bytes, list, tuple, dict, set, frozenset)


class Unfit(Exception):
    """A value cannot cross the border: too large, too deep, or not made of plain data."""


class Foreign:
    """A value whose type is not plain data; equal to nothing but itself.

    Attributes:
        type_name: of its class.
        base: the plain data below a subclass of a plain type (a Counter's dict); itself where there is none.
    """

    def __init__(self, type_name: str, base: object = None) -> None:
        self.type_name = type_name
        self.base = self if base is None else base

    def __repr__(self) -> str:
        return f"<{self.type_name}>" if self.base is self else f"{self.type_name}({self.base!r})"


def encode(value: object, *, is_argument: bool = False) -> Any:
    """Return plain data as JSON that keeps exact types; objects become their type's name.

    Args:
        value: anything.
        is_argument: True refuses objects, because whoever is called with it could do nothing with a name.

    Raises:
        Unfit: it is too large or too deep, or an argument that is no plain data.
    """
    return _Encoder(is_argument=is_argument).encode(value, 0)


class _Encoder:
    """One walk over a value, with what it spent so far."""

    def __init__(self, *, is_argument: bool) -> None:
        self.is_argument = is_argument
        self.nodes = 0
        self.text = 0

    def encode(self, value: Any, depth: int) -> Any:
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise Unfit(f"more than {MAX_NODES:,} values, or nested deeper than {MAX_DEPTH}")
        kind = type(value)
        if kind is int or kind in _PLAIN or kind is float or kind is complex or kind is bytes:
            return self._scalar(value)
        if kind is list:
            return [self.encode(item, depth + 1) for item in value]
        if kind is tuple or kind is set or kind is frozenset:
            return {kind.__name__: [self.encode(item, depth + 1) for item in value]}
        if kind is dict:
            return {"dict": [[self.encode(k, depth + 1), self.encode(v, depth + 1)] for k, v in value.items()]}
        return self._foreign(value, depth)

    def _scalar(self, value: Any) -> Any:
        kind = type(value)
        if kind is int:
            self._spend(value.bit_length() // 4)
            return value if value.bit_length() <= _DECIMAL_BITS else {"int": hex(value)}
        if kind is float:
            return {"float": value.hex()}
        if kind is complex:
            return {"complex": [value.real.hex(), value.imag.hex()]}
        if kind is bytes:
            self._spend(2 * len(value))
            return {"bytes": value.hex()}
        self._spend(len(value) if kind is str else 4)
        return value

    def _spend(self, chars: int) -> None:
        self.text += chars
        if self.text > MAX_TEXT:
            raise Unfit(f"more than {MAX_TEXT:,} characters")

    def _foreign(self, value: Any, depth: int) -> Any:
        """Keep the plain data below a subclass, read past whatever methods it overrides."""
        name = _name_of(type(value))
        for base in _BASES:
            if base in type.__dict__["__mro__"].__get__(type(value)):
                return {"foreign": [name, self.encode(_plain_below(value, base), depth + 1)]}
        if self.is_argument:
            raise Unfit(f"a {name} is no plain data")
        return {"foreign": [name]}


def _name_of(kind: type) -> str:
    return str(type.__dict__["__name__"].__get__(kind))[:_SHOWN]


def _plain_below(value: Any, base: Any) -> Any:
    if base is dict:
        return dict(zip(dict.keys(value), dict.values(value), strict=True))
    if base in (list, tuple, set, frozenset):
        return base(base.__iter__(value))
    if base is complex:
        return complex(complex.real.__get__(value), complex.imag.__get__(value))  # type: ignore[attr-defined]
    return base.__getnewargs__(value)[0]


def decode(data: Any) -> Any:
    """Return what `encode` was given, built of exact plain types and `Foreign`.

    Raises:
        ValueError: this is not what `encode` writes, or it is made to be slow to compare.
    """
    if data is None or type(data) in (bool, int, str):
        return data
    if type(data) is list:
        return [decode(item) for item in data]
    if type(data) is not dict or len(data) != 1:
        raise ValueError(f"not an encoded value: {str(data)[:_SHOWN]}")
    ((kind, body),) = data.items()
    try:
        return _DECODERS[kind](body)
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"not an encoded {str(kind)[:_SHOWN]}: {type(error).__name__}") from None


def bare(value: Any) -> Any:
    """Return a decoded value with subclasses of plain types replaced by what is below them."""
    kind = type(value)
    if kind is Foreign:
        return value if value.base is value else bare(value.base)
    if kind in (list, tuple, set, frozenset):
        return kind([bare(item) for item in value])
    if kind is dict:
        return {bare(key): bare(item) for key, item in value.items()}
    return value


def _hashed(items: list[Any]) -> list[Any]:
    """Refuse keys that share one hash: a set of them takes time that grows with the square of their number."""
    counts: dict[int, int] = {}
    for item in items:
        key = hash(item)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] > MAX_EQUAL_HASHES:
            raise ValueError(f"more than {MAX_EQUAL_HASHES} keys share one hash")
    return items


def _decode_dict(body: Any) -> dict[Any, Any]:
    pairs = [(decode(key), decode(value)) for key, value in body]
    _hashed([key for key, _ in pairs])
    return dict(pairs)


def _decode_foreign(body: Any) -> Foreign:
    return Foreign(str(body[0]), decode(body[1]) if len(body) > 1 else None)


_DECODERS: Mapping[str, Callable[[Any], Any]] = {
    "int": lambda body: int(body, 16),
    "float": float.fromhex,
    "complex": lambda body: complex(float.fromhex(body[0]), float.fromhex(body[1])),
    "bytes": bytes.fromhex,
    "tuple": lambda body: tuple([decode(item) for item in body]),
    "set": lambda body: set(_hashed([decode(item) for item in body])),
    "frozenset": lambda body: frozenset(_hashed([decode(item) for item in body])),
    "dict": _decode_dict,
    "foreign": _decode_foreign,
}


def load(source: str, entry_point: str) -> Callable[..., object]:
    """Run a program as the module `candidate` and return its function; raises what it raises, or NameError."""
    module = type(sys)("candidate")
    sys.modules["candidate"] = module  # dataclasses and pickle look their module up
    exec(compile(source, "candidate.py", "exec"), module.__dict__)
    try:
        return module.__dict__[entry_point]
    except KeyError:
        raise NameError(f"the program defines no {entry_point!r}") from None


def outcome(function: Callable[..., object], args: Any, kwargs: Any) -> dict[str, Any]:
    """Call a function with encoded arguments and return what it did: `value`, `raised` or `unfit`."""
    try:
        value = function(*decode(args), **decode(kwargs))
    except BaseException as error:  # also SystemExit: the program did not return a value
        return raised(error)
    try:
        return {"value": encode(value)}
    except Unfit as error:
        return {"unfit": str(error)}
    except BaseException as error:  # a subclass of plain data may do anything
        return {"unfit": f"reading the value raised {type(error).__name__}"}


def raised(error: BaseException) -> dict[str, Any]:
    """Return an exception as the names of its built-in classes, most special first, and its message."""
    names = [cls.__name__ for cls in type(error).__mro__ if getattr(builtins, cls.__name__, None) is cls]
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # its str() may raise
        text = type(error).__name__
    return {"raised": names, "message": text[:_SHOWN]}


def run_calls() -> None:
    """Read a program and calls from stdin, and write one line of JSON per call to stdout.

    What the program prints is dropped. Every line is written at once, so that a later call that never returns does not
    take the earlier ones with it.
    """
    request = json.loads(sys.stdin.read())
    report = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    dumps, write = json.dumps, os.write

    def say(line: dict[str, Any]) -> None:
        data = dumps(line).encode() + b"\n"
        while data:
            data = data[write(report, data) :]

    try:
        function = load(request["source"], request["entry_point"])
    except BaseException as error:
        say({"index": -1, **raised(error)})
        return
    for index, (args, kwargs) in enumerate(request["calls"]):
        say({"index": index, **outcome(function, args, kwargs)})


class Dialogue:
    """Test code in a thread of its own, which asks for the value of every call of the candidate.

    The candidate lives in another sandbox; `start` and `answer` return the next question of the test (`ask`), or how it
    ended (`done`).
    """

    def __init__(self, *, test: str, support: str, entry_point: str) -> None:
        self._questions: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(test, support, entry_point), daemon=True)

    def start(self) -> dict[str, Any]:
        """Begin, and return the first question."""
        self._thread.start()
        return self._questions.get()

    def answer(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """Give the outcome of the call that was asked for, and return the next question."""
        self._answers.put(outcome)
        return self._questions.get()

    def _run(self, test: str, support: str, entry_point: str) -> None:
        try:
            space: dict[str, Any] = {"__name__": "tests"}
            exec(compile(support, "support.py", "exec"), space)
            # whatever the support says of the function, the tests mean the candidate's
            space[entry_point] = space["candidate"] = self._call
            exec(compile(test, "test.py", "exec"), space)
            space[entry_point] = self._call
            if "check" in space:
                space["check"](self._call)
        except Unfit as error:
            self._questions.put({"done": f"an argument of a test cannot cross: {error}", "is_test_broken": True})
        except BaseException as error:
            self._questions.put({"done": raised(error)["message"]})
        else:
            self._questions.put({"done": ""})

    def _call(self, *args: object, **kwargs: object) -> object:
        self._questions.put({"ask": [encode(args, is_argument=True), encode(kwargs, is_argument=True)]})
        answer = self._answers.get()
        if "value" in answer:
            return bare(decode(answer["value"]))
        if "raised" in answer:
            found = getattr(builtins, next(iter(answer["raised"]), ""), RuntimeError)
            kind = found if isinstance(found, type) and issubclass(found, Exception) else RuntimeError
            raise _made(kind, answer.get("message", ""))
        raise RuntimeError(f"the candidate gave no value: {answer.get('unfit', 'nothing')}")


def _made(kind: type[Exception], message: str) -> Exception:
    try:
        return kind(message)
    except TypeError:  # UnicodeDecodeError and few others want more than a message
        return RuntimeError(message)
