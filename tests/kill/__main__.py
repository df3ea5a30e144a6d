"""The SIGKILL harness: `make kill-test`. Exits 0 only where every killed run ends exactly like an uninterrupted one.

python -m tests.kill [--kills 30] [--staleness 0 2] [--seed 0]
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import transformers

from tests.kill.harness import NUM_STEPS, PARTS, campaign, warm_start


def main() -> int:
    """Run the campaigns and print what came of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="per staleness")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    started = time.monotonic()
    is_good = True
    with tempfile.TemporaryDirectory(prefix="agentenv-kill-") as scratch:
        root = Path(scratch)
        warm_start(root)
        lines = []
        for staleness in given.staleness:
            done = campaign(root, staleness=staleness, num_kills=given.kills, seed=given.seed)
            print(f"staleness {staleness}: killed after updates {done.kills}", flush=True)
            equal = ", ".join(f"{part} {done.num_equal(part)}/{len(done.digests)}" for part in PARTS)
            lines.append(
                f"staleness {staleness}: {len(done.kills)} kills over {len(done.digests)} runs of {NUM_STEPS} updates; "
                f"equal to the uninterrupted run: {equal}"
            )
            is_good &= done.is_good and len(done.kills) >= given.kills
    print(*lines, f"{'good' if is_good else 'NOT EQUAL'} after {time.monotonic() - started:.0f} s", sep="\n")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
