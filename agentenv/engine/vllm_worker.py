"""The vLLM worker that we start: vLLM's own, whose log-probs are those before top-k and top-p.

vLLM offers log-probs of softmax(logits), or of the distribution after temperature and masks. Training needs them after
the temperature and before the masks (`Completion.logprobs`), which neither mode gives.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]
from vllm.v1.sample.sampler import Sampler  # pyright: ignore[reportMissingImports]
from vllm.v1.worker.gpu.sample.sampler import Sampler as SamplerV2  # pyright: ignore[reportMissingImports]

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker  # pyright: ignore[reportMissingImports]
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker  # pyright: ignore[reportMissingImports]


class UnmaskedLogprobsWorker(PlatformWorker):
    """vLLM's worker of this platform with another way to read log-probs; needs `logprobs_mode="processed_logprobs"`."""

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """Load the model, then set up its sampler."""
        super().load_model(load_dummy_weights=load_dummy_weights)
        sampler: Any = self.model_runner.sampler
        if isinstance(sampler, Sampler):
            sampler.topk_topp_sampler = UnmaskedTopKTopP(sampler.topk_topp_sampler)
        elif type(sampler) is SamplerV2 and not sampler.return_sampling_mask:
            sampler.__class__ = UnmaskedSamplerV2


class UnmaskedTopKTopP(nn.Module):
    """Samples as the wrapped sampler does, and returns log-probs of the logits that came in."""

    def __init__(self, masked: nn.Module) -> None:
        super().__init__()
        self.masked = masked

    def forward(
        self, logits: Tensor, generators: dict[int, Any], k: Tensor | None, p: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return sampled ids and log-probs; without masks both are the wrapped sampler's own."""
        if k is None and p is None:
            return self.masked(logits, generators, k, p)
        logprobs = logits.log_softmax(dim=-1)  # before: sampling may change the logits in place
        sampled, _ = self.masked(logits, generators, k, p)
        return sampled, logprobs


class UnmaskedSamplerV2(SamplerV2):
    """The same for vLLM's second model runner."""

    def _sample_random(
        self,
        processed_logits: Tensor,
        expanded_idx_mapping: Tensor,
        idx_mapping_np: Any,
        pos: Tensor,
        top_k: Tensor | None,
        top_p: Tensor | None,
        use_fused_sampler: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return sampled ids, and the logits that log-probs are read from."""
        is_masked = top_k is not None or top_p is not None
        unmasked = processed_logits.clone() if is_masked else processed_logits  # masks may be set in place
        sampled, _ = super()._sample_random(
            processed_logits, expanded_idx_mapping, idx_mapping_np, pos, top_k, top_p, use_fused_sampler
        )
        return sampled, unmasked
