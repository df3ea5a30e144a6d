"""One forward pass of a Hugging Face causal LM over a step's flat tokens, against the slot cache.

`GenericDecoder` runs the model's own modules with our attention function. `LeanDecoder` runs the same weights of the
plain Llama block (Llama, Mistral, Qwen2, Qwen3) with a third of the kernel launches, which is what small batches cost.

Shapes: T flat tokens, N tokens whose logits are wanted, V vocabulary, M hidden size, H query heads, J key heads,
R = H + J heads that are rotated, A = R + J projected heads, D head size, X positions.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from agentenv.engine.attention import ScoreRule, score_rule
from agentenv.engine.kv_cache import SlotCache, StepPlan, plan_step
from agentenv.errors import ModelError

ATTENTION_NAME = "agentenv_slots"

_LEAN_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_STATIC_ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
# how far log-probs of the probe may lie apart; wrong masks or positions are off by far more
_PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-3}
_HALF_TOLERANCE = 0.5

_log = logging.getLogger(__name__)


class Decoder(Protocol):
    """What the engine needs of a model."""

    def forward(self, token_T: Tensor, *, position_T: Tensor, plan: StepPlan, select_N: Tensor | None) -> Tensor:
        """Return float32 logits `[N, V]` of the selected tokens, of all where `select_N` is None; freshly allocated."""
        ...

    def refresh(self) -> None:
        """Take note that the model's parameters have changed in place."""
        ...


class GenericDecoder:
    """Runs the model's own forward with the slot attention registered at transformers' `AttentionInterface`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def forward(self, token_T: Tensor, *, position_T: Tensor, plan: StepPlan, select_N: Tensor | None) -> Tensor:
        """See `Decoder.forward`."""
        # a 0 asks for the logits of every token
        keep = 0 if select_N is None else select_N
        output = self._model(
            input_ids=token_T[None],
            position_ids=position_T[None],
            use_cache=False,
            logits_to_keep=keep,
            slot_plan=plan,
        )
        return output.logits[0].float()

    def refresh(self) -> None:
        """Nothing is derived from the parameters."""


class _Norm:
    """An RMS norm without the module around it.

    On a CPU in full precision, x / sqrt(mean(x^2) + eps) is computed as sqrt(d) x / hypot(|x|, sqrt(d eps)): torch's
    own `rms_norm` has a fused kernel for GPUs only and takes several times as long.
    """

    def __init__(self, module: Any) -> None:
        self._weight: Tensor = module.weight.detach()
        self._epsilon: float = module.variance_epsilon
        self._is_native = self._weight.device.type != "cpu" or self._weight.dtype not in (torch.float32, torch.float64)
        self._floor = torch.tensor((self._weight.numel() * self._epsilon) ** 0.5, dtype=self._weight.dtype)
        self.factor = self._weight
        self.refresh()

    def refresh(self) -> None:
        """Fold the constant into the weight."""
        self.factor = self._weight if self._is_native else self._weight * self._weight.numel() ** 0.5

    def __call__(self, x: Tensor) -> Tensor:
        return self.without_factor(x).mul_(self.factor)

    def without_factor(self, x: Tensor) -> Tensor:
        """Normalise `[..., d]`, up to `factor`; freshly allocated."""
        if self._is_native:
            return torch.rms_norm(x, self._weight.shape, None, self._epsilon)
        return x / torch.linalg.vector_norm(x, 2, -1, True).hypot_(self._floor)


class _OutputLinear:
    """A linear layer whose output is added to a residual: one kernel where it has no bias."""

    def __init__(self, module: nn.Linear) -> None:
        self.weight_transposed = module.weight.detach().t()
        self.bias = None if module.bias is None else module.bias.detach()

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        total = torch.addmm(residual, x, self.weight_transposed)
        return total if self.bias is None else total.add_(self.bias)


class _LeanLayer:
    """Fused weights of one block. The model's parameters become views of them, so updates in place reach both."""

    def __init__(self, block: Any, *, index: int, config: Any) -> None:
        attention: Any = block.self_attn
        mlp: Any = block.mlp
        self.index = index
        # Mistral windows every layer by its config; the others say it per layer
        window = config.sliding_window if config.model_type == "mistral" else getattr(attention, "sliding_window", None)
        self.rule = ScoreRule(scale=attention.scaling, window=window)
        self.qkv_weight, self.qkv_bias = _fuse(attention.q_proj, attention.k_proj, attention.v_proj)
        self.gate_up_weight, self.gate_up_bias = _fuse(mlp.gate_proj, mlp.up_proj)
        self.output, self.down = _OutputLinear(attention.o_proj), _OutputLinear(mlp.down_proj)
        self.activation = functional.silu if config.hidden_act == "silu" else mlp.act_fn
        self.input_norm, self.mlp_norm = _Norm(block.input_layernorm), _Norm(block.post_attention_layernorm)
        self.has_head_norms = hasattr(attention, "q_norm")
        self.query_norm = _Norm(attention.q_norm) if self.has_head_norms else None
        self.key_norm = _Norm(attention.k_norm) if self.has_head_norms else None
        self.head_norm_RD: Tensor | None = None
        self._num_heads = (config.num_attention_heads, config.num_key_value_heads)
        self.refresh()

    def refresh(self) -> None:
        """Lay the norms of queries and keys out per head, so that one norm serves both."""
        self.input_norm.refresh()
        self.mlp_norm.refresh()
        if self.query_norm is not None and self.key_norm is not None:
            self.query_norm.refresh()
            self.key_norm.refresh()
            per_head = zip((self.query_norm, self.key_norm), self._num_heads, strict=True)
            self.head_norm_RD = torch.cat([norm.factor.expand(count, -1) for norm, count in per_head])


class LeanDecoder:
    """Runs a plain Llama block without its module overhead: fused projections, one rotation, native RMS norm.

    Args:
        model: of a type for which `is_lean` is True; its projections become views of fused tensors.
        max_length: positions that the rotation table covers.
    """

    def __init__(self, model: PreTrainedModel, *, max_length: int) -> None:
        config: Any = model.config
        body: Any = model.model
        head: Any = model.lm_head
        self._embedding: Tensor = body.embed_tokens.weight.detach()
        self._head_weight: Tensor = head.weight.detach()
        self._head_bias: Tensor | None = None if head.bias is None else head.bias.detach()
        self._norm = _Norm(body.norm)
        self._layers = [_LeanLayer(block, index=index, config=config) for index, block in enumerate(body.layers)]
        position_1X = torch.arange(max_length, device=self._embedding.device)[None]
        cos_1XD, sin_1XD = body.rotary_emb(self._embedding[:1], position_1X)
        self._cos_X1D = cos_1XD[0][:, None]
        # rotating halves negates the second half before it takes the first one's place: put that sign into the table
        half = sin_1XD.shape[-1] // 2
        self._sin_X1D = torch.cat((-sin_1XD[0, :, :half], sin_1XD[0, :, half:]), dim=-1)[:, None]
        num_heads, num_key_heads = config.num_attention_heads, config.num_key_value_heads
        self._query_key_sizes = [num_heads, num_key_heads]
        self._rotated_value_sizes = [num_heads + num_key_heads, num_key_heads]
        self._projected_shape = (-1, num_heads + 2 * num_key_heads, 2 * half)
        self._mixed_shape = (-1, num_heads * 2 * half)

    def refresh(self) -> None:
        """See `Decoder.refresh`."""
        self._norm.refresh()
        for layer in self._layers:
            layer.refresh()

    def forward(self, token_T: Tensor, *, position_T: Tensor, plan: StepPlan, select_N: Tensor | None) -> Tensor:
        """See `Decoder.forward`."""
        hidden_TM = self._embedding.index_select(0, token_T)
        cos_T1D = self._cos_X1D.index_select(0, position_T)
        sin_T1D = self._sin_X1D.index_select(0, position_T)
        for layer in self._layers:
            hidden_TM = self._attention(layer, hidden_TM, cos_T1D=cos_T1D, sin_T1D=sin_T1D, plan=plan)
            gate_up = functional.linear(layer.mlp_norm(hidden_TM), layer.gate_up_weight, layer.gate_up_bias)
            gate, up = gate_up.chunk(2, dim=-1)
            hidden_TM = layer.down.add_to(hidden_TM, layer.activation(gate).mul_(up))
        if select_N is not None:
            hidden_TM = hidden_TM.index_select(0, select_N)
        return functional.linear(self._norm(hidden_TM), self._head_weight, self._head_bias).float()

    def _attention(
        self, layer: _LeanLayer, hidden_TM: Tensor, *, cos_T1D: Tensor, sin_T1D: Tensor, plan: StepPlan
    ) -> Tensor:
        projected = functional.linear(layer.input_norm(hidden_TM), layer.qkv_weight, layer.qkv_bias)
        head_TAD = projected.view(self._projected_shape)
        rotating_TRD, value_TJD = torch.split_with_sizes(head_TAD, self._rotated_value_sizes, 1)
        if layer.head_norm_RD is not None and layer.query_norm is not None:
            rotating_TRD = layer.query_norm.without_factor(rotating_TRD).mul_(layer.head_norm_RD)
        first, second = rotating_TRD.chunk(2, dim=-1)
        rotated_TRD = torch.addcmul(rotating_TRD * cos_T1D, torch.cat((second, first), dim=-1), sin_T1D)
        query_THD, key_TJD = torch.split_with_sizes(rotated_TRD, self._query_key_sizes, 1)
        mixed_THD = plan.attend(query_THD, key_TJD, value_TJD, layer=layer.index, rule=layer.rule)
        return layer.output.add_to(hidden_TM, mixed_THD.reshape(self._mixed_shape))


def is_lean(model: PreTrainedModel) -> bool:
    """True where `LeanDecoder` implements exactly this architecture; `make_decoder` still checks the numbers."""
    config: Any = model.config
    if config.model_type not in _LEAN_MODEL_TYPES or getattr(config, "pretraining_tp", 1) > 1:
        return False
    body: Any = getattr(model, "model", None)
    if body is None or body.rotary_emb.rope_type not in _STATIC_ROPE_TYPES:
        return False
    projections = (
        projection
        for block in body.layers
        for projection in (
            *(block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj, block.self_attn.o_proj),
            *(block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj),
        )
    )
    # quantised or adapted linear layers are not plain matrices
    return all(type(projection) is nn.Linear for projection in projections)


def make_decoder(model: PreTrainedModel, *, max_length: int) -> Decoder:
    """Choose how to run `model`, and prove on a probe prompt that it computes what the model itself computes.

    Args:
        model: in evaluation mode; its attention implementation is replaced.
        max_length: longest sequence that will be asked for.

    Raises:
        ModelError: the architecture keeps state that a slot cache cannot hold, or the probe disagrees.
    """
    layer_types = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if not layer_types <= _LAYER_TYPES:
        strange = ", ".join(sorted(layer_types - _LAYER_TYPES))
        raise ModelError(
            f"{type(model).__name__} has layers of type {strange}; the hf engine serves full and sliding attention "
            "only. Use another engine for this model"
        )
    embedding: Any = model.get_input_embeddings()
    token_T = torch.arange(1, 13, device=model.device) * 7919 % embedding.weight.shape[0]
    expected_TV = _reference_logits(model, token_T)
    model.set_attn_implementation(ATTENTION_NAME)
    if is_lean(model):
        lean = LeanDecoder(model, max_length=max_length)
        gap = _probe_gap(lean, token_T, expected_TV=expected_TV)
        if gap <= _PROBE_TOLERANCE.get(model.dtype, _HALF_TOLERANCE):
            return lean
        _log.warning("the lean decoder is off by %.3g on %s; using the model's own forward", gap, type(model).__name__)
    generic = GenericDecoder(model)
    gap = _probe_gap(generic, token_T, expected_TV=expected_TV)
    if not gap <= _PROBE_TOLERANCE.get(model.dtype, _HALF_TOLERANCE):
        raise ModelError(
            f"{type(model).__name__} gives other log-probs over the slot cache than by itself (off by {gap:.3g}); "
            "its attention cannot be served by the hf engine. Use another engine for this model"
        )
    return generic


@torch.inference_mode()
def _reference_logits(model: PreTrainedModel, token_T: Tensor) -> Tensor:
    model.set_attn_implementation("eager")
    return model(input_ids=token_T[None], use_cache=False).logits[0].float()


@torch.inference_mode()
def _probe_gap(decoder: Decoder, token_T: Tensor, *, expected_TV: Tensor) -> float:
    """Play the probe as a prefill, a prefill with a past and a decode; return the largest log-prob difference."""
    cache = SlotCache(max_slots=2, max_length=len(token_T))
    cache.reserve(num_slots=2, num_places=len(token_T))
    nothing = np.zeros(0, dtype=np.int64)
    slot, logits_TV = np.array([1]), []
    for past, new in ((0, 7), (7, 4), (11, 1)):
        is_decode = new == 1
        plan = plan_step(
            cache,
            slot_D=slot if is_decode else nothing,
            position_D=np.array([past]) if is_decode else nothing,
            slot_S=nothing if is_decode else slot,
            past_S=nothing if is_decode else np.array([past]),
            new_S=nothing if is_decode else np.array([new]),
            device=token_T.device,
        )
        position_T = torch.arange(past, past + new, device=token_T.device)
        step = decoder.forward(token_T[past : past + new], position_T=position_T, plan=plan, select_N=None)
        logits_TV.append(step)
    difference = torch.cat(logits_TV).log_softmax(-1) - expected_TV.log_softmax(-1)
    # masked vocabulary entries are -inf on both sides
    return float(difference.nan_to_num(nan=0.0).abs().max())


def _slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: `[1, H, T, D]` in, `[1, T, H, D]` out."""
    plan: StepPlan = kwargs["slot_plan"]
    layer: Any = module.layer_idx
    output_THD = plan.attend(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        layer=layer,
        rule=score_rule(scaling=scaling, **kwargs),
    )
    return output_THD[None], None


def _fuse(*projections: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Stack linear layers of one input; each layer's own parameters become views of the stack."""
    weight = torch.cat([projection.weight.detach() for projection in projections])
    bias = None
    if projections[0].bias is not None:
        bias = torch.cat([projection.bias.detach() for projection in projections])
    start = 0
    for projection in projections:
        stop = start + projection.weight.shape[0]
        projection.weight.data = weight[start:stop]
        if bias is not None:
            projection.bias.data = bias[start:stop]
        start = stop
    return weight, bias


AttentionInterface.register(ATTENTION_NAME, _slot_attention)
