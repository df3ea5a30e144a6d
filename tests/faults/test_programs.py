"""Agent programs run in processes of their own: one that is killed, stopped or crashes costs its episode only."""

import asyncio
import signal

import pytest

from agentenv.agent.gateway import GatewayAgent
from agentenv.engine.scripted import ScriptedEngine
from agentenv.episode import EpisodeSpec
from agentenv.runner import Runner, RunnerConfig
from agentenv.tally import EpisodeTally
from agentenv.trajectory import StopReason
from tests.agent.gateways import ENV_ID, RENDERER, WIDE, said
from tests.agent.programs import command
from tests.engine.processes import processes

HURT = """
if task["messages"][-1]["content"] and not os.path.exists(sys.argv[1]):
    open(sys.argv[1], "w").close()
    {harm}
ask(task["messages"])
"""


@pytest.mark.faults
@pytest.mark.fault(
    "agent program: segmentation fault, SIGKILL, SIGSTOP",
    then="next episode is scored, no process is left",
    metric="agentenv_episodes_total{env_error, deadline}",
)
@pytest.mark.parametrize(
    ("harm", "status"),
    [
        ("import ctypes; ctypes.string_at(0)", StopReason.ENV_ERROR),
        ("os.kill(os.getpid(), 9)", StopReason.ENV_ERROR),
        ("os.abort()", StopReason.ENV_ERROR),
        (f"os.kill(os.getpid(), {int(signal.SIGSTOP)})", StopReason.DEADLINE),
    ],
)
async def test_a_program_that_dies_or_stops_costs_its_episode_only(tmp_path, harm, status):
    mark = tmp_path / "hurt"
    body = HURT.format(harm=harm)
    agent = GatewayAgent([*command(tmp_path, body), str(mark)])
    config = RunnerConfig(max_retries=0, limits=WIDE.model_copy(update={"episode_timeout_s": 8.0}))
    runner = Runner(engine=ScriptedEngine([said("x")]), renderer=RENDERER, agent=agent, config=config)
    runner.tally = EpisodeTally()
    async with asyncio.timeout(60):
        bad = await runner.run_episode(EpisodeSpec(env_id=ENV_ID, group_id="0"))
        good = await runner.run_episode(EpisodeSpec(env_id=ENV_ID, group_id="1"))
    await agent.close()

    assert (bad.stop_reason, bad.is_scored) == (status, False), bad.error
    assert good.stop_reason is StopReason.COMPLETED
    assert runner.tally.num_ended[status] == 1
    assert processes(str(mark)) == []
