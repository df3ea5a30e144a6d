"""Anthropic messages over raw HTTP: turns come back as the same history, and a stream is the answer in pieces."""

import json
from typing import Any

import httpx
import pytest

from agentenv.agent.gateway_server import Gateway
from tests.agent.gateways import LOOK, MALFORMED, WIDE, called, called_twice, said, served

TOOLS: Any = [{"name": "look", "description": "Look.", "input_schema": LOOK["parameters"]}]
HELLO: Any = {"role": "user", "content": "Hello."}


async def post(one, messages, **options) -> Any:
    body = {"model": "any", "max_tokens": 500, "messages": messages, **options}
    headers = {"x-api-key": one.endpoint.api_key, "anthropic-version": "2023-06-01"}
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(f"{one.endpoint.anthropic_url}/v1/messages", json=body, headers=headers)


def results(message):
    """Return the user message that answers every call."""
    calls = [block for block in message["content"] if block["type"] == "tool_use"]
    blocks = [{"type": "tool_result", "tool_use_id": call["id"], "content": "blue"} for call in calls]
    return {"role": "user", "content": blocks}


@pytest.mark.parametrize("turn", [called_twice(), called("look", n=1), MALFORMED], ids=["parallel", "one", "malformed"])
async def test_the_blocks_of_a_turn_come_back_as_the_same_history(turn):
    async with served([turn, said("done")]) as one:
        options = {"tools": TOOLS, "system": [{"type": "text", "text": "Be brief.", "cache_control": {}}]}
        first = (await post(one, [HELLO], **options)).json()
        back = {"role": "assistant", "content": first["content"]}
        second = (await post(one, [HELLO, back, results(first)], **options)).json()

        assert first["stop_reason"] == "tool_use"
        assert second["content"] == [{"type": "text", "text": "done"}]
        assert second["stop_reason"] == "end_turn"
        assert one.recorded() == [one.seen()[1]]
        # "done" is four letters and a stop id
        usage = second["usage"]
        assert (usage["input_tokens"], usage["output_tokens"]) == (len(one.seen()[1]) - 5, 5)


async def test_a_malformed_call_is_an_object_that_no_tool_takes_for_its_arguments():
    async with served([MALFORMED]) as one:
        first = (await post(one, [HELLO], tools=TOOLS)).json()

    assert [block["input"] for block in first["content"]] == [{"malformed_arguments": "[1]"}]


async def test_results_and_text_of_a_user_message_are_messages_of_their_own_in_order():
    async with served([called("look", n=1), said("done")]) as one:
        first = (await post(one, [HELLO], tools=TOOLS)).json()
        answer = results(first)
        answer["content"].append({"type": "text", "text": "And now?"})
        await post(one, [HELLO, {"role": "assistant", "content": first["content"]}, answer], tools=TOOLS)

        roles = [message.role for message in one.session.episode.conversation]
        assert roles == ["user", "assistant", "tool", "user"]
        assert len(one.recorded()) == 1


@pytest.mark.parametrize(
    ("turn", "options", "reason", "sequence"),
    [
        (said("long"), {"max_tokens": 2}, "max_tokens", None),
        (said("a STOP b"), {"stop_sequences": ["STOP"]}, "stop_sequence", "STOP"),
        (called("look", n=1), {"tools": TOOLS}, "tool_use", None),
        (said("fine"), {}, "end_turn", None),
    ],
)
async def test_the_reason_says_how_the_turn_ended(turn, options, reason, sequence):
    async with served([turn]) as one:
        answer = (await post(one, [HELLO], **options)).json()

    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, sequence)


async def test_the_events_of_a_stream_build_up_the_answer():
    turn = called("look", content="word " * 40, n=1)
    async with served([turn, turn]) as one:
        whole = (await post(one, [HELLO], tools=TOOLS)).json()
        text = (await post(one, [HELLO], tools=TOOLS, stream=True)).text

    names = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert names == [event["type"] for event in events]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    blocks: list[Any] = []
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append(dict(event["content_block"], json=""))
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            if delta["type"] == "text_delta":
                blocks[event["index"]]["text"] += delta["text"]
            else:
                blocks[event["index"]]["json"] += delta["partial_json"]
    said_block, call_block = blocks
    assert said_block["text"] == whole["content"][0]["text"]
    assert json.loads(call_block["json"]) == whole["content"][1]["input"]
    assert call_block["name"] == "look"
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"]["output_tokens"] == len(turn)


async def test_a_full_context_is_said_in_the_words_that_programs_know():
    async with served([said("hi")], limits=WIDE.model_copy(update={"max_context_tokens": 8})) as one:
        answer = await post(one, [HELLO])

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["message"].startswith("prompt is too long")


async def test_an_unknown_episode_and_a_wrong_token_have_the_shape_of_the_api():
    gateway = Gateway(token="a-token-of-some-length")
    async with served([said("hi")], gateway=gateway) as one, httpx.AsyncClient(trust_env=False) as client:
        url = f"{one.gateway.root_url}/e/nobody/v1/messages"
        unknown = await client.post(url, json={}, headers={"x-api-key": "a-token-of-some-length"})
        refused = await client.post(f"{one.endpoint.anthropic_url}/v1/messages", json={}, headers={"x-api-key": "no"})

    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")


async def test_a_turn_that_fails_after_the_stream_began_ends_it_with_an_error_event():
    gateway = Gateway(keep_alive_s=0.02, request_timeout_s=0.1)
    async with served([said("late")], gateway=gateway, latency_s=5.0) as one:
        answer = await post(one, [HELLO], stream=True)

        assert answer.status_code == 200
        assert answer.text.startswith(": still sampling\n\n")
        assert answer.text.rstrip().splitlines()[-2] == "event: error"
        assert (
            json.loads(answer.text.rstrip().splitlines()[-1].removeprefix("data: "))["error"]["type"] == "timeout_error"
        )
        assert one.recorded() == []
