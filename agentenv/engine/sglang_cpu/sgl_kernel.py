"""Stands in for SGLang's GPU kernels on the path of a CPU SGLang process: every name imports, and raises when called.

SGLang imports names of `sgl_kernel` at module level; on a CPU without AMX it calls none of them. The wheel of the real
package needs CUDA. Where a real one is installed, it is loaded instead.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

_HERE = Path(__file__).resolve().parent


def _real_spec() -> importlib.machinery.ModuleSpec | None:
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
    return importlib.machinery.PathFinder.find_spec("sgl_kernel", elsewhere)


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*_args: object, **_options: object) -> NoReturn:
        raise NotImplementedError(
            f"SGLang called its kernel {name}, which this CPU set-up does not have; "
            "choose a back end that runs on CPU (torch_native attention, pytorch sampling) or a GPU"
        )

    absent.__name__ = name
    return absent


_spec = _real_spec()
if _spec is not None and _spec.loader is not None:
    _module = importlib.util.module_from_spec(_spec)
    # the import system hands out what stands in sys.modules once this file has run
    sys.modules["sgl_kernel"] = _module
    _spec.loader.exec_module(_module)
