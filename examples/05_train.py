"""Train: demonstrations, warm start, reinforcement learning and evaluation in a temporary folder, in half a minute.

    python examples/05_train.py [FOLDER]         # needs agentenv[train]

The run is far too short to learn the task; `agentenv quickstart` is the same run with enough steps.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from agentenv.config import load_config
from agentenv.metrics_log import read_metrics
from agentenv.progress import SilentProgress
from agentenv.store import TrajectoryStore
from agentenv.trainers.config import RunConfig
from agentenv.trainers.pipeline import Pipeline
from agentenv.trainers.run_report import write_run_report

RUN_FILE = Path(__file__).parent / "runs" / "quickstart.yaml"
SMALL = (
    "sft.num_demonstrations=2400",
    "trainer.num_steps=2",
    "trainer.groups_per_step=4",
    "evaluation.num_validation=16",
    "evaluation.num_test=16",
)


def main(folder: Path) -> None:
    """Train in `folder` and show what the run left there."""
    config = load_config(RunConfig, RUN_FILE, overrides=[*SMALL, f"output_dir={folder}", "name=example"])
    pipeline = Pipeline(config, resume=False, display=SilentProgress())
    try:
        result = asyncio.run(pipeline.run())
    finally:
        pipeline.close()

    for name, summary in result.evaluations.items():
        print(f"{name:12} success {summary.success_rate:.3f}, well-formed calls {summary.format_compliance:.3f}")
    for line in read_metrics(result.folder / "metrics.jsonl"):
        if "rl/step" in line.metrics:
            reward, norm = line.metrics["rollout/reward"], line.metrics["train/grad_norm"]
            print(f"update {line.metrics['rl/step']:g}: reward {reward:.3f}, gradient norm {norm:.3f}")
    stored = list(TrajectoryStore(result.folder / "trajectories").scan(phase="rl"))
    print(f"{len(stored)} training episodes are stored; the last ended with {stored[-1].trajectory.stop_reason}")
    print(f"{result.steps} updates, report in {write_run_report(result, config).name}")
    print(
        "the run folder holds", ", ".join(sorted(path.name for path in result.folder.iterdir() if path.name[0] != "."))
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
