"""The checksum's sums, against Python's own integers."""

from __future__ import annotations

import torch

from agentenv.engine.weights import _bit_sums


def test_sums_of_two_elements_by_hand():
    # 3 * 1 + (-1) * 3 = 0
    assert _bit_sums(torch.tensor([3, -1])) == (2, 0)


def test_sums_wrap_at_64_bits_and_go_on_across_chunks():
    words = torch.randint(-(2**63), 2**63 - 1, (150_001,), generator=torch.Generator().manual_seed(0))
    values = words.tolist()

    plain, weighted = _bit_sums(words)

    assert (plain - sum(values)) % 2**64 == 0
    assert (weighted - sum(value * (2 * place + 1) for place, value in enumerate(values))) % 2**64 == 0
    assert max(abs(plain), abs(weighted)) <= 2**63


def test_half_precision_is_summed_by_its_bits():
    # 1.0 is 0x3F80 in bfloat16, -0.0 is 0x8000, which as a signed number is -32768
    assert _bit_sums(torch.tensor([1.0, -0.0], dtype=torch.bfloat16)) == (0x3F80 - 32768, 0x3F80 - 3 * 32768)
