"""Players by name: what is read, what is refused, and that the same seeds are played by all."""

import pytest

from agentenv.agent.openai_endpoint import EndpointAgent
from agentenv.agent.policy import PolicyAgent
from agentenv.agent.react import ReActAgent
from agentenv.episode import Limits
from agentenv.errors import ModelError, UsageError
from agentenv.messages import as_messages
from agentenv.play import compare_players, show_comparison
from agentenv.player import PlayerOptions, check_player, open_player, parse_player, parse_players
from agentenv.registry import make_bare
from agentenv.trainers.tiny import TinyConfig, save_tiny
from tests.chat_server import binary_search, chat_server, guess_of

GUESS = "agentenv/GuessNumber-v0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tiny"))
    said = [as_messages(f"Guess my number from 1 to {n}.") for n in range(20)]
    save_tiny(path, said, tools=make_bare(GUESS).tool_specs, config=TinyConfig(hidden_size=32, num_layers=1), seed=0)
    return path


def compared(*players, num_episodes=12, options=None, **kwargs):
    return compare_players(
        GUESS,
        players=players,
        num_episodes=num_episodes,
        seed=3,
        success_reward=1.0,
        env_kwargs=kwargs,
        options=options,
    )


@pytest.mark.parametrize(
    ("text", "kind", "url", "model"),
    [
        ("oracle", "policy", "", "oracle"),
        ("model:/a/b:c", "model", "", "/a/b:c"),
        ("openai:http://a:1/v1#org/name", "openai", "http://a:1/v1", "org/name"),
        ("vllm:http://a:1#/m", "vllm", "http://a:1", "/m"),
        ("sglang:http://a:1#/m", "sglang", "http://a:1", "/m"),
    ],
)
def test_a_player_is_read(text, kind, url, model):
    player = parse_player(text)
    assert (player.label, player.kind, player.url, player.model) == (text, kind, url, model)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("orcale", "no player 'orcale'. Did you mean \"oracle\"? Players: oracle, demonstrate, random, model:FOLDER"),
        ("openia:http://a#m", 'Did you mean "openai"?'),
        ("openai:http://a", "write openai:URL#MODEL"),
        ("vllm:#m", "write vllm:URL#FOLDER"),
        ("model:", "no player 'model:'"),
        ("human", "no player"),
        ("", "no player ''"),
    ],
)
def test_another_text_is_refused_with_the_forms_that_there_are(text, said):
    with pytest.raises(UsageError) as error:
        parse_player(text)
    assert said in str(error.value)


def test_a_player_comes_once():
    with pytest.raises(UsageError, match="'oracle' was given twice"):
        parse_players(["oracle", "random", "oracle"])


async def test_models_play_with_the_agent_that_is_named_and_policies_with_their_own(folder):
    options = PlayerOptions(agent="react", temperature=0.0)
    async with open_player(parse_player(f"model:{folder}"), options=options) as runner:
        assert isinstance(runner.agent, ReActAgent)
        assert runner.sampling.temperature == 0.0
    async with open_player(parse_player("oracle"), options=options) as runner:
        assert isinstance(runner.agent, PolicyAgent)
    async with open_player(parse_player("openai:http://127.0.0.1:9#m"), options=options) as runner:
        assert isinstance(runner.agent, EndpointAgent)
        assert runner.config.max_episodes == 64


async def test_what_would_keep_a_player_from_playing_is_found_first(tmp_path):
    with pytest.raises(UsageError, match="is the server running"):
        await check_player(parse_player("openai:http://127.0.0.1:9#m"), options=PlayerOptions())
    with pytest.raises(UsageError, match="url must look like"):
        await check_player(parse_player("openai:nonsense#m"), options=PlayerOptions())
    with pytest.raises(ModelError, match="no tokenizer"):
        await check_player(parse_player(f"model:{tmp_path}"), options=PlayerOptions())


def test_policies_a_model_and_an_endpoint_are_compared_on_the_same_seeds(folder, capsys):
    short = PlayerOptions(limits=Limits(max_turn_tokens=8, max_episode_tokens=16))
    with chat_server(binary_search) as url:
        result = compared("random", "oracle", f"openai:{url}#search", f"model:{folder}", options=short)

    random, oracle, endpoint, model = result.summaries
    assert oracle.success_rate == endpoint.success_rate == 1.0
    assert random.success_rate < 0.6
    assert model.num_episodes == 12
    # the server says 10 tokens a turn
    assert endpoint.mean_sampled_tokens == pytest.approx(10 * endpoint.mean_turns)
    success = {row.player: row for row in result.differences if row.metric == "success"}
    assert set(success) == {"oracle", f"openai:{url}#search", f"model:{folder}"}
    assert success["oracle"].difference == pytest.approx(1.0 - random.success_rate)
    assert 0 < success["oracle"].low <= success["oracle"].difference <= success["oracle"].high <= 1
    assert success["oracle"].num_lower == 0

    show_comparison(result)
    out = capsys.readouterr().out
    assert "minus random; paired percentile bootstrap" in out
    assert "well-formed" in out
    assert url not in out, "columns are headed by short names"


def test_equal_seeds_give_equal_comparisons():
    assert compared("random", "demonstrate") == compared("random", "demonstrate")


def test_a_player_that_fails_does_not_take_the_others_with_it(capsys):
    with chat_server(lambda request: {"status": 404, "text": "no such model"}) as url:
        result = compared("oracle", f"openai:{url}#m", num_episodes=3)
        assert [summary.num_episodes for summary in result.summaries] == [3, 0]
        (error,) = result.errors.values()
        assert "answered 404: no such model" in error
        show_comparison(result)
        assert "first failure" in capsys.readouterr().out
        with pytest.raises(UsageError, match=r"all episodes of all players failed; the first: .*404"):
            compared(f"openai:{url}#m", num_episodes=3)


def test_two_models_behind_one_server_differ_by_their_answers():
    def answer(request):
        return binary_search(request) if request["model"] == "good" else guess_of(1)

    with chat_server(answer) as url:
        result = compared(f"openai:{url}#good", f"openai:{url}#bad", high=31)
    success = next(row for row in result.differences if row.metric == "success")
    assert success.difference < -0.5
    assert success.high < 0


def test_no_episodes_and_unknown_environments_are_refused():
    with pytest.raises(UsageError, match="at least 1"):
        compared("oracle", num_episodes=0)
    with pytest.raises(UsageError, match="no environment"):
        compare_players("a/B-v0", players=["oracle"], num_episodes=1, seed=0, success_reward=1.0, env_kwargs={})
