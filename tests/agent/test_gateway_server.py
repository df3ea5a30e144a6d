"""The gateway withstands its clients: hostile bodies, hang-ups, wrong names, many at once."""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentenv.agent.gateway_server import Gateway
from agentenv.engine.scripted import ScriptedEngine
from agentenv.errors import UsageError
from tests.agent.gateways import LOOK, called, new_session, said, served

HELLO: Any = {"role": "user", "content": "Hello."}


async def send(one, body, *, path="/chat/completions", **options) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with httpx.AsyncClient(trust_env=False, timeout=20.0) as client:
        return await client.post(one.endpoint.openai_url + path, content=content, **options)


@pytest.mark.parametrize("path", ["/chat/completions", "/responses", "/messages"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'{"messages": NaN}',
        b'{"messages": ' + b"[" * 100_000,
        b'{"messages": ' + b"9" * 5000 + b"}",
        b'{"model": "\\ud800"}',
        b"{}",
    ],
    ids=["empty", "half", "no-utf8", "list", "null", "nan", "deep", "digits", "surrogate", "nothing"],
)
async def test_a_body_that_cannot_be_read_is_refused_in_words(path, body):
    async with served([said("hi")]) as one:
        answer = await send(one, body, path=path)

        assert answer.status_code == 400
        assert answer.json()["error"]["message"]
        assert one.seen() == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"messages": "Hello."}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "messages[0].tool_calls[0].function"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"n": 1000}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stop": [""]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"model": 3}, "model"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": LOOK}] * 2}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "look"}}}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"logit_bias": {"5": -100}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"functions": [LOOK]}, "functions"),
    ],
)
async def test_a_wrong_or_unsupported_field_is_refused_by_name(change, field):
    async with served([said("hi")]) as one:
        answer = await send(one, {"model": "any", "messages": [HELLO], **change})

        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == field
        assert field in answer.json()["error"]["message"]
        assert one.seen() == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "look", "arguments": "{}"}]}, "input[0].call_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.type"),
    ],
)
async def test_a_wrong_field_of_a_response_is_refused_by_name(change, field):
    async with served([said("hi")]) as one:
        answer = await send(one, {"model": "any", "input": "Hello.", **change}, path="/responses")

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


async def test_what_the_run_decides_is_ignored_and_named():
    async with served([said("hi")]) as one:
        body = {"messages": [HELLO], "temperature": 0.1, "top_p": 0.5, "seed": 3, "user": None, "x\r\nevil: 1": 2}
        answer = await send(one, body)

        assert answer.headers["x-agentenv-ignored"] == "seed, temperature, top_p"
        assert one.engine.exchanges[0].request.sampling.temperature == 1.0


@pytest.mark.parametrize("is_declared", [True, False])
async def test_a_body_past_the_limit_is_refused(is_declared):
    async def chunks():
        for _ in range(15):
            yield b"x" * 100

    gateway = Gateway(max_body_bytes=1000)
    async with served([said("hi")], gateway=gateway) as one, httpx.AsyncClient(trust_env=False) as client:
        content = b"x" * 1500 if is_declared else chunks()
        answer = await client.post(one.endpoint.openai_url + "/chat/completions", content=content)

        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"


async def test_unknown_and_ended_episodes_are_not_found():
    async with served([said("hi")]) as one:
        assert (await send(one, {"messages": [HELLO]})).status_code == 200
        await one.gateway.shut(one.endpoint)
        ended = await send(one, {"messages": [HELLO]})
        async with httpx.AsyncClient(trust_env=False) as client:
            root = one.gateway.root_url
            nobody = await client.post(f"{root}/v1/chat/completions", json={}, headers={"authorization": "Bearer x"})
            nameless = await client.post(f"{root}/v1/chat/completions", json={})
            nowhere = await client.get(f"{root}/favicon.ico")
            wrong_verb = await client.get(f"{root}/e/x/v1/chat/completions")

    assert (ended.status_code, ended.json()["error"]["code"]) == (404, "episode_not_found")
    assert (nobody.status_code, nameless.status_code, nowhere.status_code, wrong_verb.status_code) == (
        404,
        401,
        404,
        405,
    )
    assert all("error" in answer.json() for answer in (nobody, nameless, nowhere, wrong_verb))


async def test_a_token_is_asked_for_in_either_way_of_naming_the_episode():
    token = "a-token-of-some-length"
    async with served([said("hi")], gateway=Gateway(token=token)) as one, httpx.AsyncClient(trust_env=False) as client:
        root, key, body = one.gateway.root_url, one.endpoint.key, {"messages": [HELLO]}
        by_path, by_key = f"{root}/e/{key}/v1/chat/completions", f"{root}/v1/chat/completions"

        async def status(url, shown):
            return (await client.post(url, json=body, headers={"authorization": f"Bearer {shown}"})).status_code

        assert one.endpoint.api_key == f"{token}:{key}"
        assert [await status(by_path, shown) for shown in (token, f"{token}:{key}", key, "x")] == [200, 200, 401, 401]
        assert [await status(by_key, shown) for shown in (token, f"{token}:{key}", key, "x")] == [404, 200, 401, 401]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_a_host_that_others_can_reach_needs_a_token(host):
    with pytest.raises(UsageError, match="token"):
        Gateway(host=host)


@pytest.mark.parametrize("token", ["short", "with a space in it....", "with:a:colon.........", "ümläute-are-no-good"])
def test_a_weak_or_unusable_token_is_refused(token):
    with pytest.raises(UsageError, match="token"):
        Gateway(host="0.0.0.0", token=token)


def test_a_missing_package_is_named_with_its_remedy_and_nothing_needs_it_before():
    code = """
import sys
sys.modules["uvicorn"] = None  # as if it were not installed
from agentenv.agent.gateway import GatewayAgent
from agentenv.errors import UsageError
assert not {"starlette", "openai", "torch"} & set(sys.modules)
try:
    GatewayAgent(["true"])
except UsageError as error:
    print(error)
"""
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True)
    assert 'pip install "agentenv[gateway]"' in ran.stdout


async def test_a_port_that_is_taken_is_the_callers_mistake():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        gateway = Gateway(port=taken.getsockname()[1])
        with pytest.raises(UsageError, match="another port"):
            await gateway.start()
    await gateway.close()


async def test_closing_twice_stops_listening_once():
    gateway = Gateway()
    await gateway.start()
    await asyncio.gather(gateway.close(), gateway.close())
    await gateway.close()

    with pytest.raises(httpx.ConnectError):
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get(gateway.root_url)


def test_a_loop_that_ends_takes_its_gateway_along(caplog):
    gateway = Gateway()
    asyncio.run(gateway.start())

    assert caplog.text == ""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", gateway.port)) != 0


async def hang_up(one, body, *, read=b""):
    """Send a request, read until something comes or at once, and close the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", one.gateway.port)
    content = json.dumps(body).encode()
    path = one.endpoint.openai_url.removeprefix(one.gateway.root_url)
    writer.write(
        f"POST {path}/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
    )
    await writer.drain()
    if read:
        await reader.readuntil(read)
    else:
        await until(lambda: bool(one.endpoint.running))
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def until(condition, *, timeout_s=10.0):
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("body", [{"stream": True}, {"stream": False}, {"n": 3}], ids=["stream", "whole", "choices"])
async def test_a_client_that_hangs_up_cancels_the_generation_and_nothing_is_recorded(body):
    async with served([said("late"), said("again")], latency_s=30.0) as one:
        await hang_up(one, {"messages": [HELLO], **body})

        await until(lambda: not one.endpoint.running)
        assert (await one.engine.health()).num_running == 0
        assert one.recorded() == []
        one.engine.latency_s = 0.0
        assert (await send(one, {"messages": [HELLO]})).status_code == 200


async def test_a_client_that_hangs_up_inside_a_stream_leaves_the_turn_recorded():
    text = "x" * 40_000  # more than the buffers between take at once
    async with served([said(text)]) as one:
        limits = {"max_turn_tokens": 50_000}
        one.session.episode.limits = one.session.episode.limits.model_copy(update=limits)
        await hang_up(one, {"messages": [HELLO], "stream": True}, read=b"data: ")

        await until(lambda: not one.endpoint.running)
        assert one.recorded() == one.seen()
        assert (await send(one, {"messages": [HELLO]})).status_code == 200


async def test_a_turn_that_takes_too_long_is_given_up():
    async with served([said("late")], gateway=Gateway(request_timeout_s=0.1), latency_s=30.0) as one:
        answer = await send(one, {"messages": [HELLO]})

        assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")
        assert (await one.engine.health()).num_running == 0


async def test_shutting_an_episode_answers_the_calls_in_flight():
    async with served([said("late")], latency_s=30.0) as one:
        asking = asyncio.create_task(send(one, {"messages": [HELLO]}))
        await until(lambda: bool(one.endpoint.running))
        await one.gateway.shut(one.endpoint)

        assert (await asking).status_code == 404


async def test_many_episodes_at_once_do_not_mix():
    num_episodes, num_turns = 64, 3
    engine = ScriptedEngine(lambda r: said(f"{r.session_id} {r.turn}"), latency_s=0.005, keep_exchanges=True)
    gateway = Gateway()
    await gateway.start()
    try:
        pairs = [await new_session(engine, seed=seed) for seed in range(num_episodes)]
        endpoints = [gateway.open(session, opening=opening) for session, opening in pairs]
        limits = httpx.Limits(max_connections=None)

        async with httpx.AsyncClient(trust_env=False, limits=limits, timeout=60.0) as client:

            async def converse(endpoint):
                messages = [HELLO]
                for _ in range(num_turns):
                    url = endpoint.openai_url + "/chat/completions"
                    answer = (await client.post(url, json={"messages": messages})).json()
                    messages += [answer["choices"][0]["message"], {"role": "user", "content": "And?"}]
                return [message["content"] for message in messages if message["role"] == "assistant"]

            told = await asyncio.gather(*map(converse, endpoints))
    finally:
        await gateway.close()

    for (session, _), texts in zip(pairs, told, strict=True):
        name = session.episode.session_id
        assert texts == [f"{name} {turn}" for turn in range(num_turns)]
        (sequence,) = session.episode.recorder.sequences()
        last = [e for e in engine.exchanges if e.request.session_id == name][-1]
        assert sequence.token_ids.tolist() == [*last.request.prompt_ids, *last.completion.token_ids]


# the environment's tools


async def ask_tool(one, name, arguments, **options):
    return await send(one, arguments, path=f"/tools/{name}", **options)


async def guess(one, number):
    """Let the model guess; returns the id of its call."""
    tools = list(one.session.episode.tools)
    turn = (await send(one, {"messages": [HELLO], "tools": tools})).json()
    (call,) = turn["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"number": number}
    return call["id"]


@pytest.mark.parametrize("way", ["header", "query", "body", "content"])
async def test_a_call_of_the_model_is_run_by_the_environment_and_judges_its_turn(way):
    async with served([called("guess", number=1), said("x")]) as one:
        call_id = await guess(one, 1)
        if way == "header":
            answer = await ask_tool(one, "guess", {}, headers={"x-call-id": call_id})
        elif way == "query":
            answer = await ask_tool(one, "guess", b"", params={"call_id": call_id})
        elif way == "body":
            answer = await ask_tool(one, "guess", {"number": 1, "call_id": call_id})
        else:
            answer = await ask_tool(one, "guess", {"number": 1})

        assert answer.json()["message"]["content"].startswith("higher 2")
        assert answer.json()["message"]["tool_call_id"] == call_id
        assert answer.json()["is_over"] is False
        assert one.session.episode.env.num_turns == 1


async def test_a_result_is_given_again_by_its_id_and_the_call_is_run_once():
    async with served([called("guess", number=1)]) as one:
        call_id = await guess(one, 1)
        options = {"headers": {"x-call-id": call_id}}
        first, second = await asyncio.gather(*(ask_tool(one, "guess", {}, **options) for _ in range(2)))

        assert first.json() == second.json()
        assert one.session.episode.env.num_turns == 1


async def test_calls_that_the_model_did_not_make_are_refused():
    async with served([called("guess", number=1)]) as one:
        early = await ask_tool(one, "guess", {"number": 1})
        call_id = await guess(one, 1)
        headers = {"x-call-id": call_id}
        refused = [
            early,
            await ask_tool(one, "guess", {"number": 2}),
            await ask_tool(one, "look", {"number": 1}),
            await ask_tool(one, "guess", {"number": 2}, headers=headers),
            await ask_tool(one, "look", {}, headers=headers),
            await ask_tool(one, "guess", {}, headers={"x-call-id": "call_9_9"}),
        ]
        assert [answer.status_code for answer in refused] == [409] * 6
        assert one.session.episode.env.num_turns == 0
        assert (await ask_tool(one, "guess", {"number": 1})).status_code == 200
        assert (await ask_tool(one, "guess", {"number": 1})).status_code == 409  # it was answered already


async def test_who_no_longer_waits_for_a_result_does_not_stop_the_environment_in_the_middle_of_a_step():
    async with served([called("guess", number=1)]) as one:
        call_id = await guess(one, 1)
        waiting = asyncio.create_task(one.endpoint.desk.result("guess", {}, call_id=call_id))
        await asyncio.sleep(0)  # it begins
        waiting.cancel()
        again = await ask_tool(one, "guess", {}, headers={"x-call-id": call_id})

        assert again.json()["message"]["content"].startswith("higher 2")
        assert one.session.episode.env.num_turns == 1
