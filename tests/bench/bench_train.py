"""Training throughput on one CPU thread: packed batches with the chunked head against a padded batch.

The workload is 64 samples with lengths log-uniform in 32..512, a Qwen3 of 0.85M parameters in float32, and one forward
and backward pass of the mean cross entropy. `python -m tests.bench.bench_train` prints one JSON line per figure.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from agentenv.trainers.model import PackedModel
from tests.bench.measure import cpu_seconds, figure

NUM_SAMPLES, SHORTEST, LONGEST = 64, 32, 512
LEAST_TOKENS_PER_S, LEAST_SPEEDUP = 6_500.0, 3.0


def bench_model() -> Qwen3ForCausalLM:
    """Return the Qwen3 of 847,232 parameters that both benchmarks use: 128 wide, 4 layers, 2,000 tied embeddings."""
    config = Qwen3Config(
        vocab_size=2000,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=256,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config)


def figures() -> list[dict[str, object]]:
    """Measure and return the figures, each with its target."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST), NUM_SAMPLES)).astype(int)
    sequences = [torch.from_numpy(rng.integers(1, 2000, length)) for length in lengths]
    packed, padded = _packed_pass(sequences), _padded_pass(sequences)
    num_tokens = int(lengths.sum())
    packed_s, padded_s = cpu_seconds(packed, repeats=3), cpu_seconds(padded, repeats=1)
    return [
        figure("train_packed", num_tokens / packed_s, unit="real tokens/CPU-s", at_least=LEAST_TOKENS_PER_S),
        figure("train_padded", num_tokens / padded_s, unit="real tokens/CPU-s"),
        figure("train_packed_over_padded", padded_s / packed_s, unit="x", at_least=LEAST_SPEEDUP),
    ]


def _packed_pass(sequences: list[Tensor]) -> Callable[[], None]:
    """One forward and backward over the pack."""
    model = PackedModel(bench_model()).train()
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    cu_seqlens_C = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    position_T = torch.cat([torch.arange(len(sequence)) for sequence in sequences])
    num_targets = int(lengths.sum()) - len(sequences)

    def run() -> None:
        model.zero_grad()
        scores = model.forward_logprobs(torch.cat(sequences), cu_seqlens_C=cu_seqlens_C, position_T=position_T)
        loss = -scores.logprob_T.sum() / num_targets
        loss.backward()

    return run


def _padded_pass(sequences: list[Tensor]) -> Callable[[], None]:
    """The same loss by plain transformers: right padding to the longest, an attention mask, full logits."""
    model = bench_model().train()
    token_BL = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    is_token_BL = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in sequences], batch_first=True)
    label_BL = token_BL.masked_fill(is_token_BL == 0, -100)

    def run() -> None:
        model.zero_grad()
        loss = model(input_ids=token_BL, attention_mask=is_token_BL, labels=label_BL, use_cache=False).loss
        assert loss is not None
        loss.backward()

    return run


if __name__ == "__main__":
    for line in figures():
        print(json.dumps(line))
