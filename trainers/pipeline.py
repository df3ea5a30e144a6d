"""A whole run: demonstrations, model, warm start, evaluation, reinforcement learning, evaluation, report.

Every phase leaves its result in the run folder before the next begins, so that a run goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from agentenv.agent.policy import PolicyAgent
from agentenv.agent.registry import close_agent, make_agent
from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.config import diff, load_config, to_yaml
from agentenv.engine.pool import Pool
from agentenv.engine.protocol import Engine
from agentenv.engine.scripted import ScriptedEngine
from agentenv.episode import Limits, Sampling
from agentenv.errors import RunFolderError, UsageError
from agentenv.evaluate import EvalSummary, summarise
from agentenv.game_env import against_the_script
from agentenv.gauges import Gauges
from agentenv.metrics_server import serve_metrics
from agentenv.progress import Progress as Display
from agentenv.registry import make_bare
from agentenv.renderer import Renderer
from agentenv.run_folder import RunFolder
from agentenv.runner import GroupSpec, Runner
from agentenv.seeds import derive_seed
from agentenv.store import StoredTrajectory, TrajectoryStore
from agentenv.tokenizer import wrap_tokenizer
from agentenv.trace import open_tracing
from agentenv.track import Trackers, TrackingConfig, open_trackers
from agentenv.trainers.bad_batch import BadBatches
from agentenv.trainers.checkpoint import Checkpoint, CheckpointFolder, Progress
from agentenv.trainers.config import RunConfig, SFTConfig
from agentenv.trainers.deterministic import deterministic_torch
from agentenv.trainers.learner import Learner
from agentenv.trainers.loop import RL, Crew, measure, train
from agentenv.trainers.lora import lora_of, merge_in_place
from agentenv.trainers.mixture import Mixture
from agentenv.trainers.model import Policy, load_policy, save_policy
from agentenv.trainers.notice import until_notice
from agentenv.trainers.phase import Phase
from agentenv.trainers.profiler import profiled
from agentenv.trainers.ranks import LocalTeam, Team
from agentenv.trainers.record import RunRecord, open_record
from agentenv.trainers.sample import Sample
from agentenv.trainers.samples_from import cross_entropy_samples
from agentenv.trainers.serving import takes_adapters
from agentenv.trainers.sft import SFT, conversation_sample, fine_tune, num_sft_steps, read_conversations
from agentenv.trainers.site import open_site
from agentenv.trainers.timeline import recording
from agentenv.trainers.tiny import save_tiny
from agentenv.trajectory import Group, Trajectory
from agentenv.transcript import transcript_of

DEMONSTRATIONS = "demonstrations"
BEFORE, AFTER, DEMONSTRATOR = "before", "after", "demonstrator"
# what may differ when a run goes on: it changes how long and how closely it is watched, not what is learned,
# or where it runs
_MAY_CHANGE = (
    "trainer.num_steps",
    "trainer.stop_at_success",
    "trainer.profile_",
    "tracking.",
    "num_threads",
    "cluster",
)
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
        team: who trains; None is this process alone. Whoever opened it closes it.

    Raises:
        RunFolderError: the folder is taken, or the configuration changed in a way that would change what is learned.
    """

    def __init__(self, config: RunConfig, *, resume: bool, display: Display, team: Team | None = None) -> None:
        self.config = config
        self.team: Team = LocalTeam() if team is None else team
        self.display = display
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self.folder = RunFolder(config.output_dir, name=config.name, resume=resume)
        self._watch = ExitStack()
        try:
            self._open(config)
        except BaseException:
            self._watch.close()
            self.folder.close()  # nobody else would give the lock back
            raise

    def _open(self, config: RunConfig) -> None:
        self._is_extended = False
        if self.folder.is_resumed and self.folder.config_path.is_file():
            self._is_extended = _is_extended(self.folder.config_path, config)
        self.folder.write_config(to_yaml(config))
        self.store = TrajectoryStore(self.folder.trajectories_path)
        self._watch.enter_context(deterministic_torch(config.trainer.deterministic))
        self.checkpoints = CheckpointFolder(self.folder.checkpoints_path, config=to_yaml(config))
        self.record: RunRecord = open_record(self.folder.path / "record.json")
        self.agent = make_agent(config.agent.name, **config.agent.kwargs)
        self.gauges = self._open_watch(config.tracking)
        others = {} if self.gauges is None else {"prometheus": self.gauges.training}
        self.trackers: Trackers = open_trackers(
            config.tracking, folder=self.folder.path, run_name=config.name, run_config=config, others=others
        )

    def _open_watch(self, tracking: TrackingConfig) -> Gauges | None:
        """Begin to trace, and serve the metrics page, where they are asked for."""
        model = self.config.model.path or "tiny"
        tracing = self._watch.enter_context(open_tracing(tracking.tracing, run_name=self.config.name, model=model))
        served = self._watch.enter_context(serve_metrics(tracking.metrics_port))
        if served is not None and tracing is not None:
            served.gauges.watch_tracing(tracing)
        return None if served is None else served.gauges

    def close(self) -> None:
        """Give the folder, the trackers and what watches the run back."""
        self.trackers.close()
        self._watch.close()
        self.folder.close()

    async def run(self) -> RunResult:
        """Run all phases that are not done yet."""
        with recording(self.folder.path / "timeline.json"):
            return await self._run()

    async def _run(self) -> RunResult:
        resumed = self.checkpoints.newest()
        async with AsyncExitStack() as open_things:
            self.site = await open_site(self.config, folder=self.folder.path, team=self.team)
            open_things.push_async_callback(self.site.close)
            self.team = self.site.team
            return await self._run_phases(resumed)

    async def _run_phases(self, resumed: Checkpoint | None) -> RunResult:
        path = await self._model_path(resumed)
        policy = load_policy(path, dtype=getattr(torch, self.config.model.dtype), device=self.site.device)
        renderer = Renderer(wrap_tokenizer(policy.tokenizer), family=self.config.model.renderer)
        warm_steps = await self._warm_start(policy, renderer, path=path, resumed=resumed)
        if resumed is None or resumed.progress.phase != RL:
            save_policy(policy, self.folder.path / "start")  # what a replay begins with, and the KL's reference
        phase = Phase(config=self.config, kind=RL, model=str((self.folder.path / "start").absolute()))
        learner = await self.team.learner(phase, policy=policy)
        # ranks gather and merge; this process alone can send its adapter as it is
        adapter = lora_of(policy.model.causal_lm) if takes_adapters(self.config.engine) else None
        start = await self._restore(learner, resumed)
        if start is not None:
            await self.team.refresh(policy, learner=learner)
        waiting = () if start is None or resumed is None else resumed.waiting()
        self.trackers.forget(after_step=warm_steps + (0 if start is None else start.step))
        engine = await self._engine(policy, start=start)
        async with AsyncExitStack() as open_things:
            open_things.push_async_callback(engine.close)
            crew = self._crew(learner, engine, renderer, warm_steps=warm_steps)
            crew = dataclasses.replace(crew, adapter=adapter)
            for runner in (crew.runner, crew.referee):
                open_things.push_async_callback(runner.close)
            open_things.push_async_callback(close_agent, self.agent)
            await self._evaluate(crew, name=BEFORE)
            progress = await self._reinforce(crew, start=start, waiting=waiting)
            examples = await self._evaluate(crew, name=AFTER)
        await self.team.refresh(policy, learner=learner)
        save_policy(policy, self.folder.path / "model")
        return RunResult(
            folder=self.folder.path,
            evaluations=dict(self.record.evaluations),
            seconds=dict(self.record.seconds),
            steps=progress.step,
            transcripts=tuple(examples),
        )

    # Phases.

    async def _model_path(self, resumed: Checkpoint | None) -> str:
        """Return where the model is; a small one, with a tokenizer trained on demonstrations, is made first."""
        model = self.config.model
        path = model.path
        if model.lora is not None and resumed is not None and resumed.progress.phase == RL:
            return str((self.folder.path / "start").absolute())  # the checkpoint holds the adapter alone
        if path is None:
            assert model.tiny is not None
            path = str((self.folder.path / "initial").absolute())
            if not (Path(path) / "config.json").is_file():
                with self._phase("model"):
                    said = await self._demonstrate(Renderer(byte_tokenizer(), family="qwen3"), _TOKENIZER_EPISODES)
                    parts = self.config.env.parts
                    tools = [spec for part in parts for spec in make_bare(part.id, **part.kwargs).tool_specs]
                    beside = f"{path}.partial"
                    save_tiny(beside, [t.messages for t in said], tools=tools, config=model.tiny, seed=self.config.seed)
                    os.rename(beside, path)
        return path

    async def _warm_start(self, policy: Policy, renderer: Renderer, *, path: str, resumed: Checkpoint | None) -> int:
        """Imitate demonstrations; returns the optimizer steps of the phase."""
        config = self.config.sft
        if config is None:
            return 0
        samples = await self._demonstrations(config, renderer)
        num_steps = num_sft_steps(config, num_samples=len(samples))
        if resumed is not None and resumed.progress.phase == RL:
            return num_steps  # its weights are loaded with the policy's own optimizer later
        learner = await self.team.learner(Phase(config=self.config, kind=SFT, model=path), policy=policy)
        start = 0
        if resumed is not None:
            await self.checkpoints.load(resumed, learner=learner)
            start = resumed.progress.step
        self.trackers.forget(after_step=start)
        if start < num_steps:
            with self._phase("warm start"):
                self.display.phase("warm start", total=num_steps)
                await fine_tune(
                    learner,
                    samples,
                    config=config,
                    token_budget=self.config.trainer.max_tokens_per_micro_batch,
                    seed=self.config.seed,
                    checkpoints=self.checkpoints,
                    log=self._log_sft,
                    guard=self._guard(),
                    start_step=start,
                )
        await self.team.refresh(policy, learner=learner)
        merge_in_place(policy.model.causal_lm)  # the next phase begins with an adapter of its own
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
            self.store.forget(phase=name, after_step=-1)  # of a process that died before it took note
            self.store.append(trajectories, step=0, phase=name)
            self.record.note(name, summary)
        rows = [transcript_of(t, step=0, phase=name) for t in trajectories[:_TRACKED_TRANSCRIPTS]]
        self.trackers.log_transcripts(rows, step=0)
        return trajectories

    async def _reinforce(self, crew: Crew, *, start: Progress | None, waiting: Sequence[Group]) -> Progress:
        self.store.forget(phase=RL, after_step=0 if start is None else start.step)
        if AFTER in self.record.evaluations:
            if start is not None and not self._is_extended:
                return start  # it was finished; there is nothing to add
            self.record.drop(AFTER)
            self.store.forget(phase=AFTER, after_step=-1)
        with self._phase("reinforcement learning"):
            self.display.phase("reinforcement learning", total=self.config.trainer.num_steps)
            if start is not None:
                self.display.advance(start.step)
            return await train(crew, start=start, waiting=waiting)

    # Parts.

    async def _demonstrate(self, renderer: Renderer, count: int) -> list[Trajectory]:
        """Let the environment's imperfect expert play through the agent loop."""
        config = self.config
        limits = config.runner.limits if renderer.tokenizer is not byte_tokenizer() else _BYTE_LIMITS
        runner = Runner(
            engine=ScriptedEngine([()]),
            renderer=renderer,
            agent=PolicyAgent("demonstrate", dialect=getattr(self.agent, "dialect", None)),
            config=config.runner.model_copy(update={"limits": limits}),
        )
        parts = config.env.parts
        mixture = Mixture(weights=tuple(part.weight for part in parts), seed=config.seed)
        chosen = [parts[mixture.at(index)] for index in range(count)]
        specs = [
            GroupSpec(
                group_id=f"demo-{index}",
                env_id=part.id,
                env_kwargs=against_the_script(part.id, part.kwargs),
                seed=derive_seed(config.seed, DEMONSTRATIONS, index) % 2**31,
                run_seed=config.seed,
            )
            for index, part in enumerate(chosen)
        ]
        played = [group.trajectories[0] for group in await runner.run_all(specs)]
        if not any(t.is_scored for t in played):
            raise UsageError(f"no demonstration succeeded in being played; the first failed with: {played[0].error}")
        return played

    async def _engine(self, policy: Policy, *, start: Progress | None) -> Engine:
        """Open the engine, with the weights that reinforcement learning begins or goes on with."""
        name = self.config.engine.name
        if name != "hf":
            self.display.phase(f"starting {name}", total=None)
        engine = await self.site.engine(
            policy,
            version=0 if start is None else start.step,
            folder=self.folder.path / "served",
            start=self.folder.path / "start",
            told=self.display.message,
        )
        if self.gauges is None:
            return engine
        if isinstance(engine, Pool):
            self.gauges.watch_pool(engine, name="pool")
        return self.gauges.watch_engine(engine, name="rollout")

    def _crew(self, learner: Learner, engine: Engine, renderer: Renderer, *, warm_steps: int) -> Crew:
        config = self.config

        def runner(sampling: Sampling) -> Runner:
            return self.site.runner(engine, renderer, agent=self.agent, sampling=sampling)

        def log(metrics: dict[str, float], step: int) -> None:
            self.trackers.log({**metrics, "rl/step": float(step)}, step=warm_steps + step)

        crew = Crew(
            config=config,
            learner=learner,
            engine=engine,
            runner=runner(config.sampling),
            referee=runner(config.sampling.model_copy(update={"temperature": config.evaluation.temperature})),
            store=self.store,
            checkpoints=self.checkpoints,
            log=log,
            told=self._tell,
            guard=self._guard(),
            profile=self._profile,
        )
        if self.gauges is not None:
            self.gauges.watch_runner(crew.runner, name="train")
            self.gauges.watch_runner(crew.referee, name="evaluation")
        return crew

    def _guard(self) -> BadBatches:
        return BadBatches(self.folder.path / "bad_batches")

    async def _restore(self, learner: Learner, resumed: Checkpoint | None) -> Progress | None:
        if resumed is None or resumed.progress.phase != RL:
            return None
        await self.checkpoints.load(resumed, learner=learner)
        return resumed.progress

    def _log_sft(self, metrics: dict[str, float], step: int) -> None:
        self.trackers.log({f"{SFT}/{name}": value for name, value in metrics.items()}, step=step)
        self.display.advance(1, loss=metrics.get("cross_entropy", float("nan")))

    def _profile(self, step: int) -> AbstractContextManager[None]:
        trainer = self.config.trainer
        return profiled(
            self.folder.path / "profile",
            step=step,
            is_chosen=step in trainer.profile_steps,
        )

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


def run_pipeline(config: RunConfig, *, resume: bool, display: Display, team: Team | None = None) -> RunResult:
    """Run a configuration to its end; Ctrl-C saves a checkpoint first. See `Pipeline`.

    Raises:
        RunFolderError: see `Pipeline`.
        KeyboardInterrupt: after Ctrl-C.
        NoticeGiven: after a notice to leave.
    """
    with display:
        pipeline = Pipeline(config, resume=resume, display=display, team=team)
        try:
            return asyncio.run(until_notice(pipeline.run()))
        finally:
            pipeline.close()


_BYTE_LIMITS = Limits(
    max_turn_tokens=100_000, max_episode_tokens=1_000_000, max_context_tokens=2_000_000, max_observation_tokens=100_000
)


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
