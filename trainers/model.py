"""The policy: a Hugging Face causal LM that scores packed batches token by token.

Shapes: T packed tokens, C = sequences + 1 boundaries, N scored positions, M hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.import_utils import is_flash_attn_2_available

from agentenv.engine import weights
from agentenv.errors import ModelError, UsageError, describe
from agentenv.trainers.attention import PACKED_ATTENTION, packed_layout
from agentenv.trainers.head import DEFAULT_CHUNK_BYTES, LogitRule, chunked_logprobs
from agentenv.trainers.lora import lora_of, merged
from agentenv.trainers.sequence import SequenceGroup, SequenceSplit, check_heads
from agentenv.trainers.value import ValueModel

Attention = Literal["auto", "packed", "flash"]

_CUDA_CHUNK_FACTOR = 16  # a GPU needs larger chunks than a processor's cache holds
_PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-3}
_HALF_TOLERANCE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """What a policy says about the tokens of a packed batch.

    Attributes:
        logprob_T: float32 (float64 for float64 models); `logprob_T[t]` is the log-prob of token t given the tokens
            before it in its sequence. 0 at first tokens and wherever no score was asked for.
        entropy_T: entropy in nats of the distribution that token t was drawn from, with the same zeros; None where
            it was not asked for.
        value_T: the critic's value of the state in which token t was chosen; 0 at first tokens; None where it was not
            asked for.
    """

    logprob_T: Tensor
    entropy_T: Tensor | None
    value_T: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A model and the tokenizer that belongs to it."""

    model: PackedModel
    tokenizer: PreTrainedTokenizerBase


class PackedModel(nn.Module):
    """A causal LM over packed batches; `forward` is the only way in, so that sharding hooks on this module see it.

    A critic, where there is one, is part of it (`critic`): one forward pass serves both losses.

    Dropout is switched off: old, new and behaviour log-probs must be those of one deterministic function.

    Args:
        causal_lm: a Hugging Face causal LM; its attention implementation is replaced.
        attention: `"packed"` is scaled-dot-product attention per length bucket; `"flash"` is flash-attn's
            variable-length kernel; `"auto"` takes flash on a GPU in half precision where flash-attn is installed.
        chunk_bytes: bytes of logits that exist at once; None chooses by device.

    Raises:
        ModelError: the architecture computes something that packing or the chunked head would lose.
    """

    def __init__(
        self, causal_lm: PreTrainedModel, *, attention: Attention = "auto", chunk_bytes: int | None = None
    ) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.critic: ValueModel | None = None
        self.logit_rule = _logit_rule(causal_lm.config.get_text_config())
        self.chunk_bytes = chunk_bytes
        self.sequence: SequenceGroup | None = None
        _switch_off_dropout(causal_lm)
        head = causal_lm.get_output_embeddings()
        if type(head) is not nn.Linear:
            raise ModelError(
                f"{type(causal_lm).__name__} has an output layer of type {type(head).__name__}; a plain linear layer "
                "is needed. Adapters on the output layer are not supported"
            )
        self.uses_flash = _choose_flash(causal_lm, attention)
        implementation = "flash_attention_2" if self.uses_flash else PACKED_ATTENTION
        if any(parameter.is_meta for parameter in causal_lm.parameters()):
            causal_lm.set_attn_implementation(implementation)  # there are no numbers to check yet
            return
        reference_TV, token_T = _reference_logits(causal_lm)
        causal_lm.set_attn_implementation(implementation)
        _check_against(self, reference_TV, token_T=token_T)

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model embeds."""
        return _num_embeddings(self.causal_lm)

    def forward(
        self,
        token_ids_T: Tensor,
        *,
        cu_seqlens_C: Tensor,
        position_T: Tensor,
        is_scored_T: Tensor | None = None,
        temperature: float | Tensor = 1.0,
        with_entropy: bool = False,
        with_values: bool = False,
    ) -> TokenScores:
        """Score the tokens of packed sequences. See `forward_logprobs`."""
        split = None if self.sequence is None else self.sequence.split(len(token_ids_T))
        places = {"cu_seqlens_C": cu_seqlens_C, "position_T": position_T, "split": split}
        hidden_TM = self._hidden(self.causal_lm, token_ids_T, **places)
        is_first_T = torch.zeros_like(token_ids_T, dtype=torch.bool)
        is_first_T[cu_seqlens_C[:-1].long()] = True
        chosen_T = ~is_first_T if is_scored_T is None else is_scored_T & ~is_first_T
        scored_N = chosen_T.nonzero()[:, 0]
        before_N = scored_N - 1
        if split is not None:
            scored_N, before_N = split.own_scored(scored_N)
        head: Any = self.causal_lm.get_output_embeddings()
        logprob_N, entropy_N = chunked_logprobs(
            hidden_TM.index_select(0, before_N).to(head.weight.dtype),
            weight_VM=head.weight,
            bias_V=head.bias,
            target_N=token_ids_T.index_select(0, scored_N),
            temperature_N=_temperature(temperature, scored_N=scored_N),
            rule=self.logit_rule,
            with_entropy=with_entropy,
            chunk_bytes=self._chunk_bytes(hidden_TM.device),
        )
        return TokenScores(
            logprob_T=_scatter(logprob_N, scored_N, like_T=token_ids_T, split=split),
            entropy_T=None if entropy_N is None else _scatter(entropy_N, scored_N, like_T=token_ids_T, split=split),
            value_T=self._values(token_ids_T, hidden_TM=hidden_TM, is_first_T=is_first_T, **places)
            if with_values
            else None,
        )

    def split_sequences(self, group: SequenceGroup) -> None:
        """From now on hold only this rank's tokens of every pack; all ranks of the group must call `forward` together.

        Raises:
            UsageError: the attention heads cannot be shared out over so many ranks.
        """
        check_heads(self.causal_lm.config.get_text_config().num_attention_heads, size=group.size)
        self.causal_lm.set_attn_implementation(PACKED_ATTENTION)
        if self.critic is not None and self.critic.causal_lm is not None:
            self.critic.causal_lm.set_attn_implementation(PACKED_ATTENTION)
        self.uses_flash = False
        self.sequence = group

    def forward_logprobs(
        self,
        token_ids_T: Tensor,
        *,
        cu_seqlens_C: Tensor,
        position_T: Tensor,
        is_scored_T: Tensor | None = None,
        temperature: float | Tensor = 1.0,
        with_entropy: bool = False,
        with_values: bool = False,
    ) -> TokenScores:
        """Score the tokens of packed sequences.

        Args:
            token_ids_T: int64, sequences laid end to end.
            cu_seqlens_C: sequence b covers tokens `[cu_seqlens_C[b], cu_seqlens_C[b + 1])`.
            position_T: int64, counts from 0 in every sequence.
            is_scored_T: True where a score is wanted; None is everywhere. First tokens never have one.
            temperature: logits are divided by it; a number > 0, or float[T].
            with_entropy: also return entropies, from the same logits.
            with_values: also return the critic's values; needs a critic.

        Returns:
            Scores with gradients into the model. The head runs only over scored positions, chunk by chunk.
        """
        return self(
            token_ids_T,
            cu_seqlens_C=cu_seqlens_C,
            position_T=position_T,
            is_scored_T=is_scored_T,
            temperature=temperature,
            with_entropy=with_entropy,
            with_values=with_values,
        )

    def _values(
        self,
        token_ids_T: Tensor,
        *,
        hidden_TM: Tensor,
        is_first_T: Tensor,
        cu_seqlens_C: Tensor,
        position_T: Tensor,
        split: SequenceSplit | None,
    ) -> Tensor:
        """Return the value of the state before each token: what stands there ends in the token before."""
        assert self.critic is not None, "values were asked of a policy without a critic"
        if self.critic.causal_lm is not None:
            hidden_TM = self._hidden(
                self.critic.causal_lm, token_ids_T, cu_seqlens_C=cu_seqlens_C, position_T=position_T, split=split
            )
        valued_N = (~is_first_T).nonzero()[:, 0]
        before_N = valued_N - 1
        if split is not None:
            valued_N, before_N = split.own_scored(valued_N)
        value_N = self.critic(hidden_TM.index_select(0, before_N))
        return _scatter(value_N, valued_N, like_T=token_ids_T, split=split)

    def _hidden(
        self,
        causal_lm: PreTrainedModel,
        token_ids_T: Tensor,
        *,
        cu_seqlens_C: Tensor,
        position_T: Tensor,
        split: SequenceSplit | None,
    ) -> Tensor:
        """Return the last hidden states; those of this rank's tokens where the sequence is split."""
        body = causal_lm.get_decoder()
        arguments = self._attention_arguments(cu_seqlens_C)
        if split is not None:
            token_ids_T, position_T = split.own(token_ids_T), split.own(position_T)
            arguments["sequence_split"] = split
        output = body(input_ids=token_ids_T[None], position_ids=position_T[None], use_cache=False, **arguments)
        return output.last_hidden_state[0]

    def _attention_arguments(self, cu_seqlens_C: Tensor) -> dict[str, object]:
        if not self.uses_flash:
            return {"packed_layout": packed_layout(cu_seqlens_C)}
        boundary_C = cu_seqlens_C.to(torch.int32)
        longest = int(boundary_C.diff().max())
        return {
            "cu_seq_lens_q": boundary_C,
            "cu_seq_lens_k": boundary_C,
            "max_length_q": longest,
            "max_length_k": longest,
        }

    def _chunk_bytes(self, device: torch.device) -> int:
        if self.chunk_bytes is not None:
            return self.chunk_bytes
        return DEFAULT_CHUNK_BYTES * (_CUDA_CHUNK_FACTOR if device.type == "cuda" else 1)


def save_policy(policy: Policy, folder: str | Path) -> None:
    """Write a Hugging Face folder: weights as safetensors with an adapter merged, tokenizer, chat template."""
    causal_lm = policy.model.causal_lm
    if lora_of(causal_lm) is not None:
        causal_lm = plain_model(causal_lm.config, named_weights(causal_lm))
        causal_lm.generation_config = policy.model.causal_lm.generation_config
    causal_lm.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def plain_model(config: PreTrainedConfig, tensors: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return a causal LM that holds these very tensors, for saving: no second copy of the weights is made.

    Args:
        config: of the architecture.
        tensors: every weight by its name, as `named_weights` gives them; tied ones once.

    Raises:
        ModelError: weights are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(config)
    try:
        problems = causal_lm.load_state_dict(dict(tensors), strict=False, assign=True)
    except RuntimeError as error:
        raise ModelError(f"these are not the weights of a {type(causal_lm).__name__}: {error}") from error
    causal_lm.tie_weights()
    missing = [name for name, tensor in causal_lm.state_dict().items() if tensor.is_meta]
    if missing or problems.unexpected_keys:
        raise ModelError(
            f"these are not the weights of a {type(causal_lm).__name__}: {len(missing)} are missing "
            f"({', '.join(missing[:3])}), {len(problems.unexpected_keys)} are unknown "
            f"({', '.join(problems.unexpected_keys[:3])})"
        )
    return causal_lm


def load_policy(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    attention: Attention = "auto",
) -> Policy:
    """Load model and tokenizer and check that they fit together.

    Args:
        path: a Hugging Face model folder or a Hub id.
        dtype: of the weights.
        device: where to put them.
        attention: see `PackedModel`.

    Raises:
        ModelError: folder, config, tokenizer or chat template is missing, the tokenizer has ids that the model does
            not embed, or the architecture cannot be packed.
    """
    causal_lm = weights.load_causal_lm(path, dtype=dtype, device=device)
    return Policy(
        model=PackedModel(causal_lm, attention=attention),
        tokenizer=load_tokenizer(path, num_embeddings=_num_embeddings(causal_lm)),
    )


def load_tokenizer(path: str | Path, *, num_embeddings: int) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to a model.

    Args:
        path: a Hugging Face model folder or a Hub id.
        num_embeddings: rows of the model's embedding.

    Raises:
        ModelError: there is no tokenizer or chat template, or some id has no embedding.
    """
    folder = weights.model_folder(path)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ModelError(
            f"model folder {folder} has no tokenizer (tokenizer.json); copy the tokenizer files of the model into it"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {describe(error)}") from error
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer in {folder} has no chat template; use an instruction-tuned model, or add a "
            "chat_template.jinja to the folder"
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= num_embeddings:
        raise ModelError(
            f"the tokenizer in {folder} has ids up to {largest}, but the model embeds only {num_embeddings} ids "
            f"(0 to {num_embeddings - 1}); they do not belong together"
        )
    return tokenizer


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that an engine takes, by their Hugging Face name and by reference; tied ones once.

    Args:
        model: a `PackedModel` or a causal LM. An adapter is merged: layers that it changes are new tensors.
    """
    causal_lm = model.causal_lm if isinstance(model, PackedModel) else model
    lora, tensors = lora_of(causal_lm), weights.named_weights(causal_lm)
    return tensors if lora is None else merged(tensors, lora)


def _logit_rule(config: Any) -> LogitRule:
    """Read what the architecture does to its logits; the probe catches what this does not know."""
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return LogitRule(scale=scale / divisor, softcap=getattr(config, "final_logit_softcapping", None))


def _switch_off_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010, nn.Module types its attributes as modules


def _choose_flash(model: PreTrainedModel, attention: Attention) -> bool:
    is_half = model.dtype in (torch.float16, torch.bfloat16)
    is_possible = model.device.type == "cuda" and is_half and is_flash_attn_2_available()
    if attention == "flash" and not is_possible:
        raise UsageError(
            f"attention 'flash' needs the flash-attn package, a CUDA device and half precision; this model is "
            f"{model.dtype} on {model.device}. Use 'packed' or 'auto'"
        )
    return is_possible and attention != "packed"


def _num_embeddings(model: PreTrainedModel) -> int:
    embedding: Any = model.get_input_embeddings()
    return embedding.weight.shape[0]


@torch.no_grad()
def _reference_logits(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """The model's own logits for a probe sequence, and the sequence."""
    token_T = torch.arange(1, 13, device=model.device) * 7919 % _num_embeddings(model)
    model.set_attn_implementation("eager")
    return model(input_ids=token_T[None], use_cache=False).logits[0].double(), token_T


@torch.no_grad()
def _check_against(packed: PackedModel, reference_TV: Tensor, *, token_T: Tensor) -> None:
    """Refuse a model whose packed scores are not those of its own forward, on the probe twice in one pack."""
    length = len(token_T)
    scores = packed.forward_logprobs(
        token_T.repeat(2),
        cu_seqlens_C=torch.tensor([0, length, 2 * length], device=token_T.device),
        position_T=torch.arange(length, device=token_T.device).repeat(2),
    )
    expected_T = torch.zeros(length, dtype=torch.float64, device=token_T.device)
    expected_T[1:] = reference_TV[:-1].log_softmax(-1).gather(1, token_T[1:, None])[:, 0]
    gap = float((scores.logprob_T.double() - expected_T.repeat(2)).abs().max())
    tolerance = _PROBE_TOLERANCE.get(packed.causal_lm.dtype, _HALF_TOLERANCE)
    if not gap <= tolerance:
        raise ModelError(
            f"{type(packed.causal_lm).__name__} gives other log-probs packed than by itself (off by {gap:.3g}); "
            "its architecture keeps state across tokens, or changes its logits, in a way that is not supported"
        )


def _temperature(temperature: float | Tensor, *, scored_N: Tensor) -> Tensor | None:
    if isinstance(temperature, Tensor):
        return temperature.index_select(0, scored_N)
    if not temperature > 0:
        raise UsageError(f"temperature is {temperature}; log-probs need a number > 0")
    return None if temperature == 1.0 else torch.full(scored_N.shape, temperature, device=scored_N.device)


def _scatter(value_N: Tensor, index_N: Tensor, *, like_T: Tensor, split: SequenceSplit | None) -> Tensor:
    """Put values at their positions in a row of zeros; where the sequence is split, all ranks' values."""
    value_T = value_N.new_zeros(like_T.shape).index_copy(0, index_N, value_N)
    return value_T if split is None else split.merge(value_T)
