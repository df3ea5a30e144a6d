"""What transformers says of a model: the log-probs that an engine must agree with, and other weights to give it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentenv.engine.weights import load_causal_lm, named_weights


class Reference:
    """A causal LM in transformers, in float32 on the CPU.

    Args:
        model: in evaluation mode.
        dtype: the engine's; weights are rounded to it before the computation in float32.
    """

    def __init__(self, model: PreTrainedModel, *, dtype: torch.dtype = torch.float32) -> None:
        self.model = model.to(dtype).to(torch.float32).eval()  # pyright: ignore[reportArgumentType]
        self.dtype = dtype

    @classmethod
    def load(cls, path: str | Path, *, dtype: str = "float32") -> Reference:
        """Load a model folder.

        Raises:
            ModelError: the folder cannot be loaded.
        """
        return cls(load_causal_lm(path, dtype=torch.float32), dtype=getattr(torch, dtype))

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.weight.shape[0])

    @torch.no_grad()
    def logprobs(self, prompt_ids: Sequence[int], token_ids: Sequence[int], *, temperature: float = 1.0) -> list[float]:
        """Return the log-prob of each of `token_ids` after the prompt, under softmax(logits / temperature)."""
        ids_T = torch.tensor([*prompt_ids, *token_ids])
        logit_TV = self.model(input_ids=ids_T[None], use_cache=False).logits[0].double() / temperature
        logprob_TV = logit_TV[len(prompt_ids) - 1 : -1].log_softmax(-1)
        return logprob_TV.gather(1, ids_T[len(prompt_ids) :, None])[:, 0].tolist()

    @torch.no_grad()
    def greedy(self, prompt_ids: Sequence[int], *, num_tokens: int) -> list[int]:
        """Return the most likely continuation."""
        ids = list(prompt_ids)
        for _ in range(num_tokens):
            ids.append(int(self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        return ids[len(prompt_ids) :]

    def weights(self) -> dict[str, Tensor]:
        """Return the weights by name, in the engine's dtype, as a manifest carries them."""
        return {name: tensor.to(self.dtype) for name, tensor in named_weights(self.model).items()}

    @torch.no_grad()
    def perturbed(self, *, seed: int, scale: float = 0.2) -> Reference:
        """Return a copy whose weights differ: every tensor moves by a share of its own spread."""
        other = copy.deepcopy(self.model)
        generator = torch.Generator().manual_seed(seed)
        for parameter in other.parameters():
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(noise * (scale * spread + 0.01))
        return Reference(other, dtype=self.dtype)
