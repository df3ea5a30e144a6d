"""`agentenv new env NAME`: a folder with a small environment that keeps every promise, to be changed into another."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from agentenv.errors import UsageError

TEMPLATE = Path(__file__).parent / "new_env_template"
"""Files with `$Name` and `$module` in them; the ending `.txt` comes off."""


def new_env(name: str, *, to: str = ".") -> Path:
    """Write the folder of a new environment.

    Args:
        name: of the class, e.g. `CountVowels`; the folder becomes `count_vowels`.
        to: where the folder is made.

    Raises:
        UsageError: the name is no class name, or the folder is there already.
    """
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) or keyword.iskeyword(name):
        hint = "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", name)).lstrip("0123456789")
        raise UsageError(f'"{name}" is no class name; write it like {hint or "CountVowels"}')
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    folder = Path(to) / module
    if folder.exists():
        raise UsageError(f"{folder} exists already; choose another name, or --to another folder")
    folder.mkdir(parents=True)
    for source in sorted(TEMPLATE.iterdir()):
        text = Template(source.read_text(encoding="utf-8")).substitute(Name=name, module=module)
        (folder / source.name.removesuffix(".txt").replace("MODULE", module)).write_text(text, encoding="utf-8")
    return folder


def told_new_env(name: str, *, to: str) -> str:
    """Write the folder and return what to do with it."""
    folder = new_env(name, to=to)
    first = "" if Path(to) == Path(".") else f"cd {to}; "
    files = ", ".join(sorted(path.name for path in folder.iterdir()))
    return (
        f"wrote {folder}/: {files}\n"
        f"check it:  {first}agentenv check env {folder.name}.env:{name}\n"
        f"play it:   {first}agentenv play {folder.name}.env:{name} --policy oracle"
    )
