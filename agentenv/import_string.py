"""Import strings `module:attribute`: names that mean the same in every process."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from agentenv.errors import UsageError


def load_callable(text: str, *, what: str) -> Callable[..., Any]:
    """Return the class or function that an import string names.

    Args:
        text: `module:attribute`.
        what: what it is needed as, for errors.

    Raises:
        UsageError: it is no import string, leads nowhere, or names something that cannot be called.
    """
    module_name, colon, attribute = text.partition(":")
    if not (colon and module_name and attribute):
        raise UsageError(f"{what} {text!r} is no import string; write module:name")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{what} {text!r} cannot be imported ({error})") from error
    if not callable(found):
        raise UsageError(f"{what} {text!r} is {type(found).__name__}; a class or a function is needed")
    return found
