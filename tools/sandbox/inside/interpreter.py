"""The persistent interpreter of an episode: runs one cell after another in one namespace."""

from __future__ import annotations

import ast
import linecache
import os
import socket
import sys
from typing import Any, NoReturn

from .frames import Channel, Frame
from .program import format_error, fresh_main, remember_source


def run_interpreter(cell: socket.socket, *, most_chars: int) -> NoReturn:
    """Serve cells until the peer shuts its side or this process is killed.

    Args:
        cell: carries `{"nonce", "code"}` in and `{"nonce", "value", "error"}` out.
        most_chars: of a value and of an error: their beginning and their end are kept.
    """
    channel = Channel(cell)
    names = fresh_main("<cell>", "")
    number = 0
    try:
        while (request := channel.receive_plain()) is not None:
            number += 1
            value, error = _run_cell(request["code"], names, f"<cell {number}>")
            _flush()
            reply: Frame = {"nonce": request["nonce"]}
            if value:
                reply["value"] = shortened(value, most_chars)
            if error:
                reply["error"] = shortened(error, most_chars)
            channel.send(reply)
    finally:
        os._exit(0)


def warm_up() -> None:
    """Run a cell that works and one that fails, so that forks find done what Python does once."""
    for code in ("x = 1\nx + 1", "1 / 0"):
        _run_cell(code, {}, "<cell 0>")
    linecache.clearcache()


def shortened(text: str, most_chars: int) -> str:
    """Return text of bounded length: its beginning and its end."""
    length = str.__len__(text)
    if length <= most_chars:
        return str.__str__(text)
    head, tail = most_chars // 2, most_chars - most_chars // 2
    omitted = f"\n[... {length - most_chars:,} characters omitted]\n"
    return str.__getitem__(text, slice(0, head)) + omitted + str.__getitem__(text, slice(length - tail, length))


def _run_cell(code: str, names: dict[str, Any], name: str) -> tuple[str, str]:
    try:
        remember_source(name, code)
        tree = ast.parse(code, name)
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            tree.body.pop()
            if tree.body:
                exec(compile(tree, name, "exec"), names)
            value = eval(compile(ast.Expression(last.value), name, "eval"), names)
            return ("", "") if value is None else (repr(value), "")
        exec(compile(tree, name, "exec"), names)
        return "", ""
    except BaseException as error:
        return "", _described(error)


def _described(error: BaseException) -> str:
    """Return a traceback; an exception whose own text raises is told by its type."""
    try:
        return format_error(error)
    except BaseException:
        return f"{type(error).__name__}: <no traceback: it could not be written>"


def _flush() -> None:
    # one stream, unless the code has put something else there
    for stream in (sys.stdout,) if sys.stdout is sys.stderr else (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            continue
