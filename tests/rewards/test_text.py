"""Text scores, worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.errors import UsageError
from agentenv.rewards.text import exact_match, rouge_l, rouge_n, token_f1

WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


def test_an_exact_match_ignores_case_articles_and_punctuation():
    assert exact_match("The  Eiffel Tower!", ["Big Ben", "eiffel tower"]) == 1.0
    assert exact_match("Eiffel", "eiffel tower") == 0.0


def test_f1_counts_common_words_with_repetition():
    # common: cat once, sat once = 2; precision 2/3, recall 2/4
    assert token_f1("cat cat sat", "a cat sat down here") == pytest.approx(2 * 2 / (3 + 4))
    assert token_f1("x", ["y", "x"]) == 1.0
    assert (token_f1("", ""), token_f1("", "x")) == (1.0, 0.0)


def test_rouge_l_takes_the_longest_common_subsequence():
    # "police ... the gunman" is common to both: 3 of 4 words each, the example of Lin 2004, section 3.1
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(0.5)
    assert rouge_l("", "x") == 0.0


def test_rouge_n_counts_common_ngrams():
    # bigrams: ab bc cd against ab bx xc cd: 2 common of 3 and 4
    assert rouge_n("a b c d", "a b x c d") == pytest.approx(4 / 7)
    assert rouge_n("a", "a") == 0.0
    assert rouge_n("a", "a", n=1) == 1.0


@given(WORDS, WORDS)
def test_rouge_l_agrees_with_the_table_of_the_textbook(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    common = table[-1][-1]
    wanted = 2 * common / (len(first) + len(second)) if common else 0.0
    assert rouge_l(" ".join(first), " ".join(second)) == pytest.approx(wanted)


@given(st.text(), st.text(min_size=1))
def test_every_score_of_any_text_is_in_range(first, second):
    for score in (exact_match, token_f1, rouge_l, rouge_n):
        assert 0.0 <= score(first, second) <= 1.0


def test_no_reference_is_a_mistake():
    with pytest.raises(UsageError, match="there is no reference"):
        exact_match("x", [])
    with pytest.raises(UsageError, match="n is 0"):
        rouge_n("x", "x", n=0)
