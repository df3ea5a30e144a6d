"""The configuration of a run: one typed section per component."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue, model_validator

from agentenv.config import Config
from agentenv.engine.hf import HFEngineConfig
from agentenv.episode import Sampling
from agentenv.runner import RunnerConfig
from agentenv.track import TrackingConfig
from agentenv.trainers.correction import CorrectionConfig
from agentenv.trainers.credit import AdvantageName
from agentenv.trainers.losses import LossConfig
from agentenv.trainers.optimizer import OptimizerConfig
from agentenv.trainers.tiny import TinyConfig


class EnvConfig(Config):
    """Which environment, and where its tasks come from."""

    id: str
    """Registered id, e.g. agentenv/GuessNumber-v0."""
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Constructor arguments of the environment."""
    tasks: str | None = None
    """Parquet or JSONL file with one task per row; without it the environment draws its tasks by seed."""


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
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, schedule="linear")
    """Optimizer of this phase."""


class AlgorithmConfig(Config):
    """How rewards become gradients."""

    advantage: AdvantageName = "rloo"
    """Advantage estimator."""
    divide_by_std: bool = True
    """For grpo: divide by the group's standard deviation."""
    drop_zero_variance: bool = False
    """Leave groups out of the loss in which all members did equally well."""
    loss: LossConfig = LossConfig()
    """Policy loss and its terms."""
    correction: CorrectionConfig = CorrectionConfig()
    """Rollout correction: importance weights and rejection masks."""

    @model_validator(mode="after")
    def _no_critic(self) -> AlgorithmConfig:
        if self.advantage == "gae":
            raise ValueError("advantage gae needs a critic, which runs do not train; take grpo, rloo or turn_rtg_loo")
        return self


class TrainerConfig(Config):
    """The training loop."""

    num_steps: int = 100
    """Policy updates at most."""
    groups_per_step: int = 16
    """Groups of one update."""
    group_size: int = 8
    """Episodes of one group: the same task and seed."""
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
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer of this phase."""


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
    engine: HFEngineConfig = HFEngineConfig()
    """Inference engine."""
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

    @model_validator(mode="after")
    def _tokenizer_needs_demonstrations(self) -> RunConfig:
        if self.model.tiny is not None and self.sft is None:
            raise ValueError("model.tiny trains its tokenizer on demonstrations; add a section sft")
        return self
