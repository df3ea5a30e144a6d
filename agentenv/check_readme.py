"""The README beside an environment: it says what the class says, and its numbers are those that are measured."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path

from agentenv.check_subject import Skipped, Subject
from agentenv.env import AgentEnv, ToolEnv
from agentenv.errors import CheckFailed
from agentenv.registry import constructor_options

SECTIONS = ("Reward", "Policies", "Splits")
"""Paragraphs that begin so, in bold."""
_ROUNDING = 0.02
_NUMBER = re.compile(r"(?<![\w.])[01]\.\d+")


def readme_describes(subject: Subject) -> str:
    """Compare the README with the class and with the episodes played."""
    path = Path(inspect.getfile(subject.env_class)).parent / "README.md"
    if subject.spec is None or not path.is_file():
        raise Skipped("registered without a README.md beside its module" if subject.spec else "not registered")
    if (path.parent / "__init__.py").is_file() and not (path.parent / "env.py").is_file():
        return f"{path.name} is of a folder of several environments, so it was not compared"
    text = path.read_text(encoding="utf-8")
    missing = _missing(subject, text)
    if missing:
        raise CheckFailed(f"{path} does not have: {'; '.join(missing)}")
    if subject.env_kwargs:
        return f"{path.name}; its numbers are of the default options, so they were not compared"
    told = policy_numbers(text)
    for policy, number in told.items():
        played = subject.played("oracle" if policy == "oracle" else "random")
        tolerance = _tolerance(len(played.episodes), enough=subject.env_class.check_seeds)
        if abs(number - played.mean_return) > tolerance:
            measured = f"{played.mean_return:.3f} over {len(played.episodes)} seeds"
            raise CheckFailed(f"{path}: says that the {policy} policy reaches {number:g}; measured was {measured}")
    return f"oracle {told['oracle']:g}, random {told['random']:g}"


def policy_numbers(text: str) -> dict[str, float]:
    """Return the means that the paragraph `**Policies**` states: the first decimal after "oracle" and after "random".

    Raises:
        CheckFailed: one is not there.
    """
    paragraph = _paragraph(text, "Policies")
    out: dict[str, float] = {}
    for policy in ("oracle", "random"):
        place = re.search(policy, paragraph, re.IGNORECASE)
        number = place and _NUMBER.search(paragraph, place.end())
        if not number:
            raise CheckFailed(f'README.md: **Policies** gives no number such as 0.05 after the word "{policy}"')
        out[policy] = float(number.group())
    return out


def _missing(subject: Subject, text: str) -> list[str]:
    """Return what the README should have and does not."""
    wanted = {
        f"the title `# {subject.env_class.__name__}`": text.startswith(f"# {subject.env_class.__name__}\n"),
        f"the id `{subject.name}`": f"`{subject.name}`" in text,
        "a sample episode in a code block, with [user] and [assistant]": _has_sample(text),
    }
    wanted |= {f"a paragraph **{name}**": bool(_paragraph(text, name)) for name in SECTIONS}
    wanted |= {f"the option `{name}`": f"`{name}`" in text for name in own_options(subject.env_class)}
    wanted |= {f"the tool {name}": name in text for name in _tool_names(subject)}
    return [what for what, is_there in wanted.items() if not is_there]


def own_options(env_class: type[AgentEnv]) -> list[str]:
    """Return the options that an environment has beside those of every environment."""
    common = constructor_options(ToolEnv)
    return [name for name in constructor_options(env_class) if name not in common]


def _tool_names(subject: Subject) -> list[str]:
    """Return the tools of a small toolbox; large ones are described as a whole."""
    env = subject.make()
    env.reset(seed=0)
    names = list(env.toolbox.tools) if isinstance(env, ToolEnv) else []
    env.close()
    return names if len(names) <= _MAX_NAMED_TOOLS else []


_MAX_NAMED_TOOLS = 16


def _has_sample(text: str) -> bool:
    return any("[user]" in body and "[assistant]" in body for body in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL))


def _paragraph(text: str, name: str) -> str:
    """Return the text from `**name` to the next bold beginning of a line, heading or code block; empty without one."""
    found = re.search(rf"^\*\*{name}\b.*?(?=^\*\*|^#|^```|\Z)", text, re.MULTILINE | re.DOTALL)
    return found.group() if found else ""


def _tolerance(num_seeds: int, *, enough: int) -> float:
    """Return how far a mean of returns in [0, 1] may lie from one over `enough` seeds."""
    return _ROUNDING if num_seeds >= enough else _ROUNDING + 3 * math.sqrt(0.25 / num_seeds)
