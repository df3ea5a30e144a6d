"""The configuration of a run: one typed section per component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, model_validator

from agentenv.agent.registry import AgentConfig
from agentenv.config import Config
from agentenv.engine.hf import HFEngineConfig
from agentenv.engine.server_config import ServerConfig
from agentenv.episode import Sampling
from agentenv.runner import RunnerConfig
from agentenv.sandbox_settings import SandboxSettings
from agentenv.track import TrackingConfig
from agentenv.trainers.correction import CorrectionConfig
from agentenv.trainers.credit import AdvantageName
from agentenv.trainers.critic import CriticConfig
from agentenv.trainers.lora import LoraConfig
from agentenv.trainers.losses import LossConfig
from agentenv.trainers.optimizer import OptimizerConfig
from agentenv.trainers.parallel import ParallelConfig
from agentenv.trainers.tiny import TinyConfig


class EnvPart(Config):
    """One environment of a mix."""

    id: str
    """Registered id, e.g. agentenv/GuessNumber-v0, or the URL of a served environment."""
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Constructor arguments of the environment."""
    tasks: str | None = None
    """Parquet or JSONL file with one task per row; without it the environment draws its tasks by seed."""
    target_success: float | None = Field(default=None, gt=0, lt=1)
    """Success rate that the option difficulty follows from step to step; null keeps it."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Share of the groups, relative to the other environments."""


class EnvConfig(Config):
    """Which environment, and where its tasks come from."""

    id: str
    """Registered id, e.g. agentenv/GuessNumber-v0, or the URL of a served environment."""
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Constructor arguments of the environment."""
    tasks: str | None = None
    """Parquet or JSONL file with one task per row; without it the environment draws its tasks by seed."""
    target_success: float | None = Field(default=None, gt=0, lt=1)
    """Success rate that the option difficulty follows from step to step; null keeps it."""
    also: tuple[EnvPart, ...] = ()
    """More environments to mix in: {id, kwargs, tasks, target_success, weight}; this one has weight 1."""

    @property
    def parts(self) -> tuple[EnvPart, ...]:
        """All environments of the mix, this one first."""
        first = EnvPart(id=self.id, kwargs=self.kwargs, tasks=self.tasks, target_success=self.target_success)
        return (first, *self.also)


class ModelConfig(Config):
    """Which model is trained."""

    path: str | None = None
    """Hugging Face folder or Hub id. Give this or `tiny`."""
    tiny: TinyConfig | None = None
    """A small model made on the spot, with a tokenizer trained on the demonstrations."""
    renderer: str = "auto"
    """Model family for chat rendering; auto compares the known families with the chat template."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights that are trained."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    lora: LoraConfig | None = None
    """Train a low-rank adapter and freeze the model; null trains everything."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.tiny is None):
            raise ValueError("give exactly one of model.path (a folder or Hub id) and model.tiny (made on the spot)")
        return self


class SFTConfig(Config):
    """Supervised warm start from the environment's imperfect scripted expert."""

    data: str | None = None
    """Parquet or JSONL file with a column `messages` (and `tools`); without it the environment's expert plays."""
    num_demonstrations: int = 1024
    """Episodes that the expert plays through the agent loop."""
    batch_size: int = 32
    """Episodes in one optimizer step."""
    num_epochs: int = 1
    """Passes over the demonstrations."""
    learning_rate: float = 1e-5
    """Peak learning rate; it falls linearly to zero."""
    warmup_steps: int = 0
    """Optimizer steps over which the rate rises from zero."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """AdamW of this phase, whose second moment forgets faster than over a long run: the phase is short."""
        return OptimizerConfig(
            learning_rate=self.learning_rate, warmup_steps=self.warmup_steps, schedule="linear", betas=(0.9, 0.98)
        )


class AlgorithmConfig(Config):
    """How rewards become gradients."""

    advantage: AdvantageName = "rloo"
    """Advantage estimator."""
    divide_by_std: bool = True
    """For grpo: divide by the group's standard deviation. For gae: bring a batch's advantages to mean 0 and standard
    deviation 1."""
    drop_zero_variance: bool = False
    """Leave groups out of the loss in which all members did equally well."""
    loss: LossConfig = LossConfig()
    """Policy loss and its terms."""
    correction: CorrectionConfig = CorrectionConfig()
    """Rollout correction: importance weights and rejection masks."""
    critic: CriticConfig = CriticConfig()
    """The critic of gae."""

    @model_validator(mode="after")
    def _groups_are_compared(self) -> AlgorithmConfig:
        if self.advantage == "gae" and self.drop_zero_variance:
            raise ValueError(
                "advantage gae and drop_zero_variance exclude each other: gae compares with a critic, not within a "
                "group; set drop_zero_variance to false, or take grpo or rloo"
            )
        return self


class TrainerConfig(Config):
    """The training loop."""

    num_steps: int = 100
    """Policy updates at most."""
    groups_per_step: int = 16
    """Groups of one update."""
    group_size: int = 8
    """Episodes of one group: the same task and seed."""
    max_staleness: int = Field(default=0, ge=0)
    """Weight versions that a group may be older than the weights that train on it. 0 plays and updates in turn; above
    0, groups are played meanwhile, and running requests go on over an update."""
    window: int = Field(default=1, ge=1)
    """How many groups, counted from the oldest that still plays, may be trained on before it; 1 is strict order. Ages
    are then bounded by max_staleness + (window - 1) / groups_per_step, rounded up."""
    deterministic: bool = False
    """Let no clock decide what is trained on, also above staleness 0: a killed and resumed run ends with the same bits.
    Groups wait for each other, so nothing is played during an update."""
    num_epochs: int = 1
    """Passes over a batch."""
    num_mini_batches: int = 1
    """Optimizer steps of one pass."""
    max_tokens_per_micro_batch: int = 16384
    """Tokens of one forward and backward pass; bounds memory, never changes the gradient."""
    stop_at_success: float | None = None
    """Stop once validation success reaches this."""
    checkpoint_every: int = 20
    """Steps between checkpoints; the last step is always saved."""
    profile_steps: tuple[int, ...] = ()
    """Updates, counted from 1, over which torch's profiler runs; its traces go to profile/ of the run folder."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer of this phase."""
    parallel: ParallelConfig = ParallelConfig()
    """Several processes, and how memory is saved."""


class ClusterConfig(Config):
    """A Ray cluster that the run is spread over."""

    address: str = "auto"
    """The cluster: auto finds one that runs, local starts one on this machine, else host:port or ray://host:port."""
    nodes: int = Field(default=1, ge=1)
    """Machines to take."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs to take on each; 0 trains on CPUs, with one rank per node."""
    placement: Literal["colocated", "split"] = "colocated"
    """colocated: every GPU trains and samples; split: the first half trains, the other half samples."""


class EvaluationConfig(Config):
    """Evaluation on seeds that training never sees."""

    every: int = 10
    """Steps between validations."""
    num_validation: int = 128
    """Episodes of a validation; they decide when to stop."""
    num_test: int = 256
    """Episodes of the evaluations before and after; on other seeds than the validations'."""
    temperature: float = 1.0
    """0 is greedy."""
    success_reward: float = 1.0
    """Return from which an episode counts as solved."""


def _engine_kind(value: object) -> str:
    """Return the tag of an engine section; one without a name is the embedded engine's."""
    name = value.get("name", "hf") if isinstance(value, Mapping) else getattr(value, "name", "hf")
    return "server" if name in ("vllm", "sglang") else "hf"


EngineConfig = Annotated[
    Annotated[HFEngineConfig, Tag("hf")] | Annotated[ServerConfig, Tag("server")], Discriminator(_engine_kind)
]


class RunConfig(Config):
    """Everything about a run."""

    name: str = "run"
    """Name of the run's folder."""
    output_dir: str = "runs"
    """Where run folders are made."""
    seed: int = 0
    """All randomness derives from it."""
    num_threads: int | None = None
    """Threads of torch on a CPU; None leaves torch's own choice."""
    env: EnvConfig
    """Environment."""
    model: ModelConfig
    """Model."""
    engine: EngineConfig = HFEngineConfig()
    """Inference engine: `hf`, the embedded one, or `vllm` or `sglang`."""
    agent: AgentConfig = AgentConfig()
    """How episodes are played, unless a task row names another agent."""
    runner: RunnerConfig = RunnerConfig()
    """Concurrency and budgets of episodes."""
    sampling: Sampling = Sampling()
    """How training episodes are sampled."""
    sft: SFTConfig | None = None
    """Warm start; None skips it."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """Credit, loss and correction."""
    trainer: TrainerConfig = TrainerConfig()
    """Training loop."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation."""
    tracking: TrackingConfig = TrackingConfig()
    """Where metrics go."""
    sandbox: SandboxSettings = SandboxSettings()
    """Isolation of code that the model writes."""
    cluster: ClusterConfig | Literal["inline"] | None = None
    """Where it runs: None and inline are this process, a section is a Ray cluster."""

    @model_validator(mode="after")
    def _tokenizer_needs_demonstrations(self) -> RunConfig:
        if self.model.tiny is not None and self.sft is None:
            raise ValueError("model.tiny trains its tokenizer on demonstrations; add a section sft")
        return self
