"""A whole run: demonstrations, model, warm start, evaluation, reinforcement learning, evaluation, report.

Every phase leaves its result in the run folder before the next begins, so that a run goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from agentenv.agent.policy import PolicyAgent
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.config import diff, load_config, to_yaml
from agentenv.engine.hf import HFEngine
from agentenv.engine.scripted import ScriptedEngine
from agentenv.episode import Limits, Sampling
from agentenv.errors import RunFolderError, UsageError
from agentenv.evaluate import EvalSummary, summarise
from agentenv.progress import Progress as Display
from agentenv.registry import make_bare
from agentenv.renderer import Renderer
from agentenv.run_folder import RunFolder
from agentenv.runner import GroupSpec, Runner
from agentenv.seeds import derive_seed
from agentenv.store import StoredTrajectory, TrajectoryStore
from agentenv.tokenizer import wrap_tokenizer
from agentenv.track import Trackers, open_trackers
from agentenv.trainers.checkpoint import Checkpoint, CheckpointFolder, Progress
from agentenv.trainers.config import AlgorithmConfig, RunConfig, SFTConfig
from agentenv.trainers.loop import RL, Crew, measure, train
from agentenv.trainers.model import Policy, load_policy
from agentenv.trainers.record import RunRecord, open_record
from agentenv.trainers.sample import Sample
from agentenv.trainers.samples_from import cross_entropy_samples
from agentenv.trainers.sft import SFT, conversation_sample, fine_tune, num_sft_steps, read_conversations
from agentenv.trainers.tiny import save_tiny
from agentenv.trainers.worker import Worker
from agentenv.trajectory import Trajectory
from agentenv.transcript import transcript_of

DEMONSTRATIONS = "demonstrations"
BEFORE, AFTER, DEMONSTRATOR = "before", "after", "demonstrator"
# what may differ when a run goes on: it changes how long and how closely it is watched, not what is learned
_MAY_CHANGE = ("trainer.num_steps", "trainer.stop_at_success", "trainer.keep_checkpoints", "tracking.", "num_threads")
_TOKENIZER_EPISODES = 512
_TRACKED_TRANSCRIPTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Where a run ended.

    Attributes:
        folder: everything the run left.
        evaluations: by name.
        seconds: wall-clock per phase.
        steps: policy updates.
        transcripts: whole episodes of the last evaluation.
    """

    folder: Path
    evaluations: dict[str, EvalSummary]
    seconds: dict[str, float]
    steps: int
    transcripts: tuple[Trajectory, ...]


class Pipeline:
    """One run, from its configuration to its report.

    Args:
        config: of the run.
        resume: go on in the run's folder.
        display: shows progress.

    Raises:
        RunFolderError: the folder is taken, or the configuration changed in a way that would change what is learned.
    """

    def __init__(self, config: RunConfig, *, resume: bool, display: Display) -> None:
        self.config = config
        self.display = display
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self.folder = RunFolder(config.output_dir, name=config.name, resume=resume)
        try:
            self._open(config)
        except BaseException:
            self.folder.close()  # nobody else would give the lock back
            raise

    def _open(self, config: RunConfig) -> None:
        self._is_extended = False
        if self.folder.is_resumed and self.folder.config_path.is_file():
            self._is_extended = _is_extended(self.folder.config_path, config)
        self.folder.write_config(to_yaml(config))
        self.store = TrajectoryStore(self.folder.trajectories_path)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints_path, keep=config.trainer.keep_checkpoints)
        self.record: RunRecord = open_record(self.folder.path / "record.json")
        self.trackers: Trackers = open_trackers(
            config.tracking, folder=self.folder.path, run_name=config.name, run_config=config
        )

    def close(self) -> None:
        """Give the folder and the trackers back."""
        self.trackers.close()
        self.folder.close()

    async def run(self) -> RunResult:
        """Run all phases that are not done yet."""
        resumed = self.checkpoints.newest()
        policy = await self._policy()
        renderer = Renderer(wrap_tokenizer(policy.tokenizer), family=self.config.model.renderer)
        warm_steps = await self._warm_start(policy, renderer, resumed=resumed)
        if resumed is None or resumed.progress.phase != RL:
            export_model(policy, self.folder.path / "start")  # what a replay begins with, and the KL's reference
        worker = rl_worker(self.config, policy, start=self.folder.path / "start")
        start = self._restore(worker, resumed)
        engine = HFEngine(policy.model.causal_lm, config=self.config.engine, version=0 if start is None else start.step)
        try:
            crew = self._crew(worker, engine, renderer, warm_steps=warm_steps)
            await self._evaluate(crew, name=BEFORE)
            progress = await self._reinforce(crew, start=start)
            examples = await self._evaluate(crew, name=AFTER)
        finally:
            await engine.close()
        export_model(policy, self.folder.path / "model")
        return RunResult(
            folder=self.folder.path,
            evaluations=dict(self.record.evaluations),
            seconds=dict(self.record.seconds),
            steps=progress.step,
            transcripts=tuple(examples),
        )

    # Phases.

    async def _policy(self) -> Policy:
        """Load the model, or make a small one with a tokenizer trained on demonstrations."""
        model = self.config.model
        path = model.path
        if path is None:
            assert model.tiny is not None
            path = str(self.folder.path / "initial")
            if not (Path(path) / "config.json").is_file():
                with self._phase("model"):
                    said = await self._demonstrate(Renderer(byte_tokenizer(), family="qwen3"), _TOKENIZER_EPISODES)
                    tools = make_bare(self.config.env.id, **self.config.env.kwargs).tool_specs
                    save_tiny(path, [t.messages for t in said], tools=tools, config=model.tiny, seed=self.config.seed)
        return load_policy(path, dtype=getattr(torch, model.dtype), device=device_of(model.device))

    async def _warm_start(self, policy: Policy, renderer: Renderer, *, resumed: Checkpoint | None) -> int:
        """Imitate demonstrations; returns the optimizer steps of the phase."""
        config = self.config.sft
        if config is None:
            return 0
        samples = await self._demonstrations(config, renderer)
        num_steps = num_sft_steps(config, num_samples=len(samples))
        if resumed is not None and resumed.progress.phase == RL:
            return num_steps  # its weights are loaded with the policy's own optimizer later
        worker = Worker(policy.model, optimizer=config.optimizer, algorithm=AlgorithmConfig())
        start = 0
        if resumed is not None:
            self.checkpoints.load(resumed, model=worker.model, optimizer=worker.optimizer)
            worker.optimizer_steps = resumed.progress.optimizer_steps
            start = resumed.progress.step
        if start < num_steps:
            with self._phase("warm start"):
                self.display.phase("warm start", total=num_steps)
                await fine_tune(
                    worker,
                    samples,
                    config=config,
                    token_budget=self.config.trainer.max_tokens_per_micro_batch,
                    seed=self.config.seed,
                    checkpoints=self.checkpoints,
                    log=self._log_sft,
                    start_step=start,
                )
        return num_steps

    async def _demonstrations(self, config: SFTConfig, renderer: Renderer) -> list[Sample]:
        if config.data is not None:
            rows = read_conversations(config.data)
            return [
                conversation_sample(messages, renderer=renderer, sample_id=f"{config.data}/{index}/0", tools=tools)
                for index, (messages, tools) in enumerate(rows)
            ]
        stored = [s.trajectory for s in self._stored(DEMONSTRATIONS)]
        if not stored:
            with self._phase(DEMONSTRATIONS):
                self.display.phase(DEMONSTRATIONS, total=config.num_demonstrations)
                stored = await self._demonstrate(renderer, config.num_demonstrations)
                self.store.append(stored, step=0, phase=DEMONSTRATIONS)
        reward = self.config.evaluation.success_reward
        self.record.note(DEMONSTRATOR, summarise(stored, name=DEMONSTRATOR, success_reward=reward))
        return cross_entropy_samples([t for t in stored if t.is_scored])

    async def _evaluate(self, crew: Crew, *, name: str) -> list[Trajectory]:
        """Measure on the test seeds, unless that was done before the restart."""
        if name in self.record.evaluations:
            return [s.trajectory for s in self._stored(name)][:_TRACKED_TRANSCRIPTS]
        with self._phase(f"evaluation {name}"):
            self.display.phase(f"evaluation {name}", total=None)
            summary, trajectories = await measure(crew, name=name, num_episodes=self.config.evaluation.num_test)
            self.store.append(trajectories, step=0, phase=name)
            self.record.note(name, summary)
        rows = [transcript_of(t, step=0, phase=name) for t in trajectories[:_TRACKED_TRANSCRIPTS]]
        self.trackers.log_transcripts(rows, step=0)
        return trajectories

    async def _reinforce(self, crew: Crew, *, start: Progress | None) -> Progress:
        self.store.forget(phase=RL, after_step=0 if start is None else start.step)
        if AFTER in self.record.evaluations and start is not None:
            if not self._is_extended:
                return start  # it was finished; there is nothing to add
            self.record.drop(AFTER)
            self.store.forget(phase=AFTER, after_step=-1)
        with self._phase("reinforcement learning"):
            self.display.phase("reinforcement learning", total=self.config.trainer.num_steps)
            if start is not None:
                self.display.advance(start.step)
            return await train(crew, start=start)

    # Parts.

    async def _demonstrate(self, renderer: Renderer, count: int) -> list[Trajectory]:
        """Let the environment's imperfect expert play through the agent loop."""
        config = self.config
        limits = config.runner.limits if renderer.tokenizer is not byte_tokenizer() else _BYTE_LIMITS
        runner = Runner(
            engine=ScriptedEngine([()]),
            renderer=renderer,
            agent=PolicyAgent("demonstrate"),
            config=config.runner.model_copy(update={"limits": limits}),
        )
        specs = [
            GroupSpec(
                group_id=f"demo-{index}",
                env_id=config.env.id,
                env_kwargs=config.env.kwargs,
                seed=derive_seed(config.seed, DEMONSTRATIONS, index) % 2**31,
                run_seed=config.seed,
            )
            for index in range(count)
        ]
        played = [group.trajectories[0] for group in await runner.run_all(specs)]
        if not any(t.is_scored for t in played):
            raise UsageError(f"no demonstration succeeded in being played; the first failed with: {played[0].error}")
        return played

    def _crew(self, worker: Worker, engine: HFEngine, renderer: Renderer, *, warm_steps: int) -> Crew:
        config = self.config

        limits = config.runner.limits
        room = min(limits.max_context_tokens, config.engine.max_length)  # the engine would refuse a longer prompt
        bounds = config.runner.model_copy(update={"limits": limits.model_copy(update={"max_context_tokens": room})})

        def runner(sampling: Sampling) -> Runner:
            return Runner(engine=engine, renderer=renderer, config=bounds, sampling=sampling)

        def log(metrics: dict[str, float], step: int) -> None:
            self.trackers.log({**metrics, "rl/step": float(step)}, step=warm_steps + step)

        return Crew(
            config=config,
            worker=worker,
            engine=engine,
            runner=runner(config.sampling),
            referee=runner(config.sampling.model_copy(update={"temperature": config.evaluation.temperature})),
            store=self.store,
            checkpoints=self.checkpoints,
            log=log,
            told=self._tell,
        )

    def _restore(self, worker: Worker, resumed: Checkpoint | None) -> Progress | None:
        if resumed is None or resumed.progress.phase != RL:
            return None
        self.checkpoints.load(resumed, model=worker.model, optimizer=worker.optimizer)
        worker.optimizer_steps = resumed.progress.optimizer_steps
        return resumed.progress

    def _log_sft(self, metrics: dict[str, float], step: int) -> None:
        self.trackers.log({f"{SFT}/{name}": value for name, value in metrics.items()}, step=step)
        self.display.advance(1, loss=metrics.get("cross_entropy", float("nan")))

    def _tell(self, metrics: dict[str, float]) -> None:
        shown = {
            "success": metrics["rollout/success"],
            "reward": metrics["rollout/reward"],
            "tokens_per_s": metrics["time/sampled_tokens_per_s"],
        }
        if "eval/success" in metrics:
            shown["validation"] = metrics["eval/success"]
        self.display.advance(1, **shown)

    def _stored(self, phase: str) -> Sequence[StoredTrajectory]:
        return list(self.store.scan(phase=phase)) if self.store.folder.is_dir() else []

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.record.spend(name, time.perf_counter() - started)


_BYTE_LIMITS = Limits(
    max_turn_tokens=100_000, max_episode_tokens=1_000_000, max_context_tokens=2_000_000, max_observation_tokens=100_000
)


def rl_worker(config: RunConfig, policy: Policy, *, start: Path) -> Worker:
    """Return the worker of the reinforcement learning phase.

    Args:
        config: of the run.
        policy: what is trained.
        start: folder with the weights that the phase began with: the reference, where there is a KL penalty.
    """
    reference = None
    if config.algorithm.loss.kl_coefficient:
        dtype = getattr(torch, config.model.dtype)
        reference = load_policy(start, dtype=dtype, device=device_of(config.model.device)).model
    return Worker(policy.model, optimizer=config.trainer.optimizer, algorithm=config.algorithm, reference=reference)


def export_model(policy: Policy, folder: str | Path) -> None:
    """Write a Hugging Face folder: weights as safetensors, tokenizer, chat template."""
    policy.model.causal_lm.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def _is_extended(path: Path, config: RunConfig) -> bool:
    """Refuse a change of what is learned; True where the run may now go further than before."""
    before = load_config(RunConfig, path)
    changes = [change for change in diff(before, config) if not change.key.startswith(_MAY_CHANGE)]
    if changes:
        told = "; ".join(map(str, changes))
        raise RunFolderError(
            f"{path.parent} was begun with another configuration: {told}. Undo that, or start a new run with --name"
        )
    goal = ("trainer.num_steps", "trainer.stop_at_success")
    return any(change.key in goal for change in diff(before, config))


def device_of(name: str) -> str:
    """Return the device that `model.device` means."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
