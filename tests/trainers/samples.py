"""Hand-made samples for the trainer's tests."""

import numpy as np

from agentenv.trainers.sample import Sample

VOCAB = 40


def policy_sample(name: str, *, seed: int, length: int = 12, advantage: float = 1.0, mu_shift: float = 0.0) -> Sample:
    """A prompt of four tokens, then sampled ones with log mu around -log(VOCAB)."""
    rng = np.random.default_rng(seed)
    is_sampled = np.arange(length) >= 4
    zeros = np.zeros(length, dtype=np.float32)
    return Sample(
        sample_id=name,
        token_ids_T=rng.integers(0, VOCAB, size=length).astype(np.int32),
        is_sampled_T=is_sampled,
        behaviour_logprob_T=np.where(is_sampled, -np.log(VOCAB) + mu_shift, 0).astype(np.float32),
        version_T=np.where(is_sampled, 0, -1).astype(np.int32),
        turn_T=np.where(is_sampled, 0, -1).astype(np.int32),
        advantage_T=np.where(is_sampled, advantage, 0).astype(np.float32),
        policy_weight_T=is_sampled.astype(np.float32),
        cross_entropy_weight_T=zeros,
        kl_weight_T=is_sampled.astype(np.float32),
    )
