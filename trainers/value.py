"""What predicts returns: a linear head on the policy's hidden states, or on those of a backbone of its own.

Shapes: N positions, M hidden size.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

CriticKind = Literal["head", "separate"]


class ValueModel(nn.Module):
    """The critic's parameters. The head begins at 0, so that a new critic predicts 0 everywhere.

    Args:
        causal_lm: the policy.
        kind: `"head"` reads the policy's hidden states; `"separate"` copies the policy and trains the copy.
    """

    def __init__(self, causal_lm: PreTrainedModel, *, kind: CriticKind) -> None:
        super().__init__()
        self.causal_lm = None if kind == "head" else copy.deepcopy(causal_lm)
        size = causal_lm.config.get_text_config().hidden_size
        dtype = torch.promote_types(causal_lm.dtype, torch.float32)
        self.head = nn.Linear(size, 1, dtype=dtype, device=causal_lm.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden_NM: Tensor) -> Tensor:
        """Return float32[N] (float64 for float64 models): the value of the state that ends in each hidden state."""
        value_N = self.head(hidden_NM.to(self.head.weight.dtype))[:, 0]
        return value_N.to(torch.promote_types(value_N.dtype, torch.float32))
