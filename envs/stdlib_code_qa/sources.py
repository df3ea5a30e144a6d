"""Modules of the standard library of the running Python: their text, and what their syntax trees say."""

from __future__ import annotations

import ast
import functools
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_NAMES = (
    "abc", "base64", "bdb", "bisect", "calendar", "cmd", "code", "codecs", "codeop", "colorsys", "configparser",
    "contextlib", "copy", "csv", "dataclasses", "difflib", "dis", "filecmp", "fileinput", "fnmatch", "fractions",
    "ftplib", "functools", "getopt", "gettext", "glob", "graphlib", "gzip", "hashlib", "heapq", "hmac", "imaplib",
    "inspect", "ipaddress", "keyword", "linecache", "locale", "lzma", "mailbox", "mimetypes", "netrc", "numbers",
    "operator", "optparse", "pathlib", "pickle", "pickletools", "pkgutil", "platform", "plistlib", "poplib", "pprint",
    "profile", "pstats", "queue", "quopri", "random", "reprlib", "rlcompleter", "sched", "selectors", "shelve", "shlex",
    "shutil", "smtplib", "socketserver", "statistics", "string", "symtable", "tabnanny", "tempfile", "textwrap",
    "timeit", "token", "tokenize", "trace", "traceback", "types", "uuid", "warnings", "weakref", "webbrowser", "zipapp",
    "zipfile",
)  # fmt: skip
MAX_CHARS = 60_000
"""Longer modules are left out, because reading and parsing them takes too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function at the top of a module.

    Attributes:
        name: of it.
        num_parameters: all of them, `*args` and `**kwargs` as one each.
        defaults: plain default values by parameter, as source text.
        line: where `def` stands.
        last_line: of the whole function.
    """

    name: str
    num_parameters: int
    defaults: dict[str, str]
    line: int
    last_line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Class:
    """A class at the top of a module.

    Attributes:
        name: of it.
        base: name of the first base class, empty where there is none or it is no plain name.
        methods: names of the functions that its body defines, each once.
        line: where `class` stands.
        last_line: of the whole class.
    """

    name: str
    base: str
    methods: tuple[str, ...]
    line: int
    last_line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A module: its file name, its text, and what stands at its top."""

    file: str
    text: str
    functions: tuple[Function, ...]
    classes: tuple[Class, ...]


@functools.cache
def module_names() -> tuple[str, ...]:
    """Return the modules of the list that this Python has as one file of moderate length."""
    folder = Path(sysconfig.get_path("stdlib"))
    return tuple(
        name
        for name in _NAMES
        if (folder / f"{name}.py").is_file() and (folder / f"{name}.py").stat().st_size <= MAX_CHARS
    )


@functools.cache
def load_module(name: str) -> Module:
    """Read and parse a module; once per process."""
    path = Path(sysconfig.get_path("stdlib")) / f"{name}.py"
    text = path.read_text(encoding="utf-8")
    body = ast.parse(text).body
    functions = [_function(node) for node in body if isinstance(node, ast.FunctionDef)]
    classes = [_class(node) for node in body if isinstance(node, ast.ClassDef)]
    once = Counter(found.name for found in (*functions, *classes))
    return Module(
        file=f"{name}.py",
        text=text,
        functions=tuple(found for found in functions if once[found.name] == 1),
        classes=tuple(found for found in classes if once[found.name] == 1),
    )


def _function(node: ast.FunctionDef) -> Function:
    parameters = node.args
    named = [*parameters.posonlyargs, *parameters.args]
    pairs = [
        *zip(named[len(named) - len(parameters.defaults) :], parameters.defaults, strict=True),
        *zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True),
    ]
    return Function(
        name=node.name,
        num_parameters=len(named) + len(parameters.kwonlyargs) + bool(parameters.vararg) + bool(parameters.kwarg),
        defaults={name.arg: ast.unparse(value) for name, value in pairs if value is not None and _is_plain(value)},
        line=node.lineno,
        last_line=node.end_lineno or node.lineno,
    )


def _is_plain(value: ast.expr) -> bool:
    """True for numbers, None, True, False and words: values that are written in one way only."""
    if not isinstance(value, ast.Constant):
        return False
    return value.value.isalnum() if isinstance(value.value, str) else isinstance(value.value, (int, type(None)))


def _class(node: ast.ClassDef) -> Class:
    base = node.bases[0] if node.bases else None
    methods = [item.name for item in node.body if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return Class(
        name=node.name,
        base=base.id if isinstance(base, ast.Name) else "",
        methods=tuple(dict.fromkeys(methods)),
        line=node.lineno,
        last_line=node.end_lineno or node.lineno,
    )
