"""A program that knows nothing of us plays episodes, is scored, and its turns are trained on."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import ClassVar

import pytest

from agentenv import AgentEnv, Message, ToolEnv, reward, tool
from agentenv.agent.gateway import GatewayAgent
from agentenv.engine.scripted import Faults, ScriptedEngine
from agentenv.envs.guess_number.env import GuessNumber
from agentenv.errors import UsageError
from agentenv.runner import GroupSpec, Runner, RunnerConfig
from agentenv.trainers.samples_from import assign
from agentenv.trajectory import StopReason
from tests.agent.gateways import ENV_ID, RENDERER, WIDE, called, said
from tests.agent.programs import LOOP, command


class Capitals(AgentEnv):
    """Name two capitals, one after the other. Reward: 0.5 for each, on the turn that named it."""

    inline: ClassVar[bool] = True

    def setup(self, rng, task):
        self.questions = [("France", "Paris"), ("Peru", "Lima")]
        self.is_right = False
        return "Capital of France?"

    def respond(self, text):
        _, capital = self.questions.pop(0)
        self.is_right = capital in text
        if not self.questions:
            self.finish()
            return ""
        return f"Capital of {self.questions[0][0]}?"

    @reward(when="turn")
    def named(self) -> float:
        """0.5 for a capital."""
        return 0.5 * self.is_right


def halving(request):
    """Guess in the middle of the range that the prompt ends with."""
    found = re.findall(r"(?:higher|lower) (\d+) (\d+)", RENDERER.decode(request.prompt_ids))
    low, high = map(int, found[-1]) if found else (1, 15)
    return called("guess", number=(low + high) // 2)


def runner_of(script, agent, *, limits=WIDE, env=None, max_retries=0, **options):
    return Runner(
        engine=ScriptedEngine(script, keep_exchanges=True, **options),
        renderer=RENDERER,
        agent=agent,
        config=RunnerConfig(limits=limits, max_retries=max_retries),
        make_env=None if env is None else lambda spec: env(),
    )


async def play(script, agent, *, size=1, seed=0, **options):
    """Play one group and return its trajectories and what the engine saw."""
    runner = runner_of(script, agent, **options)
    async with agent:
        group = await runner.run_group(GroupSpec(group_id="g", env_id=ENV_ID, seed=seed, size=size))
    return group.trajectories, runner.engine.exchanges  # type: ignore[attr-defined]


async def play_one(script, agent, **options):
    (trajectory,), _ = await play(script, agent, **options)
    return trajectory


def ids_of(trajectory):
    return sorted(sequence.token_ids.tolist() for sequence in trajectory.sequences)


async def test_a_program_with_a_loop_of_its_own_finds_the_number_and_is_rewarded(tmp_path):
    agent = GatewayAgent(command(tmp_path, LOOP))

    trajectories, exchanges = await play(halving, agent, size=3)

    for trajectory in trajectories:
        assert (trajectory.stop_reason, trajectory.reward, trajectory.error) == (StopReason.TOOL_STOPPED, 1.0, "")
        (sequence,) = ids_of(trajectory)
        assert sequence in [[*e.request.prompt_ids, *e.completion.token_ids] for e in exchanges]
        assert [turn.num_tool_calls for turn in trajectory.turns] == [1] * len(trajectory.turns)


async def test_what_programs_played_is_trained_on():
    agent = GatewayAgent(function=guess_once)
    number = iter([8, 3])
    runner = runner_of(lambda request: called("guess", number=next(number)), agent)
    async with agent:
        group = await runner.run_group(GroupSpec(group_id="g", env_id=ENV_ID, seed=1, size=2))  # the number is 8

    found, missed = sorted(group.trajectories, key=lambda one: -one.reward)
    samples = {sample.sample_id: sample for sample in assign([group], advantage="rloo")}
    assert (found.reward, missed.reward) == (1.0, 0.0)
    for trajectory, expected in ((found, 1.0), (missed, -1.0)):
        sample = samples[f"g/{trajectory.member}/0"]
        (turn,) = trajectory.turns[:1]
        assert sample.token_ids_T.tolist() == trajectory.sequences[0].token_ids.tolist()
        assert set(sample.advantage_T[turn.start : turn.end].tolist()) == {expected}
        assert set(sample.behaviour_logprob_T[turn.start : turn.end].tolist()) == {-0.5}


def post(url, body, key):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"x-api-key": key})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


async def guess_once(base_url, api_key, task):
    """Take one guess, then give up; a function is a program too."""
    body = {"messages": task["messages"], "tools": task["tools"]}
    turn = await asyncio.to_thread(post, base_url + "/chat/completions", body, api_key)
    (call,) = turn["choices"][0]["message"]["tool_calls"]
    name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
    await asyncio.to_thread(post, f"{base_url}/tools/{name}", arguments, api_key)
    return {"answer": "I give up."}


async def test_the_last_line_is_the_answer_and_the_program_is_run_again_while_the_environment_asks(tmp_path):
    body = """
ask(task["messages"])
print("thinking aloud")
print(json.dumps({"answer": {"France": "Paris", "Peru": "Quito"}[task["messages"][-1]["content"][11:-1]]}))
"""
    trajectory = await play_one([said("Hm."), said("Well.")], GatewayAgent(command(tmp_path, body)), env=Capitals)

    assert trajectory.stop_reason is StopReason.COMPLETED
    assert [turn.reward for turn in trajectory.turns] == [0.5, 0.0]
    assert [message.content for message in trajectory.messages if message.role == "assistant"][-1] == "Quito"


async def test_without_an_answer_the_last_turn_of_the_model_is_played_and_goes_on_as_one_sequence(tmp_path):
    agent = GatewayAgent(command(tmp_path, 'ask(task["messages"])'))

    (trajectory,), exchanges = await play([said("It is Paris."), said("It is Lima.")], agent, env=Capitals)

    assert [turn.reward for turn in trajectory.turns] == [0.5, 0.5]
    assert [message.role for message in trajectory.messages] == ["user", "assistant", "user", "assistant"]
    last = exchanges[-1]
    assert ids_of(trajectory) == [[*last.request.prompt_ids, *last.completion.token_ids]]


async def test_calls_that_a_program_leaves_unplayed_are_the_turn_where_the_tools_are_the_environments(tmp_path):
    agent = GatewayAgent(command(tmp_path, 'ask(task["messages"], tools=task["tools"])'))

    trajectory = await play_one(halving, agent)

    assert (trajectory.stop_reason, trajectory.reward) == (StopReason.TOOL_STOPPED, 1.0)
    assert len(trajectory.sequences) == 1


class Steps(ToolEnv):
    """Take one step, then answer. Reward: 0.25 for each turn that is played."""

    inline: ClassVar[bool] = True

    def setup(self, rng, task):
        return "Go."

    @tool
    def go(self) -> str:
        """Take a step."""
        return "gone"

    @reward(when="turn")
    def played(self) -> float:
        """0.25 for a turn."""
        return 0.25


async def test_a_turn_whose_calls_and_answer_are_played_keeps_what_both_earned(tmp_path):
    body = """
turn = ask(task["messages"], tools=task["tools"])
post("/tools/go", {}, **{"X-Call-Id": turn["tool_calls"][0]["id"]})
print(json.dumps({"answer": "There."}))
"""
    trajectory = await play_one([called("go")], GatewayAgent(command(tmp_path, body)), env=Steps)

    assert [turn.reward for turn in trajectory.turns] == [0.5]
    assert trajectory.turns[0].num_tool_calls == 1
    assert trajectory.messages[-1].content == "There."


async def test_calls_of_a_programs_own_tools_do_not_reach_the_environment(tmp_path):
    body = """
own = {"type": "function", "function": {"name": "own", "parameters": {"type": "object", "properties": {}}}}
ask(task["messages"], tools=[own])
"""
    trajectory = await play_one([called("own", content="So:")], GatewayAgent(command(tmp_path, body)))

    # text without a call is the final answer of a tool environment
    assert (trajectory.stop_reason, trajectory.reward) == (StopReason.COMPLETED, 0.0)
    assert trajectory.messages[-1] == Message(role="assistant", content="So:")


async def test_a_program_that_does_not_wait_for_its_last_result_is_over_all_the_same(tmp_path):
    body = """
import socket
turn = ask(task["messages"], tools=task["tools"])
host, port = os.environ["OPENAI_BASE_URL"].split("/")[2].split(":")
path = "/" + os.environ["OPENAI_BASE_URL"].split("/", 3)[3] + "/tools/guess?call_id=" + turn["tool_calls"][0]["id"]
with socket.create_connection((host, int(port))) as connection:
    connection.sendall(f"POST {path} HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
    time.sleep(0.1)
"""

    class Slow(GuessNumber):
        """The same, with a tool that takes its time and runs in a thread."""

        inline: ClassVar[bool] = False

        @tool
        def guess(self, number: int) -> str:
            """Guess the number.

            Args:
                number: your guess.
            """
            time.sleep(0.3)
            self.finish()
            return "enough"

    trajectory = await play_one([called("guess", number=8)], GatewayAgent(command(tmp_path, body)), env=Slow)

    assert (trajectory.stop_reason, trajectory.error) == (StopReason.TOOL_STOPPED, "")
    assert trajectory.messages[-1].content == "enough"


async def test_a_program_that_fails_is_masked_and_its_last_words_are_kept_without_its_key(tmp_path):
    body = 'print("no luck with", os.environ["OPENAI_API_KEY"], file=sys.stderr); sys.exit(3)'
    trajectory = await play_one([said("x")], GatewayAgent(command(tmp_path, body)))

    assert trajectory.stop_reason is StopReason.ENV_ERROR
    assert not trajectory.is_scored
    assert "exit code 3: no luck with <hidden>" in trajectory.error


async def test_a_function_that_raises_is_masked():
    async def broken(base_url, api_key, task):
        raise KeyError("nothing here")

    trajectory = await play_one([said("x")], GatewayAgent(function=broken))

    assert trajectory.stop_reason is StopReason.ENV_ERROR
    assert "nothing here" in trajectory.error


async def test_a_program_that_makes_no_call_is_told_what_is_missing(tmp_path):
    trajectory = await play_one([said("x")], GatewayAgent(command(tmp_path, 'print("{\\"answer\\": 1}")')))

    assert trajectory.stop_reason is StopReason.ENV_ERROR
    assert "without a turn of the model; is OPENAI_BASE_URL what it calls?" in trajectory.error


async def test_a_program_whose_calls_are_refused_is_told_why(tmp_path):
    body = """
try:
    ask([])
except urllib.error.HTTPError:
    pass
"""
    trajectory = await play_one([said("x")], GatewayAgent(command(tmp_path, body)))

    assert "its last request was refused: messages is a list of 0" in trajectory.error


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_context_tokens": 1200}, StopReason.CONTEXT_OVERFLOW),
        ({"max_episode_tokens": 200}, StopReason.MAX_TOKENS),
    ],
)
async def test_a_budget_that_runs_out_truncates_the_episode_which_is_scored(tmp_path, limits, reason):
    talk = 'messages = task["messages"]\nwhile True: messages += [ask(messages), {"role": "user", "content": "Go on."}]'
    agent = GatewayAgent(command(tmp_path, talk))

    trajectory = await play_one([said("word " * 20)], agent, limits=WIDE.model_copy(update=limits))

    assert (trajectory.stop_reason, trajectory.error) == (reason, "")
    assert trajectory.is_scored
    assert len(trajectory.turns) >= 1


async def test_a_failing_engine_is_to_blame_and_not_the_program(tmp_path):
    agent = GatewayAgent(command(tmp_path, LOOP))

    trajectory = await play_one(halving, agent, faults=Faults(fail_every=2))

    assert trajectory.stop_reason is StopReason.ENGINE_ERROR
    assert "injected" in trajectory.error


async def test_an_answer_that_the_budget_cut_is_none(tmp_path):
    agent = GatewayAgent(command(tmp_path, 'ask(task["messages"])'))

    limits = WIDE.model_copy(update={"max_turn_tokens": 4})
    trajectory = await play_one([said("a long answer")], agent, limits=limits)

    assert trajectory.stop_reason is StopReason.MAX_TOKENS


# processes


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


async def until(condition, *, timeout_s=20.0):
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.02)


CHILD = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()} {child.pid}\\n")
"""


@pytest.mark.fault("agent program never ends", then="nobody is left", metric="agentenv_episodes_total{deadline}")
async def test_a_program_that_never_ends_is_ended_by_the_deadline_with_all_its_children(tmp_path):
    pids = tmp_path / "pids"
    body = CHILD + 'ask(task["messages"])\ntime.sleep(600)'
    agent = GatewayAgent([*command(tmp_path, body), str(pids)])

    limits = WIDE.model_copy(update={"episode_timeout_s": 6.0})
    trajectory = await play_one([said("x")], agent, limits=limits)

    assert trajectory.stop_reason is StopReason.DEADLINE
    program, child = map(int, pids.read_text().split())
    assert not is_alive(program)
    assert not is_alive(child)


async def test_a_child_does_not_outlive_a_program_that_ends(tmp_path):
    pids = tmp_path / "pids"
    body = CHILD + 'ask(task["messages"])'
    trajectory = await play_one([said("x")], GatewayAgent([*command(tmp_path, body), str(pids)]))

    assert trajectory.stop_reason is StopReason.COMPLETED
    assert not is_alive(int(pids.read_text().split()[1]))


async def test_a_program_that_goes_on_after_its_episode_is_ended(tmp_path):
    pids = tmp_path / "pids"
    body = CHILD + LOOP.replace("sys.exit()", "time.sleep(600)")
    agent = GatewayAgent([*command(tmp_path, body), str(pids)], grace_s=0.1)

    trajectory = await play_one(halving, agent)

    assert (trajectory.stop_reason, trajectory.reward) == (StopReason.TOOL_STOPPED, 1.0)
    assert not any(map(is_alive, map(int, pids.read_text().split())))


async def test_the_model_answers_no_more_once_the_episode_is_over(tmp_path):
    body = LOOP.replace(
        "sys.exit()",
        """
            try:
                ask(messages)
            except urllib.error.HTTPError as error:
                open(sys.argv[1], "w").write(f"{error.code} {json.load(error)['error']['code']}")
                sys.exit()""",
    )
    told = tmp_path / "told"
    trajectory = await play_one(halving, GatewayAgent([*command(tmp_path, body), str(told)]))

    assert told.read_text() == "404 episode_ended"
    assert trajectory.stop_reason is StopReason.TOOL_STOPPED


@pytest.mark.fault("kill -9 of a run: its programs", then="they die with it", metric="none: a new process")
async def test_programs_die_with_a_run_that_is_killed(tmp_path):
    pids = tmp_path / "pids"
    program = [*command(tmp_path, CHILD + "time.sleep(600)"), str(pids)]
    run = f"""
import asyncio
from agentenv.agent.gateway import GatewayAgent
from agentenv.engine.scripted import ScriptedEngine
from agentenv.runner import GroupSpec, Runner
from tests.agent.gateways import ENV_ID, RENDERER
runner = Runner(engine=ScriptedEngine([[0]]), renderer=RENDERER, agent=GatewayAgent({program!r}))
asyncio.run(runner.run_group(GroupSpec(group_id="g", env_id=ENV_ID)))
"""
    root = Path(__file__).parents[2]
    killed = subprocess.Popen([sys.executable, "-c", run], cwd=root)  # noqa: ASYNC220 - it is a run of its own
    try:
        await until(lambda: pids.exists() and pids.read_text().endswith("\n"), timeout_s=60.0)
        found = [int(pid) for pid in pids.read_text().split()]
        assert all(map(is_alive, found))
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    await until(lambda: not any(map(is_alive, found)))


async def test_a_long_task_is_fetched(tmp_path):
    body = """
assert "AGENTENV_TASK" not in os.environ
headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
with urllib.request.urlopen(urllib.request.Request(os.environ["AGENTENV_TASK_URL"], None, headers)) as answer:
    task = json.load(answer)
assert len(task["messages"][0]["content"]) == 200_000
ask([{"role": "user", "content": "short"}])
"""

    class Long(AgentEnv):
        """Read. Reward: none."""

        def setup(self, rng, task):
            return "x" * 200_000

    limits = WIDE.model_copy(update={"max_observation_tokens": 10**6})
    trajectory = await play_one([said("x")], GatewayAgent(command(tmp_path, body)), env=Long, limits=limits)

    assert (trajectory.stop_reason, trajectory.error) == (StopReason.COMPLETED, "")


# construction and life


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "exactly one"),
        ({"command": ["true"], "function": guess_once}, "exactly one"),
        ({"command": "python agent.py"}, "list of words"),
        ({"command": []}, "list of words"),
        ({"command": ["there-is-no-such-program"]}, "there is no program"),
        ({"function": "no.such.module:play"}, "module:name"),
        ({"function": "json:loads"}, "not async"),
        ({"function": print}, "not async"),
        ({"command": ["true"], "host": "0.0.0.0"}, "token"),
    ],
)
def test_an_agent_that_cannot_run_says_so_at_once(options, match):
    with pytest.raises(UsageError, match=match):
        GatewayAgent(**options)


async def test_a_function_may_be_named_by_its_import_string():
    agent = GatewayAgent(function="tests.agent.test_gateway:guess_once")
    trajectory = await play_one([called("guess", number=8)], agent, seed=1)
    assert trajectory.reward == 1.0


async def test_a_closed_agent_plays_no_more():
    agent = GatewayAgent(function=guess_once)
    await agent.close()
    await agent.close()
    with pytest.raises(UsageError, match="closed"):
        await play_one([said("x")], agent)


def test_an_agent_plays_in_one_loop_after_the_other():
    agent = GatewayAgent(function=guess_once)

    async def once():
        runner = runner_of([called("guess", number=8)], agent)
        return await runner.run_group(GroupSpec(group_id="g", env_id=ENV_ID, seed=1))

    assert [asyncio.run(once()).trajectories[0].reward for _ in range(2)] == [1.0, 1.0]
