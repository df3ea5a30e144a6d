"""A task row chooses who plays it and which tools are offered; what does not fit is an error."""

import pyarrow
import pyarrow.parquet
import pytest

from agentenv import AgentEnv, Message, StopReason, Task, ToolEnv, load_tasks, tool, tool_turn
from agentenv.agent.chat import ChatAgent
from agentenv.agent.langgraph import LangGraphAgent
from agentenv.agent.policy import PolicyAgent
from agentenv.agent.react import ReActAgent
from agentenv.agent.single_turn import SingleTurnAgent
from agentenv.context import ContextConfig
from agentenv.engine.scripted import ScriptedEngine
from agentenv.episode import Limits
from agentenv.errors import DataError, UsageError
from agentenv.runner import GroupSpec, Runner, RunnerConfig
from agentenv.tasks import agent_choice, task_from_row, tool_choice

MADE: list["Noting"] = []


class Noting(ChatAgent):
    """Notes that it was made, played and closed."""

    def __init__(self, *, label: str = "") -> None:
        super().__init__()
        self.label, self.num_played, self.num_closed = label, 0, 0
        MADE.append(self)

    async def play(self, episode):
        self.num_played += 1
        await super().play(episode)

    async def close(self):
        self.num_closed += 1


class Desk(ToolEnv):
    """Has two tools."""

    inline = True

    def setup(self, rng, task):
        return task.prompt or "go"

    @tool
    def look(self) -> str:
        """Look."""
        return "blue"

    @tool
    def wipe(self) -> str:
        """Wipe."""
        return "clean"

    def oracle(self):
        return "done"


class Talk(AgentEnv):
    """Has none."""

    inline = True

    def setup(self, rng, task):
        return task.prompt or "go"

    def respond(self, text):
        if text == "bye":
            self.finish()
        return "and?"


def runner_of(renderer, *said, env: type[AgentEnv] = Desk, agent=None, limits=None):
    script = [
        renderer.turn_ids(Message(role="assistant", content=turn) if isinstance(turn, str) else turn) for turn in said
    ]
    engine = ScriptedEngine(script, keep_exchanges=True)
    config = RunnerConfig() if limits is None else RunnerConfig(limits=limits)
    return Runner(engine=engine, renderer=renderer, agent=agent, config=config, make_env=lambda spec: env())


def first_prompt(runner, renderer):
    assert isinstance(runner.engine, ScriptedEngine)
    return renderer.decode(runner.engine.exchanges[0].request.prompt_ids)


def group_of(task=None, *, group_id="g", size=1):
    return GroupSpec(group_id=group_id, env_id="test/Desk-v0", task=task, size=size)


def task_of(**row):
    return task_from_row({"prompt": "Look.", "task_id": "t7", **row})


async def test_a_row_chooses_its_agent_and_equal_choices_share_one(renderer):
    MADE.clear()
    runner = runner_of(renderer, "done")
    name = f"{__name__}:Noting"
    tasks = [
        task_of(agent={"name": name, "kwargs": {"label": "a"}}),
        task_of(agent={"name": name, "kwargs": {"label": "a", "other": None}}),
        task_of(agent={"name": name, "kwargs": {"label": "b"}}),
        task_of(agent=None),
    ]

    groups = await runner.run_all(group_of(task, group_id=str(i), size=2) for i, task in enumerate(tasks))

    assert all(t.stop_reason is StopReason.COMPLETED for group in groups for t in group.trajectories)
    assert sorted((agent.label, agent.num_played) for agent in MADE) == [("a", 4), ("b", 2)]
    await runner.close()
    await runner.close()
    assert [agent.num_closed for agent in MADE] == [1, 1]


async def test_the_task_that_an_environment_draws_itself_chooses_too(renderer):
    MADE.clear()

    class Drawing(Desk):
        """Draws its task."""

        def sample_task(self, rng):
            return Task(task_id="drawn", data={"agent": f"{__name__}:Noting"})

    await runner_of(renderer, "done", env=Drawing).run_group(group_of())

    assert [agent.num_played for agent in MADE] == [1]


async def test_a_scripted_policy_plays_rows_of_every_agent_itself(renderer):
    MADE.clear()
    runner = runner_of(renderer, "never asked", agent=PolicyAgent("oracle"))
    group = await runner.run_group(group_of(task_of(agent=f"{__name__}:Noting")))
    assert group.trajectories[0].messages[-1].content == "done"
    assert MADE == []


async def test_a_row_names_the_tools_that_are_offered_and_others_are_unknown_to_calls(renderer):
    runner = runner_of(renderer, tool_turn("wipe", {}), tool_turn("look", {}), "done")

    group = await runner.run_group(group_of(task_of(tools=["look"])))
    unrestricted = await runner.run_group(group_of(group_id="h"))

    results = [m.content for m in group.trajectories[0].messages if m.role == "tool"]
    assert results == ['Error: unknown tool "wipe". Available tools: look.', "blue"]
    prompt = first_prompt(runner, renderer)
    assert '"look"' in prompt
    assert '"wipe"' not in prompt
    assert [m.content for m in unrestricted.trajectories[0].messages if m.role == "tool"] == ["clean", "blue"]


@pytest.mark.parametrize("env", [Desk, Talk])
async def test_a_row_that_names_a_tool_that_is_not_offered_is_an_error(renderer, env):
    runner = runner_of(renderer, "done", env=env)
    with pytest.raises(DataError) as error:
        await runner.run_group(group_of(task_of(tools=["lok"])))
    expected = {Desk: 'Desk offers look, wipe. Did you mean "look"?', Talk: "Talk offers no tool."}[env]
    assert str(error.value) == f"task t7: field 'tools' names lok; {expected}"


async def test_an_agent_that_cannot_use_tools_is_refused_where_tools_are_offered(renderer):
    runner = runner_of(renderer, "done", agent=SingleTurnAgent())
    with pytest.raises(
        UsageError, match=r"task t7: agent SingleTurnAgent cannot use tools, and look, wipe are offered"
    ):
        await runner.run_group(group_of(task_of()))
    by_row = runner_of(renderer, "done")
    with pytest.raises(UsageError, match=r"agent SingleTurnAgent cannot use tools, and wipe are offered"):
        await by_row.run_group(group_of(task_of(agent="single_turn", tools=["wipe"])))


async def test_shortening_the_history_of_an_agent_that_keeps_it_itself_is_refused(renderer):
    limits = Limits(context=ContextConfig(when_full="summarise"))
    runner = runner_of(renderer, "done", agent=LangGraphAgent(), limits=limits)
    with pytest.raises(UsageError, match=r"when_full is 'summarise', but agent LangGraphAgent keeps its conversation"):
        await runner.run_group(group_of(task_of()))


async def test_a_row_without_tools_lets_an_agent_without_tools_play(renderer):
    runner = runner_of(renderer, "blue", agent=SingleTurnAgent())
    group = await runner.run_group(group_of(task_of(tools=[])))
    (played,) = group.trajectories
    assert (played.stop_reason, played.messages[-1].content) == (StopReason.COMPLETED, "blue")
    assert '"look"' not in first_prompt(runner, renderer)


async def test_a_single_turn_ends_an_environment_that_would_go_on(renderer):
    runner = runner_of(renderer, "hello", env=Talk, agent=SingleTurnAgent())
    (played,) = (await runner.run_group(group_of())).trajectories
    assert played.stop_reason is StopReason.MAX_TURNS
    assert [m.role for m in played.messages] == ["user", "assistant", "user"]
    assert len(played.turns) == 1
    (ended,) = (await runner_of(renderer, "bye", env=Talk, agent=SingleTurnAgent()).run_group(group_of())).trajectories
    assert ended.stop_reason is StopReason.COMPLETED


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"agent": 5}, "field 'agent' is 5; expected a name, or {name, kwargs}"),
        ({"agent": ""}, "field 'agent' is ''"),
        ({"agent": {"kwargs": {}}}, "field 'agent' is {'kwargs': {}}"),
        ({"agent": {"name": "chat", "kwargs": 3}}, "field 'agent'"),
        ({"agent": {"name": "chat", "extra": 3}}, "field 'agent'"),
        ({"tools": "look"}, "field 'tools' is 'look'; expected a list of tool names"),
        ({"tools": [3]}, "field 'tools' is [3]"),
        ({"tools": [{"function": {}}]}, "field 'tools'"),
        ({"tools": {"look": 1}}, "field 'tools'"),
    ],
)
def test_a_bad_row_value_names_row_and_field(row, said):
    with pytest.raises(DataError) as error:
        task_from_row({"prompt": "x", **row}, where="tasks.jsonl, row 3")
    assert str(error.value).startswith(f"tasks.jsonl, row 3: {said}")


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("recat", "task t7: field 'agent': there is no agent 'recat'. Did you mean \"react\"?"),
        ({"name": "react", "kwargs": {"role": "x"}}, "task t7: field 'agent': agent 'react' has no argument 'role'"),
    ],
)
async def test_a_row_whose_agent_cannot_be_made_names_row_and_field(renderer, choice, said):
    with pytest.raises(DataError) as error:
        await runner_of(renderer, "done").run_group(group_of(task_of(agent=choice), size=3))
    assert said in str(error.value)


def test_choices_survive_parquet_in_which_rows_differ(tmp_path):
    rows = [
        {"prompt": "a", "agent": {"name": "chat", "kwargs": {"x": 1}}, "tools": ["look"]},
        {"prompt": "b", "agent": {"name": "react", "kwargs": {"y": "z"}}, "tools": []},
        {"prompt": "c", "agent": None, "tools": None},
    ]
    path = tmp_path / "tasks.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)

    tasks = load_tasks(path)

    choices = [agent_choice(task) for task in tasks]
    assert [None if c is None else (c.name, dict(c.kwargs)) for c in choices] == [
        ("chat", {"x": 1}),
        ("react", {"y": "z"}),
        None,
    ]
    assert [tool_choice(task) for task in tasks] == [("look",), (), None]


def test_schemas_may_stand_in_for_names():
    schema = {"type": "function", "function": {"name": "look", "parameters": {}}}
    assert tool_choice(task_of(tools=[schema, "wipe", "wipe"])) == ("look", "wipe")


async def test_a_row_may_ask_for_react(renderer):
    runner = runner_of(renderer, "Thought: easy\nFinal Answer: blue")
    (played,) = (await runner.run_group(group_of(task_of(agent="react")))).trajectories
    assert played.messages[-1].content == "blue"
    assert isinstance(runner.roster.agent_for(task_of(agent="react"), tools=()), ReActAgent)
