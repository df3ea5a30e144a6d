"""The OpenEnv client, against frames recorded from openenv-core 0.3.0 and, where a Python has it, the real server.

AGENTENV_OPENENV_PYTHON names the Python of a venv with openenv-core>=0.3,<0.4; or AGENTENV_OPENENV_URL a server that
runs `openenv_server.py`.
"""

import asyncio
import os
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

pytest.importorskip("websockets", reason="websockets is not installed: pip install 'agentenv[openenv]'")

from agentenv import tool_turn
from agentenv.agent.policy import PolicyAgent
from agentenv.episode import EpisodeSpec
from agentenv.errors import EpisodeError, UsageError
from agentenv.player import byte_runner
from tests.envs.adapters.openenv_stand_in import openenv_server
from tests.envs.adapters.policies import make_bare

ID = "adapter/OpenEnv-v0"
PYTHON, URL = os.environ.get("AGENTENV_OPENENV_PYTHON", ""), os.environ.get("AGENTENV_OPENENV_URL", "")


@pytest.fixture(scope="module")
def stand_in():
    with openenv_server() as url:
        yield url


@pytest.fixture(scope="module")
def real():
    """The address of a server of the real openenv-core."""
    if URL:
        yield URL
        return
    if not PYTHON:
        pytest.skip("set AGENTENV_OPENENV_PYTHON to the Python of a venv with openenv-core>=0.3,<0.4")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = str(Path(__file__).with_name("openenv_server.py"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    server = subprocess.Popen([PYTHON, "-P", script, str(port)], env=environment, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while not _is_up(url):
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.5)
        yield url
    finally:
        server.kill()
        server.wait()


def _is_up(url):
    try:
        return httpx.get(f"{url}/health", trust_env=False, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(params=["stand_in", "real"])
def url(request):
    return request.getfixturevalue(request.param)


def guess(number):
    return tool_turn("act", {"action": {"number": number}}).to_dict()


def test_an_episode_is_played_to_its_end(url):
    env = make_bare(ID, url=url)
    opening, _ = env.reset(seed=0)
    assert opening == "Guess a number from 0 to 9.\n\nActions have these fields: number (integer)."
    rewards, text, info = [], "", {}
    for number in range(10):
        text, reward, terminated, _, info = env.step(guess(number))
        rewards.append(reward)
        if terminated:
            break
        assert text == "higher"
    assert (text, rewards[-1], sum(rewards)) == ("found", 1.0, 1.0)
    assert info["reward_components"] == {"solved": 0.0, "server_reward": 1.0}
    env.close()


def test_fields_that_the_server_refuses_come_back_to_the_model(url):
    env = make_bare(ID, url=url)
    env.reset(seed=0)
    text, *_ = env.step(tool_turn("act", {"action": {"numbr": 3}}).to_dict())
    assert text == (
        "Error: the action was refused: number: Field required; numbr: Extra inputs are not permitted. "
        "It has number (integer)"
    )
    assert env.step("three")[0] == "Call act with the fields of an action: number (integer)."
    assert env.step(guess(-1))[0] == "higher"
    env.close()


def test_a_failure_of_the_server_is_no_reward(url):
    env = make_bare(ID, url=url)
    env.reset(seed=0)
    with pytest.raises(EpisodeError, match="the server reports EXECUTION_ERROR: unlucky"):
        env.step(guess(13))
    env.reset(seed=0)
    assert env.step(guess(-1))[0] == "higher"
    env.close()


def test_train_and_test_have_disjoint_seeds_and_the_same_seed_the_same_episode(url):
    def hidden(split, seed):
        env = make_bare(ID, url=url, split=split)
        env.reset(seed=seed)
        found = next(number for number in range(10) if env.step(guess(number))[2])
        env.close()
        return found

    assert hidden("train", 7) == hidden("train", 7)
    assert [hidden("train", seed) for seed in range(6)] != [hidden("test", seed) for seed in range(6)]


async def test_the_state_is_told_to_the_caller_only(url):
    env = make_bare(ID, url=url)
    await env.reset_async(seed=0)
    await env.step_async(env.read_action(guess(-1)))
    assert (await env.state())["step_count"] == 1
    await env.close_async()


async def test_the_runner_plays_sessions_side_by_side(url):
    runner = byte_runner(PolicyAgent("random"))
    kwargs = {"url": url, "max_turns": 3, "paid": "solved"}
    specs = [EpisodeSpec(env_id=ID, env_kwargs=kwargs, seed=seed, group_id=str(seed)) for seed in range(6)]
    played = await asyncio.gather(*map(runner.run_episode, specs))
    assert {t.error for t in played if "EXECUTION_ERROR" not in t.error} == {""}


@pytest.mark.parametrize(
    ("number", "message"),
    [(99, "no answer within 0.5 s"), (98, "ConnectionClosed"), (97, "a message was expected")],
)
def test_a_server_that_hangs_hangs_up_or_talks_nonsense_is_a_failed_episode(stand_in, number, message):
    env = make_bare(ID, url=stand_in, message_timeout_s=0.5)
    env.reset(seed=0)
    with pytest.raises(EpisodeError, match=message):
        env.step(guess(number))
    env.close()


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(EpisodeError, match=r"OpenEnv at http://127\.0\.0\.1:9"):
        make_bare(ID, url="http://127.0.0.1:9", message_timeout_s=2).reset(seed=0)


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "ftp://x", "http://"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UsageError, match="write http://HOST:PORT"):
        make_bare(ID, url=address)
