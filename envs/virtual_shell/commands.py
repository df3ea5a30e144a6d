"""The commands of the shell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from agentenv.envs.virtual_shell.file_system import MAX_PATH_CHARS, FileSystem, ShellError, absolute, name_of
from agentenv.envs.virtual_shell.pattern import glob, regular_expression


class Session(Protocol):
    """What a command may use of the shell."""

    files: FileSystem
    folder: str

    def call(self, arguments: Sequence[str], *, stdin: str) -> str:
        """Run another command."""
        ...

    def spend(self, work: int) -> None:
        """Count characters handled."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a command.

    Attributes:
        shell: the session.
        arguments: without the command's name.
        stdin: what the command before it in the pipe printed.
    """

    shell: Session
    arguments: list[str]
    stdin: str

    def options(self, flags: str, *, valued: str = "") -> tuple[dict[str, str], list[str]]:
        """Split the arguments into options and the rest.

        Args:
            flags: letters of options without a value.
            valued: letters of options with one.

        Raises:
            ShellError: an option is unknown or lacks its value.
        """
        found: dict[str, str] = {}
        rest: list[str] = []
        pending = list(self.arguments)
        while pending:
            word = pending.pop(0)
            if word == "--":
                return found, rest + pending
            if not word.startswith("-") or word == "-":
                rest.append(word)
                continue
            for index, letter in enumerate(word[1:], start=2):
                if letter in valued:
                    value = word[index:] or (pending.pop(0) if pending else "")
                    if not value:
                        raise ShellError(f"option -{letter} needs a value")
                    found[letter] = value
                    break
                if letter not in flags:
                    raise ShellError(f"unknown option -{letter}; known are {' '.join(f'-{x}' for x in flags + valued)}")
                found[letter] = ""
        return found, rest

    def path(self, text: str) -> str:
        """Return a path in its absolute form."""
        return absolute(text, folder=self.shell.folder)

    def text(self, paths: Iterable[str]) -> str:
        """Return the contents of files one after the other, or what came through the pipe where none is named."""
        read = [self.stdin if path == "-" else self.shell.files.read(self.path(path)) for path in paths]
        self.shell.spend(sum(map(len, read)) + len(self.stdin))
        return "".join(_closed(content) for content in read) if read else self.stdin


def _cat(call: Call) -> str:
    return call.text(call.options("")[1])


def _cd(call: Call) -> str:
    target = call.path(call.arguments[0]) if call.arguments else "/"
    call.shell.files.children(target)
    call.shell.folder = target
    return ""


def _cp(call: Call) -> str:
    options, words = call.options("rR", valued="t")
    for source, target in _sources_and_targets(call, options, words):
        if source in call.shell.files.folders and not options.keys() & {"r", "R"}:
            raise ShellError(f"{source}: is a directory, and -r was not given")
        if source == target:
            raise ShellError(f"{source}: source and target are the same")
        call.shell.files.copy_to(source, target)
    return ""


def _cut(call: Call) -> str:
    options, words = call.options("", valued="df")
    number = options.get("f", "")
    if not number.isascii() or not number.isdigit() or not 1 <= len(number) <= 3 or int(number) < 1:
        raise ShellError("-f needs one field number, from 1")
    separator = options.get("d", "\t")
    fields = [line.split(separator) for line in call.text(words).splitlines()]
    # like the real one: a line without the separator is printed whole
    return _lines(
        parts[0] if len(parts) == 1 else parts[int(number) - 1] if int(number) <= len(parts) else "" for parts in fields
    )


def _echo(call: Call) -> str:
    words = call.arguments
    return " ".join(words[1:]) if words[:1] == ["-n"] else " ".join(words) + "\n"


def _find(call: Call) -> str:
    words = list(call.arguments)
    roots: list[str] = []
    while words and not words[0].startswith("-"):
        roots.append(words.pop(0))
    tests: list[Callable[[str], bool]] = []
    while words:
        test = words.pop(0)
        if not words or test not in ("-name", "-type"):
            raise ShellError(f"{test[:40]}: unknown test, or its value is missing; known are -name GLOB and -type f|d")
        tests.append(_find_test(call, test, words.pop(0)))
    found: list[str] = []
    for root in roots or ["."]:
        path = call.path(root)
        if not call.shell.files.exists(path):
            raise ShellError(f"{root}: No such file or directory")
        nodes = (path, *call.shell.files.below(path))
        call.shell.spend(sum(map(len, nodes)))
        for node in nodes:
            if all(test(node) for test in tests):
                found.append((root.rstrip("/") + node[len(path.rstrip("/")) :]) or "/")
    return _lines(found)


def _find_test(call: Call, test: str, value: str) -> Callable[[str], bool]:
    if test == "-name":
        pattern = glob(value)
        return lambda node: pattern.is_in(name_of(node))
    if value not in ("f", "d"):
        raise ShellError(f"-type is {value[:10]}; known are f and d")
    return lambda node: node in (call.shell.files.files if value == "f" else call.shell.files.folders)


def _grep(call: Call) -> str:
    options, words = call.options("ivnclrhE")
    if not words:
        raise ShellError("a pattern is missing")
    pattern = regular_expression(words[0], ignore_case="i" in options)
    sources = _grep_sources(call, words[1:], is_recursive="r" in options)
    call.shell.spend(sum(len(content) for _, content in sources) * (len(words[0]) + 1))
    is_named = (len(sources) > 1 or "r" in options) and "h" not in options
    printed: list[str] = []
    for name, content in sources:
        hits = [
            (number, line)
            for number, line in enumerate(content.splitlines(), start=1)
            if pattern.is_in(line.lower() if "i" in options else line) != ("v" in options)
        ]
        start = f"{name}:" if is_named else ""
        if "l" in options:
            printed += [name] if hits else []
        elif "c" in options:
            printed.append(f"{start}{len(hits)}")
        else:
            printed += [f"{start}{f'{number}:' if 'n' in options else ''}{line}" for number, line in hits]
    return _lines(printed)


def _grep_sources(call: Call, paths: Sequence[str], *, is_recursive: bool) -> list[tuple[str, str]]:
    if not paths and not is_recursive:
        return [("(standard input)", call.stdin)]
    found: list[tuple[str, str]] = []
    for path in paths or ["."]:
        node = call.path(path)
        if node in call.shell.files.folders and is_recursive:
            start = len(node.rstrip("/"))
            below = [item for item in call.shell.files.below(node) if item in call.shell.files.files]
            found += [(path.rstrip("/") + item[start:], call.shell.files.read(item)) for item in below]
        else:
            found.append((path, call.shell.files.read(node)))
    return found


def _head(call: Call) -> str:
    options, words = call.options("", valued="n")
    return _lines(call.text(words).splitlines()[: _count(options)])


def _ls(call: Call) -> str:
    options, words = call.options("laRA1")
    files = call.shell.files
    printed: list[str] = []
    for word in words or ["."]:
        path = call.path(word)
        if path in files.files:
            printed.append(word)
            continue
        names = files.children(path)
        nodes = files.below(path) if "R" in options else [f"{path.rstrip('/')}/{name}" for name in names]
        start = len(path.rstrip("/")) + 1
        call.shell.spend(sum(map(len, nodes)))
        printed += [f"{word}:"] if len(words) > 1 else []
        for node in nodes:
            size = f"{len(files.files[node]):>7} " if node in files.files else "      - "
            end = "/" if node in files.folders else ""
            printed.append(f"{size if 'l' in options else ''}{node[start:]}{end}")
    return _lines(printed)


def _mkdir(call: Call) -> str:
    options, words = call.options("p")
    for word in _required(words, "a folder"):
        call.shell.files.make_folder(call.path(word), with_parents="p" in options)
    return ""


def _mv(call: Call) -> str:
    options, words = call.options("", valued="t")
    for source, target in _sources_and_targets(call, options, words):
        call.shell.files.move_to(source, target)
    return ""


def _pwd(call: Call) -> str:
    return f"{call.shell.folder}\n"


def _rm(call: Call) -> str:
    options, words = call.options("rRf")
    for word in _required(words, "a path"):
        path = call.path(word)
        if path in call.shell.files.folders and not options.keys() & {"r", "R"}:
            raise ShellError(f"{word}: is a directory, and -r was not given")
        if call.shell.files.exists(path) or "f" not in options:
            call.shell.files.remove(path)
    return ""


def _sort(call: Call) -> str:
    options, words = call.options("rnu")
    lines = call.text(words).splitlines()
    if "u" in options:
        lines = list(dict.fromkeys(lines))
    key = _numeric_key if "n" in options else _text_key
    return _lines(sorted(lines, key=key, reverse="r" in options))


def _tail(call: Call) -> str:
    options, words = call.options("", valued="n")
    count = _count(options)
    return _lines(call.text(words).splitlines()[-count:] if count else [])


def _touch(call: Call) -> str:
    for word in _required(call.options("")[1], "a file"):
        path = call.path(word)
        if not call.shell.files.exists(path):
            call.shell.files.write(path, "")
    return ""


def _uniq(call: Call) -> str:
    options, words = call.options("c")
    groups: list[list[str]] = []
    for line in call.text(words).splitlines():
        if groups and groups[-1][0] == line:
            groups[-1].append(line)
        else:
            groups.append([line])
    return _lines(f"{len(group):>7} {group[0]}" if "c" in options else group[0] for group in groups)


def _wc(call: Call) -> str:
    options, words = call.options("lwc")
    text = call.text(words)
    counts = {"l": text.count("\n"), "w": len(text.split()), "c": len(text)}
    return " ".join(str(counts[letter]) for letter in counts if letter in options or not options) + "\n"


def _xargs(call: Call) -> str:
    words = list(call.arguments)
    items = call.stdin.split()
    if words[:1] == ["-I"]:
        if len(words) < 3:
            raise ShellError("-I needs a mark and a command")
        mark, command = words[1], words[2:]
        if max(map(len, items), default=0) > MAX_PATH_CHARS:
            raise ShellError("argument line too long")
        return "".join(call.shell.call([word.replace(mark, item) for word in command], stdin="") for item in items)
    return call.shell.call([*_required(words, "a command"), *items], stdin="") if items else ""


def _sources_and_targets(call: Call, options: Mapping[str, str], words: Sequence[str]) -> list[tuple[str, str]]:
    """Return what goes where, for `mv` and `cp`: into a folder under the same name, or to the path itself."""
    named = options.get("t")
    if named is None and len(words) < 2:
        raise ShellError("source and target are needed")
    target = call.path(words[-1] if named is None else named)
    sources = [call.path(word) for word in (words[:-1] if named is None else words)]
    files = call.shell.files
    if target in files.folders:
        return [(source, f"{target.rstrip('/')}/{name_of(source)}") for source in sources]
    if len(sources) != 1 or named is not None:
        raise ShellError(f"{target}: is not a directory")
    return [(sources[0], target)]


def _required(words: Sequence[str], what: str) -> Sequence[str]:
    if not words:
        raise ShellError(f"{what} is missing")
    return words


def _count(options: Mapping[str, str]) -> int:
    value = options.get("n", "10")
    if not value.isascii() or not value.isdigit() or len(value) > 6:
        raise ShellError(f"-n is {value[:20]}; a whole number is needed")
    return int(value)


def _numeric_key(line: str) -> tuple[float, str]:
    first = (line.split() or [""])[0]
    try:
        return float(first[:30]), line
    except ValueError:
        return 0.0, line


def _text_key(line: str) -> tuple[float, str]:
    return 0.0, line


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _closed(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"


COMMANDS: Mapping[str, Callable[[Call], str]] = {
    "cat": _cat,
    "cd": _cd,
    "cp": _cp,
    "cut": _cut,
    "echo": _echo,
    "find": _find,
    "grep": _grep,
    "head": _head,
    "ls": _ls,
    "mkdir": _mkdir,
    "mv": _mv,
    "pwd": _pwd,
    "rm": _rm,
    "sort": _sort,
    "tail": _tail,
    "touch": _touch,
    "uniq": _uniq,
    "wc": _wc,
    "xargs": _xargs,
}
"""By name."""
