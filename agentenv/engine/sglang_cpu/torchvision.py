"""Stands in front of torchvision on the path of a CPU SGLang process: declares two operators, then loads the real one.

PyPI's torchvision is linked against a CUDA torch. Beside a CPU torch its native library does not load, and the import
then fails on fake kernels for `nms` and `qnms`, whose schemas that library would have declared. Nothing in SGLang calls
either. Where the library does load, nothing is declared.
"""

import ctypes
import importlib.machinery
import importlib.util
import sys
from importlib.abc import Loader
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _real_spec() -> tuple[importlib.machinery.ModuleSpec, Loader, Path]:
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("torchvision", elsewhere)
    if spec is None or spec.loader is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
    return spec, spec.loader, Path(spec.submodule_search_locations[0])


def _has_native_library(folder: Path) -> bool:
    import torch  # noqa: F401 - its libraries must be loaded before torchvision's can be

    for library in folder.glob("_C*.so"):
        try:
            ctypes.CDLL(str(library))
        except OSError:
            continue
        return True
    return False


def _declare_operators() -> object:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_spec, _loader, _folder = _real_spec()
_library = None if _has_native_library(_folder) else _declare_operators()
_module = importlib.util.module_from_spec(_spec)
# the operators live as long as the library object does
_module.__dict__["_agentenv_operators"] = _library
# the import system hands out what stands in sys.modules once this file has run
sys.modules["torchvision"] = _module
_loader.exec_module(_module)
