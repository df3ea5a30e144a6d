"""Kuhn: pots, the balance of the deal, and best answers that were checked by playing every deal."""

import itertools

import pytest

from agentenv.envs.kuhn.env import Kuhn, KuhnGame
from agentenv.envs.kuhn.strategy import CARDS, best_move, is_finished, move_of, strategies, value_against, winnings
from agentenv.game import IllegalMove


@pytest.mark.parametrize(
    ("line", "first", "second", "chips"),
    [
        ("check check", "K", "Q", 1),
        ("check check", "J", "Q", -1),
        ("bet fold", "J", "K", 1),
        ("bet call", "J", "K", -2),
        ("check bet fold", "K", "J", -1),
        ("check bet call", "K", "J", 2),
    ],
)
def test_a_pot_goes_to_who_stays_with_the_higher_card(line, first, second, chips):
    assert winnings(line, first=first, second=second) == chips


def test_every_deal_comes_once_with_either_side_starting():
    env = Kuhn()
    for seed in range(5):
        env.reset(seed=seed)
        hands = env.game.hands  # type: ignore[attr-defined]
        assert len(set(hands)) == len(hands) == 12
        assert {cards for _, cards in hands} == set(itertools.permutations(CARDS, 2))


def played(first, second, cards):
    """Return the chips of the first player when two strategies play one deal."""
    line = ""
    while not is_finished(line):
        mover = len(line.split()) % 2
        line = f"{line} {(first, second)[mover](line, cards[mover])}".strip()
    return winnings(line, first=cards[0], second=cards[1])


def test_the_value_of_a_best_answer_is_what_it_wins_over_all_deals():
    for strategy in strategies()[::7]:

        def fixed(line, card, strategy=strategy):
            return move_of(strategy, line, card)

        def best(line, card, strategy=strategy):
            return best_move(strategy, line, card)

        deals = list(itertools.permutations(CARDS, 2))
        total = sum(played(best, fixed, deal) - played(fixed, best, deal) for deal in deals)
        assert total == value_against(strategy) > 0


def test_no_pure_strategy_wins_more_than_the_best_answer():
    target = strategies()[0]

    def fixed(line, card):
        return move_of(target, line, card)

    for other in strategies():

        def tried(line, card, other=other):
            return move_of(other, line, card)

        deals = list(itertools.permutations(CARDS, 2))
        total = sum(played(tried, fixed, deal) - played(fixed, tried, deal) for deal in deals)
        assert total <= value_against(target)


def test_easier_opponents_lose_more():
    values = [value_against(strategy) for strategy in strategies()]
    assert values == sorted(values, reverse=True)
    assert len(strategies()) == 128  # seven decisions are open


def test_the_other_card_is_never_shown_before_the_showdown():
    game = KuhnGame()
    game.hands = ((0, ("J", "K")), (1, ("Q", "J")))
    assert game.view("north") == "Hand 1. You hold J. Chips won: +0"
    game.play("north", "check")
    game.play("south", "bet")
    game.play("north", "fold")
    assert " ".join(game.events) == "north checks. south bets. north folds. south wins 1."
    assert game.view("south") == "Hand 2. You hold J. Chips won: +1"


def test_moves_that_do_not_fit_the_place_are_refused():
    game = KuhnGame()
    game.hands = ((0, ("J", "K")),)
    with pytest.raises(IllegalMove, match="write check or bet"):
        game.play("north", "call")
