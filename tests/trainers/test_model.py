"""The packed policy: scores and gradients against plain evaluation, the chunked head, and loading."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel

from agentenv.engine.attention import length_buckets, ragged_layout
from agentenv.errors import ModelError, UsageError
from agentenv.messages import Message
from agentenv.trainers.head import LogitRule, chunked_logprobs
from agentenv.trainers.model import PackedModel, TokenScores, load_policy, named_weights
from agentenv.trainers.tiny import make_tiny_model, make_tiny_tokenizer, save_tiny
from tests.engine.small_models import ARCHITECTURES, VOCAB_SIZE, gpt2, qwen3

LENGTHS = (14, 3, 40, 1, 15, 26, 2, 13)


def sequences_of(lengths: tuple[int, ...] = LENGTHS, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB_SIZE, (length,), generator=generator) for length in lengths]


def boundaries(sequences: list[Tensor]) -> Tensor:
    return torch.tensor([0, *(len(ids) for ids in sequences)]).cumsum(0)


def score(model: PackedModel, sequences: list[Tensor], **options: Any) -> TokenScores:
    return model.forward_logprobs(
        torch.cat(sequences),
        cu_seqlens_C=boundaries(sequences),
        position_T=torch.cat([torch.arange(len(ids)) for ids in sequences]),
        **options,
    )


def plain_scores(model: PreTrainedModel, token_T: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of one sequence by the model's own forward, with gradients; 0 at the first token."""
    logprob_TV = (model(input_ids=token_T[None], use_cache=False).logits[0] / temperature).log_softmax(-1)[:-1]
    logprob_T = logprob_TV.gather(1, token_T[1:, None])[:, 0]
    entropy_T = -(logprob_TV.exp() * logprob_TV).sum(-1)
    zero = logprob_T.new_zeros(1)
    return torch.cat((zero, logprob_T)), torch.cat((zero, entropy_T))


def in_dtype(model: Any, dtype: torch.dtype) -> PreTrainedModel:
    return model.to(dtype)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def largest_gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(gap(one[name], other[name]) for name in one)


def gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max())


# Packing.


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_pack_scores_like_its_sequences_one_by_one(name: str, dtype: torch.dtype, tolerance: float):
    plain: Any = in_dtype(ARCHITECTURES[name](), dtype)
    if name in ("gemma2", "gemma3", "gpt_oss"):
        tolerance = max(tolerance, 5e-6)  # transformers rounds attention weights or the router to float32 there
    packed = PackedModel(copy.deepcopy(plain))
    sequences = sequences_of()
    weight_T = torch.rand(sum(LENGTHS), generator=torch.Generator().manual_seed(1), dtype=dtype) / sum(LENGTHS)

    scores = score(packed, sequences, with_entropy=True)
    assert scores.entropy_T is not None
    (weight_T * (scores.logprob_T + 0.3 * scores.entropy_T)).sum().backward()
    parts = [plain_scores(plain, token_T) for token_T in sequences]
    logprob_T, entropy_T = (torch.cat(column) for column in zip(*parts, strict=True))
    (weight_T * (logprob_T + 0.3 * entropy_T)).sum().backward()

    assert gap(scores.logprob_T, logprob_T) < tolerance
    assert gap(scores.entropy_T, entropy_T) < tolerance
    assert largest_gap(gradients(packed.causal_lm), gradients(plain)) < tolerance


def test_neighbours_in_the_pack_have_no_influence():
    model = PackedModel(qwen3().double())
    sequences = sequences_of()
    others = sequences_of(seed=9)
    changed = [others[0], sequences[1], others[2], others[3], sequences[4], others[5], others[6], sequences[7]]

    before, after = score(model, sequences).logprob_T, score(model, changed).logprob_T

    boundary_C = boundaries(sequences).tolist()
    for index in (1, 4, 7):
        kept = slice(boundary_C[index], boundary_C[index + 1])
        assert gap(before[kept], after[kept]) < 1e-14
    assert gap(before, after) > 0.1


def test_the_order_of_sequences_does_not_matter():
    model = PackedModel(qwen3().double())
    sequences = sequences_of()

    forward = score(model, sequences).logprob_T.split(LENGTHS)
    backward = score(model, sequences[::-1]).logprob_T.split(LENGTHS[::-1])

    assert all(torch.allclose(a, b, atol=1e-13) for a, b in zip(forward, backward[::-1], strict=True))


def test_only_scored_tokens_have_a_score_and_first_tokens_never():
    model = PackedModel(qwen3())
    sequences = sequences_of((4, 3))
    everything = score(model, sequences, with_entropy=True)
    assert everything.entropy_T is not None

    # tokens 0 and 4 are first tokens
    some = score(model, sequences, is_scored_T=torch.tensor([True, False, True, False, True, True, False]))

    assert everything.logprob_T[[0, 4]].tolist() == everything.entropy_T[[0, 4]].tolist() == [0.0, 0.0]
    assert some.logprob_T.nonzero()[:, 0].tolist() == [2, 5]
    assert some.logprob_T[[2, 5]].tolist() == pytest.approx(everything.logprob_T[[2, 5]].tolist(), abs=1e-6)
    assert some.entropy_T is None


def test_a_pack_without_anything_to_score_gives_zeros():
    scores = score(PackedModel(qwen3()), sequences_of((1, 1)))

    assert scores.logprob_T.tolist() == [0.0, 0.0]


def test_temperature_divides_the_logits_as_one_number_or_per_token():
    plain = qwen3().double()
    model = PackedModel(copy.deepcopy(plain))
    sequences = sequences_of((9, 9))
    temperature_T = torch.tensor([0.5] * 9 + [2.0] * 9, dtype=torch.float64)

    scores = score(model, sequences, temperature=temperature_T, with_entropy=True)
    halved = score(model, sequences[:1], temperature=0.5)

    parts = [plain_scores(plain, ids, temperature=t) for ids, t in zip(sequences, (0.5, 2.0), strict=True)]
    assert torch.allclose(scores.logprob_T, torch.cat([logprob for logprob, _ in parts]), atol=1e-10)
    assert scores.entropy_T is not None
    assert torch.allclose(scores.entropy_T, torch.cat([entropy for _, entropy in parts]), atol=1e-10)
    assert torch.allclose(halved.logprob_T, parts[0][0], atol=1e-7)
    with pytest.raises(UsageError, match="temperature is 0; log-probs need a number > 0"):
        score(model, sequences, temperature=0)


def test_training_mode_is_free_of_dropout():
    model = PackedModel(gpt2()).train()  # its configuration asks for a dropout of 0.1

    first, second = (score(model, sequences_of()).logprob_T for _ in range(2))

    assert torch.equal(first, second)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = PackedModel(qwen3().double()).train()
    score(model, sequences_of()).logprob_T.sum().backward()
    expected = gradients(model)

    model.causal_lm.gradient_checkpointing_enable()
    score(model, sequences_of()).logprob_T.sum().backward()

    assert largest_gap(gradients(model), expected) < 1e-12


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_buckets_hold_every_segment_once_and_waste_little(lengths: list[int]):
    buckets = length_buckets(lengths)

    assert sorted(np.concatenate(buckets).tolist()) == list(range(len(lengths)))
    for bucket in buckets:
        widths = [lengths[index] for index in bucket]
        # at least 85 % full, or short by at most 8 places
        assert min(widths) >= min(math.ceil(0.85 * max(widths)), max(widths) - 8)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_a_layout_finds_every_token_again(lengths: list[int]):
    starts = np.cumsum(np.array(lengths, dtype=np.int64)) - lengths

    layout = ragged_layout(starts, lengths, device=torch.device("cpu"))

    assert layout.token_P[layout.place_T].tolist() == list(range(sum(lengths)))


# The head.


def naive(
    hidden_NM: Tensor, weight_VM: Tensor, bias_V: Tensor, *, target_N: Tensor, temperature_N: Tensor, rule: LogitRule
) -> tuple[Tensor, Tensor]:
    logit_NV = (hidden_NM @ weight_VM.T + bias_V) * rule.scale
    if rule.softcap is not None:
        logit_NV = rule.softcap * torch.tanh(logit_NV / rule.softcap)
    logprob_NV = (logit_NV / temperature_N[:, None]).log_softmax(-1)
    return logprob_NV.gather(1, target_N[:, None])[:, 0], -(logprob_NV.exp() * logprob_NV).sum(-1)


def head_inputs(*, count: int, width: int, vocab_size: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((count, width), (vocab_size, width), (vocab_size,))
    leaves = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    target_N = torch.randint(vocab_size, (count,), generator=generator)
    temperature_N = torch.rand(count, generator=generator, dtype=dtype) + 0.5
    return leaves, target_N, temperature_N


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(scale=0.3, softcap=2.0)])
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_the_chunked_head_equals_the_naive_formula_in_values_and_gradients(rule: LogitRule, rows: int):
    leaves, target_N, temperature_N = head_inputs(count=10, width=6, vocab_size=33, dtype=torch.float64)
    hidden_NM, weight_VM, bias_V = leaves
    upstream_2N = torch.randn(2, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    chunked: Any = chunked_logprobs(
        hidden_NM,
        weight_VM=weight_VM,
        target_N=target_N,
        bias_V=bias_V,
        temperature_N=temperature_N,
        rule=rule,
        with_entropy=True,
        chunk_bytes=rows * 33 * 8,
    )
    expected = naive(hidden_NM, weight_VM, bias_V, target_N=target_N, temperature_N=temperature_N, rule=rule)

    for mine, theirs in zip(chunked, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)
    grads = torch.autograd.grad(chunked, leaves, grad_outputs=list(upstream_2N), retain_graph=True)
    expected_grads = torch.autograd.grad(expected, leaves, grad_outputs=list(upstream_2N), retain_graph=True)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(grads, expected_grads, strict=True))
    for output in range(2):  # each output alone
        grads = torch.autograd.grad(chunked[output], leaves, grad_outputs=upstream_2N[output], retain_graph=True)
        expected_grads = torch.autograd.grad(
            expected[output], leaves, grad_outputs=upstream_2N[output], retain_graph=True
        )
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(grads, expected_grads, strict=True))


def test_the_chunked_head_keeps_bfloat16_sums_in_float32():
    leaves, target_N, _ = head_inputs(count=400, width=16, vocab_size=50, dtype=torch.float32)
    halves = [leaf.detach().bfloat16().requires_grad_() for leaf in leaves]
    exact = [leaf.detach().double().requires_grad_() for leaf in halves]

    logprob_N, _ = chunked_logprobs(
        halves[0], weight_VM=halves[1], bias_V=halves[2], target_N=target_N, chunk_bytes=200
    )
    logprob_N.sum().backward()
    ones_N = torch.ones(400, dtype=torch.float64)
    naive(exact[0], exact[1], exact[2], target_N=target_N, temperature_N=ones_N, rule=LogitRule())[0].sum().backward()

    assert logprob_N.dtype == torch.float32
    for half, reference in zip(halves, exact, strict=True):
        assert half.grad is not None
        assert reference.grad is not None
        # one chunk per token: added up in bfloat16, 400 terms would be off by several per cent
        assert float((half.grad.double() - reference.grad).norm() / reference.grad.norm()) < 0.01


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, Tensor):
                self.elements = max(self.elements, item.untyped_storage().nbytes() // item.element_size())
        return result


def test_no_tensor_grows_with_positions_times_vocabulary():
    leaves, target_N, _ = head_inputs(count=512, width=8, vocab_size=3000, dtype=torch.float32)

    with LargestTensor() as seen:
        both: Any = chunked_logprobs(
            leaves[0], weight_VM=leaves[1], target_N=target_N, with_entropy=True, chunk_bytes=16 * 3000 * 4
        )
        torch.cat(both).sum().backward()

    # 16 rows of logits are 48,000 elements, and the weight has 24,000; all logits would be 1,536,000
    assert seen.elements == 48_000


# What cannot be used.


def test_an_architecture_that_cannot_be_packed_is_refused():
    bloom = BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=4))
    with torch.no_grad():
        for parameter in bloom.parameters():
            parameter.normal_(std=0.2)

    with pytest.raises(ModelError, match="BloomForCausalLM gives other log-probs packed than by itself"):
        PackedModel(bloom)


def test_an_output_layer_that_is_not_linear_is_refused():
    model = qwen3()
    model.set_output_embeddings(nn.Sequential(nn.Linear(32, VOCAB_SIZE)))

    with pytest.raises(ModelError, match="output layer of type Sequential; a plain linear layer is needed"):
        PackedModel(model)


def test_flash_attention_is_refused_where_it_cannot_run():
    with pytest.raises(UsageError, match="'flash' needs the flash-attn package, a CUDA device and half precision"):
        PackedModel(qwen3(), attention="flash")


def test_a_model_without_numbers_yet_can_be_wrapped():
    with torch.device("meta"):
        empty = type(qwen3())(qwen3().config)

    packed = PackedModel(empty)

    assert packed.vocab_size == VOCAB_SIZE


# Weights and folders.


def test_named_weights_are_those_of_the_causal_lm_by_reference_and_tied_ones_once():
    tied, untied = qwen3(tied=True), qwen3(tied=False)

    weights = named_weights(PackedModel(tied))

    assert weights.keys() == named_weights(tied).keys() == tied.state_dict().keys() - {"lm_head.weight"}
    assert "lm_head.weight" in named_weights(untied)
    assert all(value.data_ptr() == tied.state_dict()[name].data_ptr() for name, value in weights.items())
    assert not any(value.requires_grad for value in weights.values())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(
        tmp_path, [[Message(role="user", content="Say hello."), Message(role="assistant", content="hello")]], seed=0
    )
    return tmp_path


def test_a_folder_loads_as_a_policy(folder: Path):
    policy = load_policy(folder, dtype=torch.float64)

    ids = policy.tokenizer.encode("hello")
    scores = score(policy.model, [torch.tensor([*ids, *ids])])

    assert scores.logprob_T.dtype == torch.float64
    assert (scores.logprob_T[1:] < 0).all()


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def with_a_larger_tokenizer(folder: Path) -> None:
    make_tiny_model(300, seed=0).save_pretrained(folder)


def without_template(folder: Path) -> None:
    tokenizer = make_tiny_tokenizer(["a"])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("config.json"), "has no config.json"),
        (without("model.safetensors"), "cannot be loaded as a causal language model"),
        (without_tokenizer, r"has no tokenizer \(tokenizer.json\)"),
        (without_template, "has no chat template"),
        (with_a_larger_tokenizer, r"ids up to \d+, but the model embeds only 300 ids"),
    ],
)
def test_an_incomplete_folder_is_refused_with_what_is_missing(
    folder: Path, spoil: Callable[[Path], None], message: str
):
    spoil(folder)

    with pytest.raises(ModelError, match=message):
        load_policy(folder)


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"model folder .*nowhere does not exist"):
        load_policy(tmp_path / "nowhere")
