"""Runs every benchmark and prints one JSON line per figure; exits 1 when a figure misses its target.

    python -m tests.bench [NAME ...]

CPU time on one thread; ratios are taken within one run, because machines differ and drift.
"""

import importlib
import json
import os
import sys
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"


def main() -> int:
    """Run the benchmarks named on the command line, or all."""
    here = Path(__file__).parent
    names = sorted(path.stem.removeprefix("bench_") for path in here.glob("bench_*.py"))
    chosen = sys.argv[1:] or names
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        print(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    is_good = True
    for name in chosen:
        for figure in importlib.import_module(f"tests.bench.bench_{name}").figures():
            print(json.dumps(figure), flush=True)
            is_good &= bool(figure["ok"])
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
