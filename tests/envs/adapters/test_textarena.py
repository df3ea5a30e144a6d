"""The adapter for textarena, against the real package: what plays, what is refused, whose random numbers it uses."""

import random
import subprocess
import sys
import threading

import numpy as np
import pytest

pytest.importorskip("textarena", reason="textarena is not installed: pip install 'agentenv[textarena]'")

from agentenv import check_env
from agentenv.envs.adapters.textarena import games
from agentenv.errors import EpisodeError, UsageError
from tests.envs.adapters.policies import at_random, cheating, global_states, make_bare, mean_return, oracle, play

ID = "adapter/TextArena-v0"

# one id of every kind of game that plays on Python 3.11 without data of its own
PLAYABLE = [
    "2048-v0",
    "Alquerque-v0",
    "Bandit-v0",
    "Battleship-v0",
    "Blackjack-v0",
    "Breakthrough-v0",
    "Briscola-v0",
    "Chopsticks-v0",
    "ColonelBlotto-v0",
    "ConnectFour-v0",
    "Countdown-v0",
    "Crusade-v0",
    "Cryptarithm-v0",
    "FifteenPuzzle-v0",
    "FrozenLake-v0",
    "GameOfPureStrategy-v0",
    "GermanWhist-v0",
    "Golf-v0",
    "GuessTheNumber-v0",
    "HighSociety-v0",
    "IndianPoker-v0",
    "IteratedMatchingPennies-v0",
    "IteratedPrisonersDilemma-v0",
    "IteratedRockPaperScissors-v0",
    "IteratedTwoThirdsAverage-v0",
    "IteratedUltimatumGame-v0",
    "KuhnPoker-v0",
    "LiarsDice-v0",
    "LightsOut-v0",
    "LinesOfAction-v0",
    "Mastermind-v0",
    "MemoryGame-v0",
    "Minesweeper-v0",
    "NewRecruit-v0",
    "Nim-v0",
    "Othello-v0",
    "PegJump-v0",
    "PigDice-v0",
    "Poker-v0",
    "RushHour-v0",
    "Secretary-v0",
    "Set-v0",
    "SimpleBlindAuction-v0",
    "SimpleNegotiation-v0",
    "SimpleTak-v0",
    "Slitherlink-v0",
    "Snake-v0",
    "Sokoban-v0",
    "Stratego-v0",
    "Sudoku-v0",
    "Surround-v0",
    "Tak-v0",
    "ThreeCardMonte-v0",
    "TicTacToe-v0",
    "TowerOfHanoi-v0",
    "TruthAndDeception-v0",
    "UltimateTicTacToe-v0",
    "WildTicTacToe-v0",
]


@pytest.mark.parametrize("game", PLAYABLE)
def test_a_game_plays_repeats_itself_and_leaves_the_global_generators_alone(game, capsys):
    random.seed(11)
    np.random.seed(11)
    before = global_states()
    first = play(make_bare(ID, game=game, max_turns=8), at_random, seed=3)
    random.seed(12)  # what others do with the global generators changes nothing
    np.random.seed(12)
    between = global_states()
    second = play(make_bare(ID, game=game, max_turns=8), at_random, seed=3)

    assert first == second
    assert global_states() == between
    random.seed(11)
    np.random.seed(11)
    assert global_states() == before
    assert capsys.readouterr().out == ""


def test_concurrent_episodes_do_not_disturb_each_other_nor_a_thread_that_draws():
    alone = [play(make_bare(ID, game="2048-v0", max_turns=10), at_random, seed=seed) for seed in range(6)]
    random.seed(1)
    expected = [random.random() for _ in range(3000)]
    random.seed(1)
    drawn: list[float] = []
    drawer = threading.Thread(target=lambda: drawn.extend(random.random() for _ in range(3000)))
    together: dict[int, object] = {}

    def one(seed):
        together[seed] = play(make_bare(ID, game="2048-v0", max_turns=10), at_random, seed=seed)

    threads = [drawer, *(threading.Thread(target=one, args=(seed,)) for seed in range(6))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [together[seed] for seed in range(6)] == alone
    assert drawn == expected


def test_interleaved_episodes_keep_their_own_numbers():
    envs = [make_bare(ID, game="2048-v0") for _ in range(2)]
    seen = [[env.reset(seed=4)[0]] for env in envs]
    for move in ("[up]", "[left]", "[down]", "[right]"):
        for env, texts in zip(envs, seen, strict=True):
            texts.append(env.step(move)[0])
    assert seen[0] == seen[1]


def test_nothing_is_looked_up_on_the_network_while_games_are_imported_and_refused():
    program = """
import socket
def refuse(*args, **kwargs): raise SystemExit("network: %r" % (args,))
socket.getaddrinfo = refuse
socket.socket.connect = refuse
from agentenv import make_bare
for game in ("TicTacToe-v0", "Wordle-v0", "Hangman-v0", "DontSayIt-v0", "TwentyQuestions-v0"):
    try:
        make_bare("adapter/TextArena-v0", game=game).reset(seed=0)
        print("plays", game)
    except Exception as error:
        print("refused", game, str(error)[:300])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "plays TicTacToe-v0" in ran.stdout
    assert "network" not in ran.stdout.replace("over the network", "")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"game": "TicTacTo-v0"}, 'Did you mean "TicTacToe-v0"'),
        ({"game": "TwentyQuestions-v0"}, "asks a model over the network"),
        ({"game": "Debate-v0"}, "asks a model over the network"),
        ({"game": "TicTacToe-v0", "num_players": 3}, "does not take num_players=3"),
        ({"game": "TicTacToe-v0", "seat": 2}, "has seats 0 to 1"),
        ({"game": "TicTacToe-v0", "seat": 1, "opponent": "tests.envs.adapters.movers:number"}, "a move is text"),
    ],
)
def test_what_cannot_be_played_says_why(kwargs, message):
    with pytest.raises(EpisodeError, match=message):
        make_bare(ID, **kwargs).reset(seed=0)


def test_a_game_over_word_lists_is_refused_with_the_remedy_where_they_are_missing():
    nltk = pytest.importorskip("nltk")
    try:
        nltk.data.find("corpora/words")
    except LookupError:
        with pytest.raises(EpisodeError, match=r"python -m nltk\.downloader words"):
            make_bare(ID, game="Hangman-v0").reset(seed=0)
    else:
        pytest.skip("the word lists are installed here")


def test_an_opponent_that_cannot_be_imported_is_refused_at_once():
    with pytest.raises(UsageError, match="opponent 'clever' is no import string"):
        make_bare(ID, opponent="clever")


def test_a_scripted_opponent_moves_first_where_the_agent_has_the_second_seat():
    env = make_bare(ID, game="TicTacToe-v0", seat=1, opponent="tests.envs.adapters.movers:first_free")
    opening, _ = env.reset(seed=0)
    assert "Player 0 placed their symbol (O) in cell 0." in opening
    assert "Player 0 placed their symbol (O) in cell 1." in env.step("4")[0]
    assert "Player 0 has won" in env.step("[8]")[0]


@pytest.mark.parametrize("split", ["train", "test"])
def test_policies_earn_what_they_should(split):
    for game in ("Mastermind-v0", "GuessTheNumber-v0"):
        assert mean_return(make_bare(ID, game=game, split=split), oracle, num_seeds=50) == 1.0
    env = make_bare(ID, split=split)
    assert mean_return(env, at_random, num_seeds=100) <= env.random_threshold
    assert mean_return(env, cheating, num_seeds=30) == 0.0
    # the second player of nim cannot always win, yet against random moves it does
    assert mean_return(make_bare(ID, game="Nim-v0", split=split), oracle, num_seeds=50) >= 0.95
    assert mean_return(make_bare(ID, game="TicTacToe-v0", split=split), oracle, num_seeds=50) >= 0.9


def test_partial_rewards_are_paid_on_request_only():
    for partial in (False, True):
        env = make_bare(ID, game="GuessTheNumber-v0", partial=partial)
        env.reset(seed=0)
        hidden = env.unwrapped.game.state.game_state["game_number"]
        env.step(f"[{hidden % 20 + 1}]")
        env.step("no number")
        assert (env.step("no number")[1] > 0) == partial


def test_every_promise_is_kept_and_none_is_skipped():
    report = check_env(ID, num_seeds=10)
    assert {status for _, status, _ in report.rows} == {"ok"}


def test_all_ids_of_the_registry_can_be_asked_for():
    assert len(games()) > 200
    assert not any(name.endswith(("-raw", "-train")) for name in games())
