"""The one shape in which anything is trained: flat arrays, and a weight per loss component.

Shapes: T tokens of one sample. Losses at position t speak of predicting `token_ids_T[t]` from what stands before
it, so position 0 never carries a weight.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]


def _absent() -> FloatArray:
    return np.zeros(0, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One training sequence. Algorithms differ only in who fills the columns.

    Attributes:
        sample_id: `group/member/sequence`, for people and logs.
        token_ids_T: int32[T].
        is_sampled_T: bool[T]; True where the policy wrote the token.
        behaviour_logprob_T: float32[T]; log mu, 0 where not sampled.
        version_T: int32[T]; weight version that sampled the token, -1 where not sampled.
        turn_T: int32[T]; index of the assistant turn that wrote the token, -1 elsewhere.
        advantage_T: float32[T]; 0 where not sampled.
        policy_weight_T: float32[T]; weight of the policy-gradient loss.
        cross_entropy_weight_T: float32[T]; weight of -log pi(token).
        kl_weight_T: float32[T]; weight of the KL to the reference policy.
        reward_T: float32[T]; what a critic's returns are made of, on sampled tokens; empty where there is no reward.
        value_T: float32[T]; the critic's values before the update; empty without a critic.
        return_T: float32[T]; what the critic learns to predict; empty without a critic.
    """

    sample_id: str
    token_ids_T: IntArray
    is_sampled_T: BoolArray
    behaviour_logprob_T: FloatArray
    version_T: IntArray
    turn_T: IntArray
    advantage_T: FloatArray
    policy_weight_T: FloatArray
    cross_entropy_weight_T: FloatArray
    kl_weight_T: FloatArray
    reward_T: FloatArray = field(default_factory=_absent)
    value_T: FloatArray = field(default_factory=_absent)
    return_T: FloatArray = field(default_factory=_absent)

    def __post_init__(self) -> None:
        columns = (
            self.is_sampled_T,
            self.behaviour_logprob_T,
            self.version_T,
            self.turn_T,
            self.advantage_T,
            self.policy_weight_T,
            self.cross_entropy_weight_T,
            self.kl_weight_T,
        )
        assert all(len(column) == len(self.token_ids_T) for column in columns)
        optional = (self.reward_T, self.value_T, self.return_T)
        assert all(len(column) in (0, len(self.token_ids_T)) for column in optional)

    def __len__(self) -> int:
        return len(self.token_ids_T)

    @property
    def num_scored(self) -> int:
        """Number of tokens whose log-prob enters some loss."""
        weights = (self.policy_weight_T, self.cross_entropy_weight_T, self.kl_weight_T)
        return int(np.count_nonzero(np.logical_or.reduce([weight != 0 for weight in weights])))
