"""The package is one tree under one name, also where it is made of symbolic links."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("envs", "tools", "trainers")


def test_the_three_parts_are_relative_symbolic_links():
    for part in PARTS:
        link = ROOT / "agentenv" / part
        assert link.is_symlink(), f"{link} is not a symbolic link; git config core.symlinks true, then check out again"
        assert os.readlink(link) == f"../{part}"


def test_no_module_is_imported_under_a_second_name():
    offenders = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        for folder in ("agentenv", *PARTS, "tests", "examples", "docs")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if _imports_bare_part(node)
    ]
    assert offenders == []


def test_the_core_imports_quickly_and_without_torch():
    code = (
        "import time, sys; start = time.process_time(); import agentenv; "
        "print(time.process_time() - start, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    seconds, has_torch, has_transformers = out.stdout.split()
    assert (has_torch, has_transformers) == ("False", "False")
    # a slow import is a bug, but timing is judged in benchmarks; this only catches a heavy library sneaking in
    assert float(seconds) < 3.0


def _imports_bare_part(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] in PARTS for alias in node.names)
    return isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] in PARTS
