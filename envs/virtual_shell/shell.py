"""The shell: words, quotes, globs, pipes, redirections, `;` and `&&` over a file system in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agentenv.envs.virtual_shell.commands import COMMANDS, Call
from agentenv.envs.virtual_shell.file_system import FileSystem, ShellError, absolute
from agentenv.envs.virtual_shell.pattern import glob
from agentenv.errors import did_you_mean

MAX_COMMAND_CHARS = 4000
MAX_OUTPUT_CHARS = 4000
MAX_STEPS = 100
"""Commands that one line may run, those under `xargs` included."""
MAX_WORK = 1_000_000
"""Characters that one line may handle, times the length of the pattern where they are searched."""
MAX_WORDS = 500
"""Words of one command, after globs."""

_OPERATORS = ("&&", ">>", ">", "|", ";", "\n")
_UNSUPPORTED = {"||": "||", "&": "background jobs", "<": "input redirection", "$": "variables", "`": "substitution"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word of a line; `is_quoted` where quotes or backslashes stood in it, so it is no glob and no operator."""

    text: str
    is_quoted: bool = False
    is_operator: bool = False


@dataclass(kw_only=True)
class Shell:
    """One session.

    Attributes:
        files: what it works on.
        folder: the current one.
    """

    files: FileSystem
    folder: str = "/"
    _num_steps: int = field(default=0)
    _work: int = field(default=0)

    def run(self, line: str) -> str:
        """Run a line and return what it prints, errors included, cut in the middle where it is long."""
        self._num_steps = self._work = 0
        try:
            words = split_line(line)
            printed = self._run_list(words)
        except ShellError as error:
            printed = f"sh: {error}\n"
        if len(printed) > MAX_OUTPUT_CHARS:
            half = MAX_OUTPUT_CHARS // 2
            printed = f"{printed[:half]}\n[... {len(printed) - 2 * half} characters omitted]\n{printed[-half:]}"
        return printed.rstrip("\n") or "(no output)"

    def _run_list(self, words: Sequence[Word]) -> str:
        printed: list[str] = []
        is_fine = True
        for connector, pipeline in _split_at(words, (";", "\n", "&&")):
            if not pipeline or (connector == "&&" and not is_fine):
                continue
            try:
                printed.append(self._run_pipeline(pipeline))
                is_fine = True
            except ShellError as error:
                printed.append(f"{error}\n")
                is_fine = False
        return "".join(printed)

    def _run_pipeline(self, words: Sequence[Word]) -> str:
        output = ""
        for _, part in _split_at(words, ("|",)):
            command, target, is_appended = _redirection(part)
            if not command:
                raise ShellError("sh: syntax error: a command is missing")
            output = self.call([text for word in command for text in self._expand(word)], stdin=output)
            if target is not None:
                path = absolute(target, folder=self.folder)
                before = self.files.files.get(path, "") if is_appended else ""
                self.files.write(path, before + output)
                output = ""
        return output

    def spend(self, work: int) -> None:
        """Count work, so that no line holds up other episodes.

        Raises:
            ShellError: it was too much.
        """
        if self._work + work > MAX_WORK:
            raise ShellError("sh: the line does too much work; split it")
        self._work += work

    def call(self, arguments: Sequence[str], *, stdin: str) -> str:
        """Run one command.

        Raises:
            ShellError: it failed; the text begins with its name.
        """
        self._num_steps += 1
        if self._num_steps > MAX_STEPS:
            raise ShellError(f"sh: more than {MAX_STEPS} commands in one line")
        if len(arguments) > MAX_WORDS or sum(map(len, arguments)) > MAX_COMMAND_CHARS * 4:
            raise ShellError("sh: argument list too long")
        name = arguments[0]
        command: Callable[[Call], str] | None = COMMANDS.get(name)
        if command is None:
            known: Mapping[str, object] = COMMANDS
            raise ShellError(
                f"sh: {name[:80]}: command not found. There are {', '.join(known)}.{did_you_mean(name[:80], known)}"
            )
        try:
            return command(Call(shell=self, arguments=list(arguments[1:]), stdin=stdin))
        except ShellError as error:
            text = str(error)
            raise ShellError(text if text.startswith(("sh: ", f"{name}: ")) else f"{name}: {text}") from None

    def _expand(self, word: Word) -> list[str]:
        """Return the paths that an unquoted glob fits, else the word as it is."""
        if word.is_quoted or not any(character in word.text for character in "*?["):
            return [word.text]
        is_absolute = word.text.startswith("/")
        found = ["/" if is_absolute else ""]
        for part in word.text.strip("/").split("/"):
            found = [match for base in found[:MAX_WORDS] for match in self._matches(base, part)]
        return found or [word.text]

    def _matches(self, base: str, part: str) -> list[str]:
        folder = absolute(base, folder=self.folder)
        if part in (".", ".."):
            return [f"{base}{part}/"]
        if folder not in self.files.folders:
            return []
        pattern = glob(part)
        names = [name for name in self.files.children(folder) if pattern.is_in(name)]
        separator = "" if base in ("", "/") or base.endswith("/") else "/"
        return [f"{base}{separator}{name}" for name in names if not name.startswith(".") or part.startswith(".")]


def split_line(line: str) -> list[Word]:
    """Split a line into words and operators.

    Raises:
        ShellError: a quote is not closed, or the line uses what this shell does not have.
    """
    if len(line) > MAX_COMMAND_CHARS:
        raise ShellError(f"line too long; at most {MAX_COMMAND_CHARS} characters are allowed")
    words: list[Word] = []
    text, is_quoted, is_open = "", False, False
    index = 0
    while index < len(line):
        character = line[index]
        operator = _operator_at(line, index) if character in "&>|;\n" else ""
        if character in "'\"":
            part, index = _quoted(line, index)
            text, is_quoted, is_open = text + part, True, True
        elif character == "\\" and index + 1 < len(line):
            index += 1
            text, is_quoted, is_open = text + line[index], True, True
        elif character.isspace() or operator:
            if is_open:
                words.append(Word(text=text, is_quoted=is_quoted))
            text, is_quoted, is_open = "", False, False
            if operator:
                if line.startswith("||", index):
                    raise ShellError("|| is not supported")
                words.append(Word(text=operator, is_operator=True))
                index += len(operator) - 1
        elif character in _UNSUPPORTED:
            raise ShellError(f"{_UNSUPPORTED[character]}: not supported")
        else:
            text, is_open = text + character, True
        index += 1
    return [*words, Word(text=text, is_quoted=is_quoted)] if is_open else words


def _operator_at(line: str, index: int) -> str:
    return next((known for known in _OPERATORS if line.startswith(known, index)), "")


def _quoted(line: str, index: int) -> tuple[str, int]:
    """Return the text within the quotes that open at an index, and the index of the closing one."""
    quote, text = line[index], ""
    index += 1
    while index < len(line) and line[index] != quote:
        if quote == '"' and line[index] == "\\" and line[index + 1 : index + 2] in ('"', "\\", "$", "`"):
            index += 1
        text += line[index]
        index += 1
    if index >= len(line):
        raise ShellError("syntax error: a quote is not closed")
    return text, index


def _split_at(words: Sequence[Word], operators: Sequence[str]) -> list[tuple[str, list[Word]]]:
    """Return the parts between the operators, each with the operator before it."""
    parts: list[tuple[str, list[Word]]] = [("", [])]
    for word in words:
        if word.is_operator and word.text in operators:
            parts.append((word.text, []))
        else:
            parts[-1][1].append(word)
    return parts


def _redirection(words: Sequence[Word]) -> tuple[list[Word], str | None, bool]:
    """Return the command, the file that its output goes to, and whether it is appended."""
    command: list[Word] = []
    target, is_appended = None, False
    rest = iter(words)
    for word in rest:
        if not word.is_operator:
            command.append(word)
            continue
        following = next(rest, None)
        if following is None or following.is_operator:
            raise ShellError(f"sh: syntax error after {word.text}")
        target, is_appended = following.text, word.text == ">>"
    return command, target, is_appended
