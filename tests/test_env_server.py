"""Served environments: the same episodes as at home, and a failure with a deadline where a server is gone."""

import asyncio
import signal
import time
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import agentenv
from agentenv import AgentEnv, Message, Task, ToolEnv, register, reward, tool
from agentenv.agent.policy import PolicyAgent
from agentenv.env_server import EnvServer
from agentenv.errors import DeadlineExceeded, EpisodeError, UsageError
from agentenv.evaluate import evaluate, evaluation_groups
from agentenv.player import byte_runner
from agentenv.runner import GroupSpec
from agentenv.trajectory import StopReason
from tests.env_servers import served, server_process, silent_server

DEADLINE_S = 90.0


class Desk(ToolEnv):
    """Breaks in every way that an environment can. Reward: 1.0 for the right word."""

    inline = False

    def setup(self, rng, task):
        self.word = ""
        return f"Say {task.answer or 'anything'}."

    @tool
    def put(self, text: str) -> str:
        """Put a text on the desk.

        Args:
            text: any.
        """
        if text == "raise":
            raise RuntimeError("the tool broke")
        if text == "wait":
            time.sleep(2)
        self.word = text
        return f"{text} lies here"

    @tool
    def look(self) -> str:
        """Say what lies on the desk."""
        return self.word

    @reward
    def right(self) -> float:
        if self.word == "bad reward":
            raise RuntimeError("the reward broke")
        return float(self.word == self.task.answer)


@pytest.fixture(scope="module", autouse=True)
def registered_desk():
    register("tests/ServedDesk-v0", "tests.test_env_server:Desk")


def put(text):
    return agentenv.tool_turn("put", {"text": text}).to_dict()


def played(env, policy, *, seed):
    """Return everything that an environment gave, playing one of its own policies."""
    inner = env.unwrapped
    rng = np.random.default_rng(seed)
    given = [env.reset(seed=seed)]
    is_over = False
    while not is_over:
        turn = inner.oracle() if policy == "oracle" else inner.random_action(rng)
        given.append(env.step(turn.to_dict() if isinstance(turn, Message) else turn))
        is_over = given[-1][2] or given[-1][3]
    return given, rng.random()


@pytest.mark.parametrize(
    ("env_id", "options"),
    [("agentenv/GuessNumber-v0", {}), ("agentenv/Calculator-v0", {}), ("agentenv/Kuhn-v0", {"difficulty": 4})],
)
def test_a_served_environment_gives_what_it_gives_at_home(env_id, options):
    with server_process(env_id) as (url, _):
        away, home = agentenv.make(url, **options), agentenv.make(env_id, **options)
        for seed in range(3):
            for policy in ("oracle", "random"):
                assert played(away, policy, seed=seed) == played(home, policy, seed=seed)
        assert away.reset()[0] == home.reset()[0]  # the next unseeded episode, too
        bare: Any = (away.unwrapped, home.unwrapped)
        assert bare[0].tool_specs == bare[1].tool_specs
        away.close()


async def test_sixty_four_sessions_at_once_play_as_sixty_four_episodes_at_home():
    with server_process("agentenv/Calculator-v0", "--max-sessions", 64) as (url, _):

        async def transcripts(env_id, policy):
            runner = byte_runner(PolicyAgent(policy), max_episodes=64)
            specs = [GroupSpec(group_id=str(seed), env_id=env_id, seed=seed) for seed in range(64)]
            groups = await runner.run_all(specs)
            return [
                ([message.to_dict() for message in t.messages], t.reward, t.stop_reason, t.task_id, len(t.turns))
                for group in groups
                for t in group.trajectories
            ]

        async with asyncio.timeout(DEADLINE_S):
            for policy in ("oracle", "random"):
                away = await transcripts(url, policy)
                assert away == await transcripts("agentenv/Calculator-v0", policy)
                assert len({str(one[0][0]) for one in away}) > 50  # sessions are not each other's


def test_gymnasium_finds_nothing_wrong_with_a_served_environment(recwarn):
    with server_process("agentenv/GuessNumber-v0") as (url, _):
        env = agentenv.make(url)
        check_env(env.unwrapped, skip_render_check=True)
        env.close()
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_a_server_that_is_killed_fails_the_episode_and_does_not_hang():
    with server_process("agentenv/GuessNumber-v0") as (url, process):
        env = agentenv.make_bare(url)
        env.reset(seed=0)
        process.kill()
        process.wait(timeout=30)
        started = time.monotonic()
        with pytest.raises(EpisodeError, match="env failure") as caught:
            env.step("50")
        assert caught.value.side == "env"
        env.close()
        assert time.monotonic() - started < 20


async def test_an_evaluation_counts_a_dead_server_as_failures_of_the_environment():
    with server_process("agentenv/GuessNumber-v0") as (url, process):
        process.kill()
        process.wait(timeout=30)
        runner = byte_runner(PolicyAgent("oracle"))
        groups = evaluation_groups(url, num_episodes=3, seed=0, env_kwargs={})
        async with asyncio.timeout(DEADLINE_S):
            summary, _ = await evaluate(runner, groups, name="dead")
    assert (summary.num_episodes, summary.num_failed, summary.stop_reasons) == (0, 3, {"env_error": 3})


async def test_a_server_that_never_answers_runs_into_the_deadline():
    with silent_server() as url:
        runner = byte_runner(PolicyAgent("oracle"))
        spec = GroupSpec(group_id="0", env_id=url, env_kwargs={"request_timeout_s": 0.3})
        async with asyncio.timeout(DEADLINE_S):
            (trajectory,) = (await runner.run_group(spec)).trajectories
    assert trajectory.stop_reason is StopReason.DEADLINE
    assert "no answer within 0.3 s" in trajectory.error


def test_what_breaks_in_the_environment_keeps_its_side():
    with served("tests/ServedDesk-v0") as server:
        env = agentenv.make_bare(server.url)
        env.reset(seed=0)
        with pytest.raises(EpisodeError, match="the tool broke") as caught:
            env.step(put("raise"))
        assert (caught.value.side, caught.value.where) == ("tool", "put")
        env.reset(seed=0)
        env.step(put("bad reward"))
        with pytest.raises(EpisodeError, match="the reward broke") as caught:
            env.step("done")
        assert caught.value.side == "reward"
        env.close()


def test_a_step_that_hangs_in_the_server_ends_with_its_deadline():
    with served("tests/ServedDesk-v0", request_timeout_s=0.3) as server:
        env = agentenv.make_bare(server.url)
        env.reset(seed=0)
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.3 s"):
            env.step(put("wait"))
        env.close()


def test_a_task_that_is_given_reaches_the_environment_with_its_answer():
    with served("tests/ServedDesk-v0") as server:
        env = agentenv.make_bare(server.url)
        task = Task(task_id="t1", answer="yes", data={"tools": ["put"]})
        assert env.reset(options={"task": task})[0] == "Say yes."
        assert env.task == task
        env.offer_only(["put"])
        assert [spec["function"]["name"] for spec in env.tool_specs] == ["put"]  # type: ignore[index]
        env.step(put("yes"))
        assert env.step("done")[1:3] == (1.0, True)
        assert env.reset(seed=0)[0] == "Say anything."
        assert len(env.tool_specs) == 2
        env.close()


def test_text_that_is_no_unicode_arrives_as_it_was():
    with served("tests/ServedDesk-v0") as server:
        env = agentenv.make_bare(server.url)
        env.reset(seed=0)
        home = Desk()
        home.reset(seed=0)
        assert env.step(put("\ud800 lone")) == home.step(put("\ud800 lone"))
        env.close()


def test_an_option_that_does_not_exist_is_told_with_the_near_miss():
    with served("agentenv/Nim-v0") as server:
        env = agentenv.make_bare(server.url, dificulty=3)
        with pytest.raises(UsageError, match=r'no option "dificulty". Did you mean "difficulty"'):
            env.reset(seed=0)
        env.close()


def test_other_machines_need_a_token(monkeypatch):
    with pytest.raises(UsageError, match="pass a token"):
        EnvServer("agentenv/Nim-v0", host="0.0.0.0")
    token = "a-long-enough-token"
    with served("agentenv/Nim-v0", token=token) as server:
        for wrong in ("", "another-long-token"):
            monkeypatch.setenv("AGENTENV_ENV_TOKEN", wrong)
            env = agentenv.make_bare(server.url)
            with pytest.raises(UsageError, match="token is missing or wrong"):
                env.reset(seed=0)
            env.close()
        monkeypatch.setenv("AGENTENV_ENV_TOKEN", token)
        env = agentenv.make_bare(server.url)
        assert "You are" in env.reset(seed=0)[0]
        env.close()


def test_a_client_waits_for_a_session_and_gives_up_at_its_deadline():
    with served("agentenv/Nim-v0", max_sessions=1) as server:
        first, second = agentenv.make_bare(server.url), agentenv.make_bare(server.url, request_timeout_s=0.4)
        first.reset(seed=0)
        with pytest.raises(EpisodeError, match="all 1 sessions are taken"):
            second.reset(seed=0)
        first.close()
        assert "You are" in second.reset(seed=0)[0]
        second.close()


def test_an_idle_session_is_closed_and_its_place_is_free_again():
    with served("agentenv/Nim-v0", max_sessions=1, idle_timeout_s=0.2) as server:
        env, other = agentenv.make_bare(server.url), agentenv.make_bare(server.url)
        env.reset(seed=0)
        assert "You are" in other.reset(seed=0)[0]  # waits until the first one was idle for too long
        with pytest.raises(EpisodeError, match="no such session"):
            env.step("1 1")
        assert server.sessions.num_reaped >= 1
        env.close()
        other.close()


def test_a_body_that_is_too_long_is_refused():
    with served("tests/ServedDesk-v0", max_body_bytes=1000) as server:
        env = agentenv.make_bare(server.url)
        env.reset(seed=0)
        with pytest.raises(EpisodeError, match="more than 1000 bytes"):
            env.step(put("x" * 1500))
        env.close()


def test_ending_the_server_closes_what_it_holds():
    with server_process("agentenv/Nim-v0") as (url, process):
        env = agentenv.make_bare(url)
        env.reset(seed=0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        env.close()


def test_a_url_is_an_environment_id_for_gymnasium_wrappers_too():
    with served("agentenv/Nim-v0") as server:
        env = agentenv.make(server.url, max_episode_steps=1)
        assert isinstance(env, gymnasium.Wrapper)
        assert isinstance(env.unwrapped, AgentEnv)
        env.reset(seed=0)
        assert env.step("nothing")[3]  # TimeLimit truncates
        env.close()


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="all must be positive"):
        EnvServer("agentenv/Nim-v0", max_sessions=0)
