"""Supervised fine-tuning: samples from demonstrations or from conversations, and the loop over them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, cast

import numpy as np

from agentenv.errors import DataError, UsageError
from agentenv.messages import Message, as_messages
from agentenv.renderer import Renderer, ToolSpecs
from agentenv.rows import Row, read_rows
from agentenv.seeds import derive_seed
from agentenv.trainers.background import whole
from agentenv.trainers.bad_batch import BadBatches
from agentenv.trainers.checkpoint import CheckpointFolder, Progress
from agentenv.trainers.config import SFTConfig
from agentenv.trainers.learner import Learner
from agentenv.trainers.sample import Sample
from agentenv.trainers.worker import UpdatePlan

SFT: Final = "sft"


def conversation_sample(
    messages: Sequence[Message], *, renderer: Renderer, sample_id: str, tools: ToolSpecs = ()
) -> Sample:
    """Turn a conversation into a sample whose assistant turns are imitated, in the ids that a rollout would have.

    Args:
        messages: begins with what is not the assistant's; every assistant turn is learned.
        renderer: of the model.
        sample_id: for people and logs.
        tools: schemas that stand in the prompt.

    Raises:
        DataError: no assistant turn, images, or a template that rewrites history between two turns.
    """
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    pending: list[Message] = []
    for message in messages:
        if message.images:
            raise DataError(f"{sample_id}: a message has images, and the trainer reads text only; leave the row out")
        if message.role != "assistant":
            pending.append(message)
            continue
        if not spans:
            ids.extend(renderer.prompt_ids(pending, tools=tools))
        else:
            between = renderer.continuation_ids(pending, is_closed=True, tools=tools)
            if between is None:
                raise DataError(f"{sample_id}: the chat template rewrites history at turn {len(spans)}; split it there")
            ids.extend(between)
        turn = renderer.turn_ids(message, tools=tools)
        spans.append((len(ids), len(ids) + len(turn)))
        ids.extend(turn)
        pending = []
    if not spans:
        raise DataError(f"{sample_id}: field 'messages' has no assistant turn; there is nothing to imitate")
    return _sample(ids, spans, sample_id=sample_id)


def read_conversations(path: str | Path) -> list[tuple[tuple[Message, ...], ToolSpecs]]:
    """Read a JSONL or parquet file whose rows hold `messages` and, optionally, `tools`.

    Raises:
        DataError: names file, row and field.
    """
    return [_conversation(row, where=where) for where, row in read_rows(path, column="messages")]


def num_sft_steps(config: SFTConfig, *, num_samples: int) -> int:
    """Return the optimizer steps of the phase."""
    return config.num_epochs * math.ceil(num_samples / config.batch_size)


async def fine_tune(
    learner: Learner,
    samples: Sequence[Sample],
    *,
    config: SFTConfig,
    token_budget: int,
    seed: int,
    checkpoints: CheckpointFolder,
    log: Callable[[dict[str, float], int], None],
    guard: BadBatches,
    start_step: int = 0,
) -> int:
    """Imitate samples; returns the number of steps taken in all.

    The order is a function of (seed, epoch). Cancellation lets the step end and saves a checkpoint before it goes on; a
    second one cuts the step, and nothing is saved.
    """
    if not samples:
        raise UsageError("there are no demonstrations to learn from; raise sft.num_demonstrations")
    num_steps = num_sft_steps(config, num_samples=len(samples))
    step, is_whole = start_step, True

    async def train_once() -> None:
        nonlocal step, is_whole
        is_whole = False
        batch = _batch(samples, step=step, batch_size=config.batch_size, seed=seed)
        plan = UpdatePlan(token_budget=token_budget, num_steps=num_steps, seed=seed, version=0)
        metrics = await learner.update(batch, plan=plan)
        step, is_whole = step + 1, True
        guard.check(batch, metrics, step=step)
        log(metrics, step)

    try:
        while step < num_steps:
            await whole(train_once())
    finally:
        if is_whole:
            progress = Progress(phase=SFT, step=step, version=0, scheduler={}, optimizer_steps=learner.optimizer_steps)
            await checkpoints.begin(progress, learner=learner)
            await checkpoints.settle()
    return step


def _batch(samples: Sequence[Sample], *, step: int, batch_size: int, seed: int) -> list[Sample]:
    per_epoch = math.ceil(len(samples) / batch_size)
    epoch, index = divmod(step, per_epoch)
    order = np.random.default_rng(derive_seed(seed, "sft", epoch)).permutation(len(samples))
    return [samples[i] for i in order[index * batch_size : (index + 1) * batch_size]]


def _sample(ids: Sequence[int], spans: Sequence[tuple[int, int]], *, sample_id: str) -> Sample:
    count = len(ids)
    is_sampled_T = np.zeros(count, dtype=np.bool_)
    turn_T = np.full(count, -1, dtype=np.int32)
    for turn, (start, end) in enumerate(spans):
        is_sampled_T[start:end] = True
        turn_T[start:end] = turn
    zeros = np.zeros(count, dtype=np.float32)
    return Sample(
        sample_id=sample_id,
        token_ids_T=np.array(ids, dtype=np.int32),
        is_sampled_T=is_sampled_T,
        behaviour_logprob_T=zeros,
        version_T=np.full(count, -1, dtype=np.int32),
        turn_T=turn_T,
        advantage_T=zeros,
        policy_weight_T=zeros,
        cross_entropy_weight_T=is_sampled_T.astype(np.float32),
        kl_weight_T=zeros,
    )


def _conversation(row: Row, *, where: str) -> tuple[tuple[Message, ...], ToolSpecs]:
    try:
        messages = as_messages(cast("Sequence[object]", row["messages"]))
    except UsageError as error:
        raise DataError(f"{where}: field 'messages': {error}") from None
    tools = row.get("tools") or ()
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise DataError(f"{where}: field 'tools' is text that is not JSON ({error})") from error
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"{where}: field 'tools' is {type(tools).__name__}; expected a list of function schemas")
    return messages, tuple(cast("Sequence[Mapping[str, object]]", tools))
