"""The real OpenAI client plays through the gateway, and what the engine saw is what is recorded."""

import asyncio
import json
from typing import Any

import openai
import pytest

from agentenv.agent.gateway_server import Gateway
from agentenv.engine.scripted import Faults
from tests.agent.gateways import (
    CHAT_TOOLS,
    LOOK,
    MALFORMED,
    RENDERER,
    WIDE,
    called,
    called_twice,
    said,
    served,
    written,
)

HELLO: Any = {"role": "user", "content": "Hello."}


def client_of(one, **options) -> Any:
    return openai.AsyncOpenAI(base_url=one.endpoint.openai_url, api_key=one.endpoint.api_key, max_retries=0, **options)


async def chat(one, messages, **options) -> Any:
    async with client_of(one) as client:
        return await client.chat.completions.create(model="any", messages=messages, **options)


async def test_a_conversation_is_one_sequence_of_the_ids_that_were_sampled():
    odd = written("  AB ")  # the program sees it without the spaces
    async with served([odd, said("C")]) as one:
        first = (await chat(one, [HELLO])).choices[0]
        await chat(one, [HELLO, first.message.to_dict(), {"role": "user", "content": "And?"}])

        assert (first.message.content, first.finish_reason) == ("AB", "stop")
        assert one.recorded() == [one.seen()[1]]
        assert one.seen()[1][: len(one.seen()[0])] == one.seen()[0]


async def test_parallel_calls_come_back_as_the_same_history():
    async with served([called_twice(), said("done")]) as one:
        turn = (await chat(one, [HELLO], tools=CHAT_TOOLS)).choices[0]
        calls: Any = turn.message.tool_calls or []
        results = [{"role": "tool", "tool_call_id": call.id, "content": "blue"} for call in calls]
        await chat(one, [HELLO, turn.message.to_dict(), *results], tools=CHAT_TOOLS)

        assert turn.finish_reason == "tool_calls"
        assert [json.loads(call.function.arguments) for call in calls] == [{"n": 1}, {"n": 2}]
        assert len({call.id for call in calls}) == 2
        assert one.recorded() == [one.seen()[1]]


async def test_a_malformed_call_reaches_the_program_as_it_was_written_and_comes_back_as_the_same_history():
    async with served([MALFORMED, said("sorry")]) as one:
        turn = (await chat(one, [HELLO], tools=CHAT_TOOLS)).choices[0].message
        (call,) = turn.tool_calls or []
        result = {"role": "tool", "tool_call_id": call.id, "content": "Error: not an object"}
        await chat(one, [HELLO, turn.to_dict(), result], tools=CHAT_TOOLS)

        assert (call.function.name, call.function.arguments) == ("look", "[1]")
        assert one.recorded() == [one.seen()[1]]
        assert one.session.episode.recorder.turns()[0].num_malformed_calls == 1


async def test_an_edited_malformed_call_is_a_rewritten_history():
    async with served([MALFORMED, said("sorry")]) as one:
        turn = (await chat(one, [HELLO], tools=CHAT_TOOLS)).choices[0].message.to_dict()
        turn["tool_calls"][0]["function"]["arguments"] = '{"n": 1}'
        call_id = turn["tool_calls"][0]["id"]
        await chat(one, [HELLO, turn, {"role": "tool", "tool_call_id": call_id, "content": "x"}], tools=CHAT_TOOLS)

        assert len(one.recorded()) == 2


async def test_two_calls_from_one_point_are_branches_that_share_their_beginning():
    async with served([said("root"), said("left"), said("right")]) as one:
        root = (await chat(one, [HELLO])).choices[0].message.to_dict()
        await chat(one, [HELLO, root, {"role": "user", "content": "left?"}])
        await chat(one, [HELLO, root, {"role": "user", "content": "right?"}])

        assert one.recorded() == one.seen()[1:]


async def test_choices_are_turns_of_their_own_seed():
    async with served(lambda request: said(f"choice {request.index}")) as one:
        answer = await chat(one, [HELLO], n=3)

        assert sorted(c.message.content or "" for c in answer.choices) == ["choice 0", "choice 1", "choice 2"]
        assert sorted(one.recorded()) == sorted(one.seen())
        assert len({exchange.request.sampling.seed for exchange in one.engine.exchanges}) == 3
        prompt = len(one.engine.exchanges[0].request.prompt_ids)
        usage = answer.usage
        assert usage is not None
        # every text is 8 letters and a stop id
        assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, 3 * 9)


async def test_stop_strings_cut_the_text_and_neither_the_ids_nor_the_history():
    turn = said("Thought: look.\nObservation: made up")
    async with served([turn, said("fine")]) as one:
        first = (await chat(one, [HELLO], stop=["\nObservation:"])).choices[0]
        await chat(one, [HELLO, first.message.to_dict(), {"role": "user", "content": "Observation: 3"}])

        assert (first.message.content, first.finish_reason) == ("Thought: look.", "stop")
        assert one.recorded() == [one.seen()[1]]
        first_turn = one.session.episode.recorder.turns()[0]
        assert tuple(one.recorded()[0][first_turn.start : first_turn.end]) == turn


async def test_log_probs_and_token_ids_are_those_of_the_record():
    async with served([said("hé")], logprob=-0.25) as one:
        answer = await chat(one, [HELLO], logprobs=True, extra_body={"return_token_ids": True})

        choice = answer.choices[0]
        assert choice.logprobs is not None
        content = choice.logprobs.content or []
        # h, and the two bytes of é, none of which is a character
        assert [token.logprob for token in content] == [-0.25] * 3
        assert (content[0].token, content[0].bytes, content[1].bytes) == ("h", [104], None)
        extra = choice.model_extra or {}
        assert tuple(extra["token_ids"]) == said("hé")
        assert [*(answer.model_extra or {})["prompt_token_ids"], *extra["token_ids"]] == one.recorded()[0]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_the_bound_of_a_call_cuts_the_turn(field):
    async with served([said("a long answer")]) as one:
        choice = (await chat(one, [HELLO], **{field: 4})).choices[0]

        assert (choice.finish_reason, choice.message.content) == ("length", "a lo")


async def test_a_stream_gives_what_the_whole_answer_gives():
    text = "a text of some length, " * 30
    async with served([called("look", content=text, n=1)] * 2) as one, client_of(one) as client:
        whole = (await chat(one, [HELLO], tools=CHAT_TOOLS)).choices[0]
        options = {"stream_options": {"include_usage": True}}
        stream = await client.chat.completions.create(
            model="any", messages=[HELLO], tools=CHAT_TOOLS, stream=True, **options
        )
        chunks = [chunk async for chunk in stream]

    deltas = [choice for chunk in chunks for choice in chunk.choices]
    parts = [choice.delta.content for choice in deltas if choice.delta.content]
    calls = [call.function for choice in deltas for call in choice.delta.tool_calls or [] if call.function]
    (given,) = whole.message.tool_calls or []
    assert "".join(parts) == whole.message.content == text.strip()
    assert len(parts) > 5
    assert "".join(call.arguments or "" for call in calls) == given.function.arguments
    assert [call.name for call in calls if call.name] == ["look"]
    assert [choice.finish_reason for choice in deltas if choice.finish_reason] == ["tool_calls"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == sum(map(len, one.seen()[1:]))


async def test_a_stream_says_that_it_lives_while_the_turn_is_sampled():
    gateway = Gateway(keep_alive_s=0.02)
    async with served([said("late")], gateway=gateway, latency_s=0.2) as one, client_of(one) as client:
        stream = await client.chat.completions.create(model="any", messages=[HELLO], stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert text == "late"


def test_the_synchronous_client_plays_too():
    def ask(one):
        with openai.OpenAI(base_url=one.endpoint.openai_url, api_key=one.endpoint.api_key) as client:
            whole = client.chat.completions.create(model="any", messages=[HELLO]).choices[0].message.content
            stream = client.chat.completions.create(model="any", messages=[HELLO], stream=True)
            return whole, "".join(chunk.choices[0].delta.content or "" for chunk in stream), client.models.list().data

    async def main():
        async with served([said("hi")]) as one:
            return await asyncio.to_thread(ask, one)

    whole, streamed, models = asyncio.run(main())
    assert (whole, streamed, [model.id for model in models]) == ("hi", "hi", ["policy"])


async def test_the_api_key_alone_names_the_episode():
    async with served([said("hi")]) as one:
        root = one.gateway.root_url
        async with openai.AsyncOpenAI(base_url=f"{root}/v1", api_key=one.endpoint.api_key) as client:
            answer = await client.chat.completions.create(model="any", messages=[HELLO])

        assert answer.choices[0].message.content == "hi"


async def test_a_budget_that_is_used_up_is_a_bad_request_with_its_code():
    async with served([said("hi")], limits=WIDE.model_copy(update={"max_context_tokens": 8})) as one:
        with pytest.raises(openai.BadRequestError) as found:
            await chat(one, [HELLO])

        assert found.value.code == "context_length_exceeded"
        assert one.seen() == []


async def test_a_failing_engine_is_a_server_error_that_may_be_tried_again():
    async with served([said("hi")], faults=Faults(fail_every=2)) as one:
        await chat(one, [HELLO])
        with pytest.raises(openai.InternalServerError, match="injected"):
            await chat(one, [HELLO])
        assert one.endpoint.failure is not None
        async with openai.AsyncOpenAI(base_url=one.endpoint.openai_url, api_key="x", max_retries=1) as client:
            await client.chat.completions.create(model="any", messages=[HELLO])
            again = await client.chat.completions.create(model="any", messages=[HELLO])

        # the fourth request failed and was tried again
        assert again.choices[0].message.content == "hi"
        assert one.endpoint.failure is None
        assert sorted(one.recorded()) == sorted(one.seen())


# Responses


async def respond(one, **options):
    async with client_of(one) as client:
        return await client.responses.create(model="any", **options)


RESPONSE_TOOLS: Any = [{"type": "function", "strict": False, **LOOK}]


@pytest.mark.parametrize("turn", [called_twice(), MALFORMED], ids=["parallel", "malformed"])
async def test_the_items_of_a_response_come_back_as_the_same_history(turn):
    async with served([turn, said("done")]) as one:
        first = await respond(one, input="Hello.", instructions="Be brief.", tools=RESPONSE_TOOLS)
        calls = [item for item in first.output if item.type == "function_call"]
        items = [{"role": "user", "content": "Hello."}, *(item.to_dict() for item in first.output)]
        items += [{"type": "function_call_output", "call_id": call.call_id, "output": "blue"} for call in calls]
        second = await respond(one, input=items, instructions="Be brief.", tools=RESPONSE_TOOLS)

        assert second.output_text == "done"
        assert one.recorded() == [one.seen()[1]]
        assert second.usage is not None
        assert second.usage.total_tokens == len(one.seen()[1])


async def test_a_response_goes_on_from_the_one_that_it_names():
    async with served([called_twice(), said("done"), said("again")]) as one:
        first = await respond(one, input="Hello.", tools=RESPONSE_TOOLS)
        calls = [item for item in first.output if item.type == "function_call"]
        outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "blue"} for call in calls]
        second = await respond(one, input=outputs, previous_response_id=first.id, tools=RESPONSE_TOOLS)
        third = await respond(one, input="And?", previous_response_id=second.id, tools=RESPONSE_TOOLS)

        assert (second.output_text, third.output_text) == ("done", "again")
        assert one.recorded() == [one.seen()[2]]
        with pytest.raises(openai.NotFoundError, match="previous_response_id"):
            await respond(one, input="And?", previous_response_id="resp_0000")


async def test_the_events_of_a_response_build_it_up():
    async with served([called_twice(), said("x" * 100)]) as one, client_of(one) as client:
        async with client.responses.stream(model="any", input="Hello.", tools=RESPONSE_TOOLS) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        numbers = [getattr(event, "sequence_number", None) for event in events]
        assert numbers == list(range(len(events)))
        assert final.output_text == "Both."
        calls = [item for item in final.output if item.type == "function_call"]
        assert [json.loads(call.arguments) for call in calls] == [{"n": 1}, {"n": 2}]

        stream = await client.responses.create(model="any", input="Hello.", max_output_tokens=60, stream=True)
        events = [event async for event in stream]
        assert [e.delta for e in events if e.type == "response.output_text.delta"] == ["x" * 48, "x" * 12]
        last = events[-1]
        assert last.type == "response.incomplete"
        assert last.response.output_text == "x" * 60


async def test_calls_of_a_program_that_offered_no_tools_are_text():
    async with served([called("look", n=1), said("ok")]) as one:
        first = (await chat(one, [HELLO])).choices[0].message
        await chat(one, [HELLO, first.to_dict(), {"role": "user", "content": "And?"}])

        assert first.tool_calls is None
        assert json.loads(first.content or "") == {"name": "look", "arguments": {"n": 1}}
        assert one.recorded() == [one.seen()[1]]


async def test_an_attempt_without_a_name_is_text_and_comes_back_as_the_same_history():
    async with served([written('Well.\n<tool_call>\n{"arguments": {}}\n</tool_call>'), said("ok")]) as one:
        first = (await chat(one, [HELLO], tools=CHAT_TOOLS)).choices[0].message
        await chat(one, [HELLO, first.to_dict(), {"role": "user", "content": "And?"}], tools=CHAT_TOOLS)

        assert first.content == 'Well.\n{"arguments": {}}'
        assert one.recorded() == [one.seen()[1]]


async def test_the_prompt_is_what_the_program_sent_and_nothing_else():
    async with served([said("ok")]) as one:
        await chat(one, [{"role": "developer", "content": "Be brief."}, HELLO])

        text = RENDERER.decode(one.engine.exchanges[0].request.prompt_ids)
        assert "Be brief." in text
        assert "guess" not in text  # the environment's own tools were not asked for
