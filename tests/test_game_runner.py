"""Games between agents: a trajectory per seat, forfeits, failures, and no seat that waits for ever."""

import asyncio
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentenv import make_bare
from agentenv.agent.policy import PolicyAgent
from agentenv.errors import EpisodeError, UsageError
from agentenv.game_env import against_the_script
from agentenv.player import byte_runner
from agentenv.runner import GroupSpec
from agentenv.table import Table
from agentenv.trace import TracingConfig, open_tracing
from agentenv.trajectory import StopReason
from tests.chat_server import chat_server

DEADLINE_S = 60.0


class Leaving(PolicyAgent):
    """Runs out of its budget when it sits in one seat."""

    def __init__(self, seat):
        super().__init__("oracle")
        self.seat = seat

    async def play(self, episode):
        await episode.reset()
        if episode.env.seat != self.seat:  # type: ignore[attr-defined]
            await super().play(episode)
        else:
            episode.begin()
            await episode.truncate(StopReason.MAX_TOKENS)


class Failing(PolicyAgent):
    """Breaks when it sits in one seat, the first few times."""

    def __init__(self, seat, times):
        super().__init__("oracle")
        self.seat, self.left = seat, times

    async def speak(self, episode):
        if episode.env.seat == self.seat and self.left:  # type: ignore[attr-defined]
            self.left -= 1
            raise RuntimeError("the seat broke")
        return await super().speak(episode)


async def play(agent, env_id, *, seeds, size=1, max_episodes=512, max_retries=0, **env_kwargs):
    runner = byte_runner(agent, max_episodes=max_episodes)
    runner.config = runner.config.model_copy(update={"max_retries": max_retries})
    specs = [
        GroupSpec(group_id=str(seed), env_id=f"agentenv/{env_id}-v0", env_kwargs=env_kwargs, seed=seed, size=size)
        for seed in seeds
    ]
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await runner.run_all(specs)
    finally:
        await runner.close()


def said(group):
    return [[message.to_dict() for message in t.messages] for t in group.trajectories]


async def test_every_seat_of_a_game_with_oneself_gives_a_trajectory():
    (group,) = await play(PolicyAgent("oracle"), "Nim", seeds=[3], size=2, opponent="self")
    seats = [(t.member, t.task_id) for t in group.trajectories]
    assert seats == [(0, "first"), (1, "second"), (2, "first"), (3, "second")]
    one, two = group.trajectories[:2]
    assert {one.reward, two.reward} == {0.0, 1.0}
    assert one.stop_reason is two.stop_reason is StopReason.TOOL_STOPPED
    # each seat recorded its own turns, and no other's
    assert sum(len(t.turns) for t in (one, two)) == len([m for t in (one, two) for m in t.messages if m.tool_calls])
    assert all(len(t.sequences) == 1 and t.num_sampled_tokens > 0 for t in (one, two))


@pytest.mark.parametrize("env_id", ["TicTacToe", "ConnectFour", "Nim", "Kuhn", "Negotiation"])
async def test_same_seed_same_games_among_sixty_four_at_once(env_id):
    alone = [(await play(PolicyAgent("random"), env_id, seeds=[seed], size=2, opponent="self"))[0] for seed in (0, 1)]
    together = await play(PolicyAgent("random"), env_id, seeds=range(64), size=2, opponent="self")
    assert [said(group) for group in together[:2]] == [said(group) for group in alone]
    for group in together:
        assert all(t.is_scored and 0.0 <= t.reward <= 1.0 for t in group.trajectories)


async def test_a_seat_hears_in_a_game_what_it_hears_when_the_environment_plays_the_others():
    env: Any = make_bare("agentenv/Nim-v0", opponent="oracle", seat="first")
    observation, _ = env.reset(seed=5)
    heard = [observation]
    while not env.game.is_over:
        heard.append(env.step(env.oracle().to_dict())[0])
    (group,) = await play(PolicyAgent("oracle"), "Nim", seeds=[5], opponent="self")
    first = group.trajectories[0]
    assert [m.content for m in first.messages if m.role != "assistant"] == heard


async def test_two_seats_fit_where_one_episode_does():
    groups = await play(PolicyAgent("random"), "TicTacToe", seeds=range(4), size=3, max_episodes=1, opponent="self")
    assert all(t.is_scored for group in groups for t in group.trajectories)


@pytest.mark.parametrize(("seat", "other"), [("first", "second"), ("second", "first")])
async def test_a_seat_that_runs_out_of_its_budget_gives_up_and_the_other_wins(seat, other):
    groups = await play(Leaving(seat), "Nim", seeds=range(6), opponent="self")
    for group in groups:
        reward = {t.task_id: t.reward for t in group.trajectories}
        assert reward[seat] == 0.0
        # the other one is left out where it never had a turn: nothing that it did won the game
        assert reward.get(other, 1.0) == 1.0
    assert any(len(group.trajectories) == 2 for group in groups) == (seat == "second")


async def test_a_seat_that_breaks_makes_the_game_a_failure_of_all():
    (group,) = await play(Failing("second", times=9), "Nim", seeds=[0], opponent="self")
    assert [t.is_scored for t in group.trajectories] == [False, False]
    assert "seat second failed" in group.trajectories[0].error
    assert "the seat broke" in group.trajectories[1].error


async def test_a_game_that_failed_is_played_again():
    (group,) = await play(Failing("second", times=1), "Nim", seeds=[0], opponent="self", max_retries=1)
    assert [(t.is_scored, t.attempt) for t in group.trajectories] == [(True, 1), (True, 1)]


async def test_an_endpoint_takes_the_other_seats_and_is_not_trained_on():
    requests = []

    def passes(request):
        requests.append(request)
        return {"role": "assistant", "content": "I pass."}

    with chat_server(passes) as url:
        (group,) = await play(PolicyAgent("oracle"), "Nim", seeds=[1], size=3, opponent=f"openai:{url}#some-model")
    assert len(group.trajectories) == 3  # of the policy's seat alone
    assert [t.reward for t in group.trajectories] == [1.0, 1.0, 1.0]  # the endpoint never called the tool
    assert len(requests) >= 9  # three times in each game


def test_an_opponent_that_is_an_agent_needs_a_runner():
    with pytest.raises(UsageError, match=r"'self' is an agent of its own, which needs a runner"):
        make_bare("agentenv/Nim-v0", opponent="self").reset(seed=0)


async def test_an_unknown_opponent_is_a_mistake_of_the_caller():
    with pytest.raises(UsageError, match="there is no player 'selv'"):
        await play(PolicyAgent("oracle"), "Nim", seeds=[0], opponent="selv")


def test_what_plays_itself_is_measured_against_the_script():
    assert against_the_script("agentenv/Nim-v0", {"opponent": "self", "difficulty": 3}) == {
        "opponent": "scripted",
        "difficulty": 3,
    }
    assert against_the_script("agentenv/Nim-v0", {"opponent": "model:x"}) == {"opponent": "model:x"}
    assert against_the_script("agentenv/Wordle-v0", {}) == {}


async def test_whoever_waits_at_a_table_hears_of_a_failure():
    env: Any = make_bare("agentenv/Nim-v0")
    table = Table(env.game)
    env.game.heaps = (1, 2, 3)
    waiting = asyncio.create_task(table.until_turn("second"))
    await asyncio.sleep(0)
    table.leave("first", error="out of memory")
    with pytest.raises(EpisodeError, match="seat first failed: out of memory"):
        await asyncio.wait_for(waiting, DEADLINE_S)


async def test_every_seat_of_a_traced_game_is_an_episode_of_the_trace():
    exporter = InMemorySpanExporter()
    with open_tracing(TracingConfig(), exporter=exporter):
        (group,) = await play(PolicyAgent("oracle"), "Nim", seeds=[3], opponent="self")
    assert all(t.is_scored for t in group.trajectories)
    episodes = [span for span in exporter.get_finished_spans() if span.parent is None]
    assert len(episodes) == 2
