"""Keeps secrets out of what is logged: by the name of the key, and by the look of the value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

HIDDEN = "<hidden>"

_SECRET_KEY = re.compile(
    r"(?:^|[_\-.])(?:(?:api|access|private|secret)[_-]?key|secrets?|passw(?:or)?d|passphrase|credentials?|authorization"
    r"|(?:api|auth|access|bearer|refresh|session|hf|hub|wandb)[_-]?token)$"
    r"|^token$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"(?P<keep>\b(?:Bearer|Basic) |://[^/\s:@]*:)[^\s@]{3,}(?=@|\s|$)"  # headers, and user:password@host
    r"|\b(?:sk|pk|hf|ghp|gho|xox[abp])[-_][A-Za-z0-9_-]{16,}"  # tokens with a well-known beginning
)


def without_secrets(value: object, *, key: str = "") -> object:
    """Return a JSON-plain value in which the text of every secret is replaced by `HIDDEN`.

    Args:
        value: scalar, list or mapping; it is not changed.
        key: the name under which the value stands, alone or dotted.
    """
    if isinstance(value, Mapping):
        return {
            name: without_secrets(item, key=str(name)) for name, item in cast("Mapping[str, object]", value).items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(item, key=key) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if _SECRET_KEY.search(key):
        return HIDDEN
    return _SECRET_VALUE.sub(lambda match: f"{match['keep'] or ''}{HIDDEN}", value)
