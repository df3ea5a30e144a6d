"""Lets PyPI's torchvision be imported beside a CPU build of torch, which image processors of vLLM and SGLang need.

PyPI's wheel is linked against a CUDA torch. Beside a CPU torch its native library does not load, and the import fails
at the fake kernels of two operators, `nms` and `qnms`, whose schemas that library would have declared. Resizing and the
like, which is all that image processors use, is written in Python. So the two schemas are declared right before
torchvision is loaded, wherever its library cannot be; calling the operators still fails.

This file needs nothing but the standard library, so that it can be copied: `install(folder)` puts it beside a `.pth`
file into the site-packages of an engine's environment, where every process then finds torchvision in order.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_COPY = "_agentenv_torchvision"
_OPERATORS = ("nms", "qnms")
_kept: list[object] = []  # operators live as long as the library object that declared them


def install(site_packages: Path) -> None:
    """Make every process of an environment import torchvision through `hook`; doing it twice changes nothing.

    Args:
        site_packages: of the environment.
    """
    shutil.copyfile(__file__, site_packages / f"{_COPY}.py")
    (site_packages / f"{_COPY}.pth").write_text(f"import {_COPY}; {_COPY}.hook()\n", encoding="utf-8")


def hook() -> None:
    """Declare the missing schemas when this process comes to import torchvision."""
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds torchvision where it is, and has the schemas declared before it is run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None and spec.submodule_search_locations:
            spec.loader = _Loader(spec.loader, folder=Path(spec.submodule_search_locations[0]))
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, real: importlib.abc.Loader, *, folder: Path) -> None:
        self.real = real
        self.folder = folder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if not _has_native_library(self.folder):
            _declare_operators()
        self.real.exec_module(module)


def _has_native_library(folder: Path) -> bool:
    import torch  # noqa: F401 - its libraries must be loaded before torchvision's can be

    for library in folder.glob("_C*.so"):
        try:
            ctypes.CDLL(str(library))
        except OSError:
            continue
        return True
    return False


def _declare_operators() -> None:
    if _kept:
        return
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
