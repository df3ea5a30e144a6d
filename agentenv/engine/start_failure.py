"""Explains why a server did not start, from the last lines of its log."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentenv.errors import AgentEnvError, EngineError, UsageError

_SHOWN_LINES = 12
_PORT_TAKEN = re.compile(r"address already in use|port \d+ is (?:already )?in use|errno 98", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cause:
    pattern: re.Pattern[str]
    remedy: str
    kind: type[AgentEnvError]


def _cause(pattern: str, remedy: str, kind: type[AgentEnvError] = UsageError) -> _Cause:
    return _Cause(pattern=re.compile(pattern, re.IGNORECASE), remedy=remedy, kind=kind)


# of the causes that match a line, the first is told: the specific ones stand before the general ones
_CAUSES = (
    _Cause(pattern=_PORT_TAKEN, remedy="the port is taken: choose another one, or 0 for a free one", kind=UsageError),
    _cause(
        r"(?:modulenotfounderror|importerror): |: no module named",  # warnings write them with parentheses
        "the engine, or a package that it needs, is not installed for this interpreter: run `agentenv engines install "
        "vllm` (or sglang), or set engine.python to the interpreter that has it",
    ),
    _cause(
        r"cannot start .*no such file or directory|cannot start .*permission denied",
        "the interpreter does not exist: set engine.python to the one that has the engine",
    ),
    _cause(
        r"out of memory|outofmemoryerror|cannot allocate memory|memoryerror|no available memory for the cache"
        r"|less than desired|free memory on device",
        "there was not enough memory: lower engine.cache_tokens or engine.max_slots, choose a smaller dtype, or end "
        "what else holds memory",
        EngineError,
    ),
    _cause(
        r"max[_ ]model[_ ]len.*(?:greater|larger)|context[_ -]length.*(?:greater|larger)|max_position_embeddings",
        "max_length is longer than the model's positions: lower engine.max_length",
    ),
    _cause(
        r"does not appear to have a file named|not a valid model identifier|repository not found|is not a local folder"
        r"|unrecognized model|no safetensors|cannot find any model weights",
        "the model could not be read: name a folder with config.json, weights and tokenizer, or a Hub id",
    ),
    _cause(
        r"unrecognized arguments|invalid choice|no such option",
        "the engine does not know one of its arguments: check engine.options and the engine's version",
    ),
    _cause(
        r"no accelerator|no cuda gpus|nvidia driver|cuda driver|failed to infer device",
        "no usable GPU was found: set engine.device to cpu, with an engine that was installed for the CPU",
    ),
)


def is_port_taken(log: Sequence[str]) -> bool:
    """Say whether the server ended because somebody listens on its port."""
    return any(_PORT_TAKEN.search(line) for line in log)


def explained(what: str, *, log: Sequence[str], path: Path) -> AgentEnvError:
    """Return the error for a server that did not start.

    Args:
        what: what was seen, e.g. `"vllm 0 ended with code 1"`.
        log: its last lines.
        path: where the whole log is.

    Returns:
        A UsageError where the cause is a mistake in the set-up, else an EngineError; with what to do where the cause
        is a known one.
    """
    # the last line that tells a cause: earlier ones may have been warnings
    found = ((cause, line) for line in reversed(log) for cause in _CAUSES if cause.pattern.search(line))
    cause, line = next(found, (None, ""))
    remedy = f". Likely cause: {cause.remedy}" if cause else ""
    last = list(log[-_SHOWN_LINES:])
    shown = [line, "...", *last] if line and line not in last else last
    lines = "\n".join(f"    {line[:300]}" for line in shown) or "    (nothing)"
    kind = EngineError if cause is None else cause.kind
    return kind(f"{what}{remedy}.\n  The last lines of {path}:\n{lines}")
