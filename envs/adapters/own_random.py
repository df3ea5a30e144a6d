"""Random numbers of their own for packages that draw from, and reseed, the global generators; and silence."""

from __future__ import annotations

import builtins
import importlib
import random
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import numpy as np

_current: ContextVar[OwnRandom | None] = ContextVar("own_random", default=None)
_lock = threading.Lock()


class OwnRandom:
    """The streams of one episode: what its game sees as the modules `random` and `numpy.random`.

    While `active`, every draw and every reseeding of the modules that were isolated goes to these streams; the global
    generators, and the streams of other episodes, in other threads and tasks too, stay as they are.

    Args:
        seed: of both streams.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.numpy = np.random.RandomState(seed % 2**32)

    @contextmanager
    def active(self) -> Generator[None]:
        """Use these streams for what runs inside."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


def load_isolated(module: str) -> ModuleType:
    """Import a module of such a package and isolate it; what it draws while it is imported is put back."""
    with _lock:
        states = random.getstate(), np.random.get_state()
        try:
            loaded = importlib.import_module(module)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
    isolate(module.partition(".")[0])
    return loaded


def isolate(package: str) -> None:
    """Let the loaded modules of a package draw from the active streams instead of the global generators.

    Modules that are loaded later need another call; a module is changed once. Outside of `active` nothing changes.
    """
    with _lock:
        for name, module in list(sys.modules.items()):
            if module is None or not (name == package or name.startswith(f"{package}.")):
                continue
            for key, value in list(vars(module).items()):
                replacement = _REPLACED.get(id(value))
                if replacement is not None:
                    setattr(module, key, replacement)
            vars(module).setdefault("print", _print_outside)


def _print_outside(*values: object, **options: Any) -> None:
    """Print, but not from inside an episode: what games print for debugging is nobody's concern."""
    if _current.get() is None:
        builtins.print(*values, **options)  # noqa: T201


class _Random(ModuleType):
    """Stands for the module `random`."""

    def __getattr__(self, name: str) -> Any:
        own = _current.get()
        # classes such as `random.Random` are no draws, so they stay what they are
        if own is not None and name[0].islower() and hasattr(own.random, name):
            return getattr(own.random, name)
        return getattr(random, name)


class _NumpyRandom(ModuleType):
    """Stands for `numpy.random`."""

    def __getattr__(self, name: str) -> Any:
        own = _current.get()
        if own is not None and name == "default_rng":
            return lambda seed=None: np.random.default_rng(own.numpy.randint(2**31) if seed is None else seed)
        if own is not None and name[0].islower() and hasattr(own.numpy, name):
            return getattr(own.numpy, name)
        return getattr(np.random, name)


class _Numpy(ModuleType):
    """Stands for `numpy`, with another `random`."""

    def __getattr__(self, name: str) -> Any:
        return _NUMPY_RANDOM if name == "random" else getattr(np, name)


_NUMPY_RANDOM = _NumpyRandom("numpy.random")
_RANDOM = _Random("random")
_REPLACED: dict[int, Any] = {id(random): _RANDOM, id(np): _Numpy("numpy"), id(np.random): _NUMPY_RANDOM} | {
    id(getattr(random, name)): (lambda *args, _name=name, **kwargs: getattr(_RANDOM, _name)(*args, **kwargs))
    for name in ("choice", "choices", "randint", "random", "randrange", "sample", "seed", "shuffle", "uniform")
}
