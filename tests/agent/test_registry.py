"""Agents by name, by import string, and with arguments that must fit."""

import pytest

from agentenv.agent.chat import ChatAgent
from agentenv.agent.react import ReActAgent
from agentenv.agent.registry import AGENTS, AgentConfig, make_agent
from agentenv.agent.single_turn import SingleTurnAgent
from agentenv.config import load_config
from agentenv.errors import ConfigError, UsageError


class Counting:
    """An agent of a user's own."""

    def __init__(self, *, limit: int, label: str = "") -> None:
        self.limit = limit

    async def play(self, episode):
        await episode.reset()


def counting(*, limit: int):
    return Counting(limit=limit)


def no_agent():
    return 3


NOT_CALLABLE = 3


@pytest.mark.parametrize(
    ("name", "kind"), [("chat", ChatAgent), ("single_turn", SingleTurnAgent), ("react", ReActAgent)]
)
def test_shipped_agents_are_made_by_name(name, kind):
    assert type(make_agent(name)) is kind


def test_every_shipped_name_is_an_import_string():
    assert list(AGENTS) == ["chat", "single_turn", "react", "langgraph", "gateway"]
    assert all(target.startswith("agentenv.agent.") and target.count(":") == 1 for target in AGENTS.values())


@pytest.mark.parametrize("attribute", ["Counting", "counting"])
def test_a_class_or_a_function_is_found_by_import_string(attribute):
    agent = make_agent(f"{__name__}:{attribute}", limit=3)
    assert isinstance(agent, Counting)
    assert agent.limit == 3


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("caht", {}, "no agent 'caht'. Did you mean \"chat\"? Allowed: chat, single_turn, react"),
        ("no_such_module:Agent", {}, "cannot import 'no_such_module:Agent'"),
        (f"{__name__}:Missing", {}, "cannot import"),
        (f"{__name__}:NOT_CALLABLE", {}, "is int; a class or a function is needed"),
        (f"{__name__}:no_agent", {}, "gave int, which has no method play"),
        (f"{__name__}:Counting", {}, "needs limit"),
        (f"{__name__}:Counting", {"limt": 3}, "no argument 'limt'. Did you mean \"limit\"? Arguments: limit, label"),
        ("react", {"observation_role": "system"}, 'allowed are "auto", "user" and "tool"'),
        ("", {}, "no agent ''"),
    ],
)
def test_a_wrong_name_or_argument_is_a_usage_error(name, kwargs, said):
    with pytest.raises(UsageError) as error:
        make_agent(name, **kwargs)
    assert said in str(error.value)


def test_a_run_file_names_an_agent_and_its_arguments(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text("name: react\nkwargs: {observation_role: tool}\n", encoding="utf-8")
    config = load_config(AgentConfig, path)
    assert (config.name, config.kwargs) == ("react", {"observation_role": "tool"})
    assert AgentConfig().name == "chat"
    with pytest.raises(ConfigError, match="Did you mean"):
        load_config(AgentConfig, path, overrides=["kwarg={}"])
