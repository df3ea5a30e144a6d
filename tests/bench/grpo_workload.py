"""One GRPO step's worth of samples, the same for every trainer that is compared on it.

8 groups of 8 on a Qwen3 of 0.85M parameters: prompts of 24 tokens, completions of log-uniform length in 8..488, sampled
at temperature 1. Lengths are given, not left to an end-of-sequence token, so that all trainers do the same work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_GROUPS, GROUP_SIZE, PROMPT_TOKENS = 8, 8, 24
SHORTEST, LONGEST = 8, 488
VOCAB_SIZE = 2000


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is generated and trained on.

    Attributes:
        prompts: token ids of each group's prompt.
        lengths: tokens of each completion, group after group.
    """

    prompts: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Real tokens of all samples, prompts included; padding is none."""
        return len(self.lengths) * PROMPT_TOKENS + sum(self.lengths)


def workload() -> Workload:
    """Return the one workload."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST + 1), NUM_GROUPS * GROUP_SIZE)).astype(int)
    lengths[-1] = LONGEST  # so that everybody pads to the same
    prompts = rng.integers(10, VOCAB_SIZE, (NUM_GROUPS, PROMPT_TOKENS))
    return Workload(prompts=tuple(tuple(row) for row in prompts.tolist()), lengths=tuple(lengths.tolist()))
