"""A torchvision whose native library does not load is imported all the same, in every process of an environment."""

import subprocess
import sys
from pathlib import Path

from agentenv.engine.torchvision_beside_cpu_torch import install

# what the real package does at import: it gives fake kernels to operators that its library should have declared
TORCHVISION = """
import torch

for name in ("nms", "qnms"):
    @torch.library.register_fake(f"torchvision::{name}")
    def kernel(dets, scores, iou_threshold):
        return dets.new_empty(0)

__version__ = "0.0"
"""
PROGRAM = """
import site, sys
site.addsitedir(sys.argv[1])
import importlib.util
assert importlib.util.find_spec("torchvision").origin.endswith("__init__.py")
assert "torch" not in sys.modules, "looking for a package must not import torch"
import torchvision
print(torchvision.__version__)
"""


def make_environment(folder: Path) -> Path:
    package = folder / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(TORCHVISION)
    (package / "_C.so").write_bytes(b"\x7fELF linked against another torch")
    return folder


def run(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, timeout=100, check=False
    )


def test_the_import_fails_without_us(tmp_path):
    ran = run(make_environment(tmp_path))
    assert "operator torchvision::nms does not exist" in ran.stderr


def test_the_import_works_where_we_are_installed_also_twice(tmp_path):
    folder = make_environment(tmp_path)
    install(folder)
    install(folder)
    ran = run(folder)
    assert ran.stdout.startswith("0.0"), ran.stderr[-2000:]


def test_an_environment_without_torchvision_is_left_in_peace(tmp_path):
    install(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", "import site, sys; site.addsitedir(sys.argv[1]); import torchvision", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "No module named 'torchvision'" in ran.stderr
