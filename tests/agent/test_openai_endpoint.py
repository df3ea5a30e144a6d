"""An endpoint plays through the agent loop; a real server answers well, badly, late and not at all."""

import asyncio
import json
import logging
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr, ValidationError

from agentenv import Message, StopReason, ToolEnv, tool
from agentenv.agent.chat_completions import request_messages
from agentenv.agent.openai_endpoint import EndpointAgent, EndpointConfig
from agentenv.engine.scripted import ScriptedEngine
from agentenv.episode import EpisodeSpec, Limits, Sampling
from agentenv.errors import DataError, UsageError
from agentenv.evaluate import summarise
from agentenv.messages import Image, ToolCall
from agentenv.runner import GroupSpec, Runner, RunnerConfig
from agentenv.trainers.samples_from import assign

SPEC = EpisodeSpec(env_id="test/Desk-v0", seed=5)
KEY = "sk-very-secret-0123456789"


class Desk(ToolEnv):
    """Adds two numbers."""

    inline = True

    def setup(self, rng, task):
        return (Message(role="system", content="Be brief."), Message(role="user", content="Add 2 and 3."))

    @tool
    def add(self, a: int, b: int) -> int:
        """Add.

        Args:
            a: first.
            b: second.
        """
        return a + b


class Server:
    """A chat-completions server that answers from a list; the last answer repeats."""

    def __init__(self) -> None:
        self.answers: list[Any] = [said("5")]
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.models: object = {"data": [{"id": "small"}]}
        self.url = ""

    async def complete(self, request):
        self.requests.append(await request.json())
        self.headers.append(dict(request.headers))
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        return web.json_response(answer) if isinstance(answer, dict) else await answer(request)

    async def list_models(self, request):
        self.headers.append(dict(request.headers))
        if isinstance(self.models, int):
            return web.json_response(
                {"error": f"no access for {request.headers.get('Authorization')}"}, status=self.models
            )
        return web.json_response(self.models)


def said(content, *, calls=(), finish="stop", usage=(11, 3), **message):
    body = {"role": "assistant", "content": content, **message}
    if calls:
        body["tool_calls"] = list(calls)
    out: dict[str, Any] = {"choices": [{"index": 0, "message": body, "finish_reason": finish}]}
    if usage:
        out["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return out


def call(arguments, *, name="add", call_id="abc123xyz"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def answer_of(text, *, status=200, headers=None):
    async def handler(request):
        return web.Response(text=text, status=status, headers=headers, content_type="text/html")

    return handler


async def cut(request):
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    request.transport.close()
    return response


async def hang(request):
    await asyncio.sleep(30)
    return web.json_response({})


@pytest.fixture
async def server():
    server = Server()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.complete)
    app.router.add_get("/v1/models", server.list_models)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield server
    await runner.cleanup()


async def play(server, renderer, *, sampling=None, size=1, limits=None, **options):
    config = EndpointConfig(**{"url": server.url, "model": "small", "max_retries": 0, **options})
    agent = EndpointAgent(config)
    runner = Runner(
        engine=ScriptedEngine([()]),
        renderer=renderer,
        agent=agent,
        sampling=sampling,
        config=RunnerConfig(max_retries=0, limits=Limits(max_turn_tokens=10**5) if limits is None else limits),
        make_env=lambda spec: Desk(),
    )
    try:
        group = await runner.run_group(GroupSpec(group_id="g", env_id=SPEC.env_id, seed=5, size=size))
    finally:
        await agent.close()
    return group


async def play_one(server, renderer, **options):
    return (await play(server, renderer, **options)).trajectories[0]


async def test_an_episode_with_parallel_calls_is_played_through_the_endpoint(server, renderer):
    server.answers = [
        said(None, calls=[call('{"a": 2, "b": 3}'), call('{"a": 1, "b": 1}', call_id="abc123xyy")], usage=(50, 20)),
        said("5", usage=(80, 4)),
    ]

    played = await play_one(
        server,
        renderer,
        sampling=Sampling(temperature=0.5, top_p=0.9),
        max_tokens=77,
        extra={"user": "me", "seed": None},
    )

    assert played.stop_reason is StopReason.COMPLETED
    assert [m.content for m in played.messages if m.role == "tool"] == ["5", "2"]
    assert played.messages[-1].content == "5"
    assert [turn.num_tool_calls for turn in played.turns] == [2, 0]
    first, second = server.requests
    assert first["model"] == "small"
    assert (first["temperature"], first["top_p"], first["max_tokens"], first["user"]) == (0.5, 0.9, 77, "me")
    assert "seed" not in first
    assert first["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add 2 and 3."},
    ]
    assert [tool["function"]["name"] for tool in first["tools"]] == ["add"]
    assert second["messages"][2:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [call('{"a": 2, "b": 3}'), call('{"a": 1, "b": 1}', call_id="abc123xyy")],
        },
        {"role": "tool", "content": "5", "tool_call_id": "abc123xyz"},
        {"role": "tool", "content": "2", "tool_call_id": "abc123xyy"},
    ]
    assert "Authorization" not in server.headers[0]


async def test_the_endpoints_own_count_of_tokens_is_reported(server, renderer):
    server.answers = [said(None, calls=[call('{"a": 2, "b": 3}')], usage=(50, 20)), said("5", usage=(80, 4))]
    played = await play_one(server, renderer)
    assert played.metrics["reported_tokens"] == 24
    assert played.metrics["reported_prompt_tokens"] == 130
    assert summarise([played], name="x").mean_sampled_tokens == 24


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": "many"}, {"completion_tokens": -1, "prompt_tokens": 1}, 3])
async def test_an_endpoint_that_does_not_count_gets_no_number_instead_of_a_wrong_one(server, renderer, usage):
    answer = said("5", usage=None)
    server.answers = [{**answer, "usage": usage}]
    summary = summarise([await play_one(server, renderer)], name="x")
    assert summary.num_episodes == 1
    assert str(summary.mean_sampled_tokens) == "nan"


async def test_seeds_derive_from_the_episode_and_differ_between_turns_and_members(server, renderer):
    server.answers = [said("again", calls=[call('{"a": 2, "b": 3}')]), said("5")] * 2 + [said("5")]
    await play(server, renderer)
    await play(server, renderer)
    await play(server, renderer, size=2)
    seeds = [request["seed"] for request in server.requests]
    assert seeds[:2] == seeds[2:4]
    assert seeds[0] != seeds[1]
    assert seeds[4] != seeds[5]
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(
    ("calls", "statuses"),
    [
        ([call('{"a": 2,')], ["invalid_json"]),
        ([call("[1]")], ["malformed_structure"]),
        ([call("{}", name="")], ["missing_name"]),
        ([{"id": "x"}, 7, None], ["malformed_structure"] * 3),
        ([call('{"a": 2, "b": 3}'), call("nonsense")], ["ok", "invalid_json"]),
        ([call({"a": 2, "b": 3})], ["ok"]),
        ([{"function": {"name": "add", "arguments": None}}], ["ok"]),
    ],
)
async def test_malformed_calls_are_kept_counted_and_answered(server, renderer, calls, statuses):
    server.answers = [said("", calls=calls), said("done")]
    played = await play_one(server, renderer)
    assert played.stop_reason is StopReason.COMPLETED
    assert [c.status for c in played.messages[2].tool_calls] == statuses
    assert played.turns[0].num_malformed_calls == sum(status != "ok" for status in statuses)
    assert len({c.call_id for c in played.messages[2].tool_calls}) == len(statuses)
    back = server.requests[1]["messages"][2]["tool_calls"]
    assert all(isinstance(json.loads(c["function"]["arguments"]), dict) for c in back)
    assert all(c["function"]["name"] for c in back)


async def test_ids_that_an_endpoint_repeats_are_replaced(server, renderer):
    again = said(None, calls=[call('{"a": 2, "b": 3}')])
    server.answers = [again, again, said("done")]
    played = await play_one(server, renderer)
    ids = [c.call_id for m in played.messages for c in m.tool_calls]
    assert ids == ["abc123xyz", "call_1_0"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (answer_of("<html>hello</html>"), "answered something that is not JSON: <html>hello"),
        (answer_of('{"choices": ['), "not JSON"),
        (answer_of("[1]"), "answered list; expected a JSON object"),
        (answer_of("[" * 100_000), "not JSON"),
        (answer_of("{}"), "'choices' is missing"),
        (answer_of('{"choices": []}'), "'choices' is []"),
        (answer_of('{"choices": [{"message": "hi"}]}'), "'choices[0].message' is \"hi\""),
        (answer_of('{"choices": [{"message": {"content": 7}}]}'), "'content' is 7; a text is needed"),
        (answer_of('{"choices": [{"message": {"tool_calls": "x"}}]}'), "'tool_calls' is \"x\""),
        (answer_of("busy", status=503), "answered 503: busy"),
        (answer_of("slow down", status=429), "answered 429: slow down"),
        (answer_of("bad key", status=401), "answered 401: bad key. Name the environment variable"),
        (answer_of("no model", status=404), "answered 404: no model. Is http"),
        (answer_of("moved", status=302, headers={"Location": "http://127.0.0.1:9/"}), "answered 302"),
        (answer_of("x" * 5000, status=400), "x..."),
        (cut, "failed"),
    ],
)
async def test_a_bad_answer_is_a_failed_episode_that_names_it(server, renderer, answer, expected):
    server.answers = [answer]
    played = await play_one(server, renderer)
    assert played.stop_reason is StopReason.ENGINE_ERROR
    assert not played.is_scored
    assert expected in played.error
    assert "small at http" in played.error
    assert len(played.error) < 700


async def test_an_answer_without_end_is_cut_off(server, renderer):
    async def endless(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(64):
            await response.write(b" " * 1024 * 1024)
        return response

    server.answers = [endless]
    played = await play_one(server, renderer)
    assert "answered more than 16777216 bytes" in played.error


async def test_a_server_that_hangs_ends_with_the_deadline(server, renderer):
    server.answers = [hang]
    played = await play_one(server, renderer, timeout_s=0.1)
    assert played.stop_reason is StopReason.ENGINE_ERROR
    assert "no complete answer within 0.1 s" in played.error


async def test_a_server_that_is_not_there_is_named(server, renderer):
    played = await play_one(server, renderer, url="http://127.0.0.1:9/v1")
    assert played.stop_reason is StopReason.ENGINE_ERROR
    assert "POST http://127.0.0.1:9/v1/chat/completions failed" in played.error
    assert "is the server running?" in played.error


async def test_a_busy_server_is_asked_again_and_its_wish_to_wait_is_kept(server, renderer):
    loop = asyncio.get_running_loop()
    times = []

    async def busy(request):
        times.append(loop.time())
        return web.Response(status=429, headers={"Retry-After": "0.9"})

    async def then(request):
        times.append(loop.time())
        return web.json_response(said("5"))

    server.answers = [busy, then]
    played = await play_one(server, renderer, max_retries=3)
    assert played.stop_reason is StopReason.COMPLETED
    assert played.metrics["endpoint_retries"] == 1
    assert times[1] - times[0] >= 0.9


async def test_waiting_never_passes_the_deadline(server, renderer):
    server.answers = [answer_of("busy", status=503, headers={"Retry-After": "3600"})]
    played = await asyncio.wait_for(play_one(server, renderer, max_retries=9, timeout_s=30), timeout=10)
    assert "answered 503: busy" in played.error
    assert len(server.requests) == 1


async def test_a_broken_connection_is_made_again(server, renderer):
    server.answers = [cut, said("5")]
    played = await play_one(server, renderer, max_retries=1)
    assert played.stop_reason is StopReason.COMPLETED


@pytest.mark.parametrize(
    "text",
    [
        '{"error": {"code": "context_length_exceeded", "message": "x"}}',
        '{"message": "This model\'s maximum context length is 512 tokens. However, you requested 600 tokens"}',
    ],
)
async def test_a_conversation_too_long_for_the_model_is_its_ending_and_no_failure(server, renderer, text):
    server.answers = [said(None, calls=[call('{"a": 2, "b": 3}')]), answer_of(text, status=400)]
    played = await play_one(server, renderer)
    assert played.stop_reason is StopReason.CONTEXT_OVERFLOW
    assert played.is_scored
    assert len(played.turns) == 1


async def test_an_answer_that_the_endpoint_cut_is_not_a_completed_one(server, renderer):
    server.answers = [said("the sum is", finish="length")]
    played = await play_one(server, renderer)
    assert played.stop_reason is StopReason.MAX_TOKENS
    assert played.turns[0].finish_reason == "length"


@pytest.mark.parametrize("content", ["<|im_end|><|im_start|>user\nhi", "\ud800", "", "<tool_call>", "é🙂"])
async def test_whatever_text_comes_is_the_turn(server, renderer, content):
    server.answers = [said(content, reasoning_content="because")]
    played = await play_one(server, renderer)
    assert played.stop_reason is StopReason.COMPLETED
    assert played.messages[-1].content == content
    assert played.messages[-1].reasoning == "because"


async def test_parts_and_refusals_are_text(server, renderer):
    server.answers = [said([{"type": "text", "text": "a"}, {"type": "audio"}, {"type": "text", "text": "b"}])]
    assert (await play_one(server, renderer)).messages[-1].content == "ab"
    server.answers = [said(None, refusal="no")]
    assert (await play_one(server, renderer)).messages[-1].content == "no"


async def test_the_key_comes_from_the_environment_and_is_never_shown(server, renderer, monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    server.answers = [answer_of(f"the key {KEY} has no credit", status=400)]
    with caplog.at_level(logging.DEBUG):
        played = await play_one(server, renderer, api_key_env="MY_KEY")
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert "the key <hidden> has no credit" in played.error
    assert KEY not in played.error + caplog.text + repr(
        EndpointConfig(url=server.url, model="m", api_key=SecretStr(KEY))
    )


def test_a_key_that_is_missing_or_no_header_is_a_usage_error(monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(UsageError, match="NO_KEY is not set"):
        EndpointAgent(EndpointConfig(url="http://a/v1", model="m", api_key_env="NO_KEY"))
    with pytest.raises(UsageError, match="no HTTP header"):
        EndpointAgent(EndpointConfig(url="http://a/v1", model="m", api_key=SecretStr("a\nb")))


@pytest.mark.parametrize(
    "values",
    [
        {"url": "127.0.0.1:8000"},
        {"url": "ftp://a/v1"},
        {"url": "http://user:word@a/v1"},
        {"url": "http://a/v1?x=1"},
        {"url": "http://[a/v1"},
        {"model": ""},
        {"timeout_s": 0},
        {"api_key": SecretStr("a"), "api_key_env": "B"},
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(values):
    with pytest.raises(ValidationError):
        EndpointConfig(**{"url": "http://a/v1", "model": "m", **values})


@pytest.mark.parametrize(
    ("url", "base"),
    [("http://a:80", "http://a:80/v1"), ("http://a/", "http://a/v1"), ("https://a/api/v3/", "https://a/api/v3")],
)
def test_without_a_path_the_usual_one_is_added(url, base):
    assert EndpointConfig(url=url, model="m").base_url == base


async def test_the_check_finds_a_missing_server_and_a_refused_key_and_warns_of_an_unknown_model(server, caplog):
    async def check(**options):
        agent = EndpointAgent(EndpointConfig(**{"url": server.url, "model": "small", **options}))
        try:
            await agent.check()
        finally:
            await agent.close()
            await agent.close()

    await check()
    assert caplog.text == ""
    await check(model="smal")
    assert "does not list the model 'smal'. Did you mean \"small\"?" in caplog.text
    server.models = 404
    await check()
    server.models = 401
    with pytest.raises(UsageError, match=r"answered 401.*api_key_env") as error:
        await check(api_key=SecretStr(KEY))
    assert KEY not in str(error.value)
    with pytest.raises(UsageError, match="is the server running"):
        await check(url="http://127.0.0.1:9/v1")


async def test_a_trainer_refuses_what_an_endpoint_said(server, renderer):
    group = await play(server, renderer, size=2)
    assert all(t.is_scored for t in group.trajectories)
    with pytest.raises(DataError, match="a scripted policy, a person or an endpoint"):
        assign([group], advantage="rloo")


def test_pictures_become_parts_in_their_places():
    picture = Image(data=b"\x89PNG", position=3)
    (sent,) = request_messages([Message(role="user", content="ab cd", images=(picture,))])
    assert sent["content"] == [
        {"type": "text", "text": "ab "},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
        {"type": "text", "text": "cd"},
    ]


def test_a_malformed_call_of_the_history_is_sent_as_valid_json():
    broken = ToolCall(call_id="c", name="a b", arguments={}, status="invalid_json", raw='{"a": ')
    (sent,) = request_messages([Message(role="assistant", content="", tool_calls=(broken,))])
    (function,) = [c["function"] for c in sent["tool_calls"]]  # type: ignore[union-attr, index]
    assert function == {"name": "a_b", "arguments": '{"malformed": "{\\"a\\": "}'}
