"""The gateway: CPU that a call costs this process beyond the session's own work, with the clients in another process.

Each episode is a conversation of three calls with tools and a system prompt of ordinary length. The same conversations
are played through `Session.complete` directly; what is above that is the gateway: HTTP, JSON, translation.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from agentenv import make_bare, tool_turn
from agentenv.agent.chat_api import ChatApi
from agentenv.agent.gateway_server import Gateway
from agentenv.agent.session import Session
from agentenv.engine.scripted import ScriptedEngine
from agentenv.episode import Episode, EpisodeSpec, Limits, Sampling
from agentenv.memory import relax_garbage_collection
from agentenv.messages import Message
from agentenv.renderer import Renderer

sys.path.insert(0, str(Path(__file__).parent))
from measure import figure
from text import bench_tokenizer

EPISODES = 256
TURNS = 3
CLIENTS = 16
ENV_ID = "agentenv/GuessNumber-v0"
SYSTEM = "You are a careful assistant that looks records up before it answers, and says what it does not know. " * 4
LIMITS = Limits(max_episode_tokens=10**6, max_context_tokens=10**6)


def spec(index):
    """Return one of the tools that a program offers."""
    parameters = {
        "type": "object",
        "properties": {
            "kind": {"type": "string", "description": "owner, office or telephone"},
            "key": {"type": "integer"},
        },
        "required": ["kind", "key"],
    }
    return {
        "type": "function",
        "function": {"name": f"look_up_{index}", "description": "Look.", "parameters": parameters},
    }


TOOLS = [spec(index) for index in range(4)]


def question(number):
    """Return the messages that an episode begins with; no two are the same."""
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"Find the owner of record {number}, then the owner's office, then its telephone."},
    ]


def result(number, turn):
    """Return what a tool gave."""
    return f"{number * 7919 % 10**9} is in room {number % 1013} of house {turn}. " * 6


def engine_of(renderer):
    """Return an engine whose replies were rendered before the clock starts."""
    pool = [
        renderer.turn_ids(tool_turn(f"look_up_{i % 4}", {"kind": "owner", "key": 1000 + i}, content=f"I look at {i}."))
        for i in range(64)
    ]
    return ScriptedEngine(lambda request: pool[(request.index * 7 + request.turn) % 64])


async def session_of(engine, renderer, *, index):
    """Return the session of a fresh episode."""
    episode = Episode(
        EpisodeSpec(env_id=ENV_ID, group_id=str(index)),
        env=make_bare(ENV_ID),
        engine=engine,
        renderer=renderer,
        limits=LIMITS,
        sampling=Sampling(),
    )
    return Session(episode), await episode.reset()


async def direct(renderer, *, start):
    """Return the CPU-ms of a call of `Session.complete`."""
    engine = engine_of(renderer)
    sessions = [await session_of(engine, renderer, index=start + i) for i in range(EPISODES)]
    tools = ChatApi().read({"messages": question(0), "tools": TOOLS}).tools
    opened = [ChatApi().read({"messages": question(start + i)}).messages for i in range(EPISODES)]
    started = time.process_time()
    for number, ((session, _), messages) in enumerate(zip(sessions, opened, strict=True)):
        history = list(messages)
        for turn in range(TURNS):
            reply = await session.complete(history, tools=tools)
            (call,) = reply.message.tool_calls
            told = Message(role="tool", content=result(start + number, turn), tool_call_id=call.call_id)
            history += [reply.message, told]
    return 1000 * (time.process_time() - started) / (EPISODES * TURNS)


async def through_gateway(renderer, *, start, is_streamed):
    """Return the CPU-ms of a call over HTTP, of this process alone."""
    engine, gateway = engine_of(renderer), Gateway()
    await gateway.start()
    try:
        endpoints = []
        for index in range(EPISODES):
            session, opening = await session_of(engine, renderer, index=start + index)
            endpoints.append(gateway.open(session, opening=opening))
        client = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "client", str(start), "1" if is_streamed else "0",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert client.stdin is not None
        assert client.stdout is not None
        await client.stdout.readline()  # it is ready
        started = time.process_time()
        client.stdin.write("\n".join(e.openai_url for e in endpoints).encode() + b"\n")
        client.stdin.close()
        num_calls = int(await client.stdout.readline())
        cpu_ms = 1000 * (time.process_time() - started)
        await client.wait()
        assert num_calls == EPISODES * TURNS == sum(e.num_replies for e in endpoints)
        # every call went on from the one before
        assert all(len(e.session.episode.recorder.sequences()) == 1 for e in endpoints)
        return cpu_ms / num_calls
    finally:
        await gateway.close()


async def client(*, start, is_streamed):
    """Play the episodes whose URLs come on standard input; prints how many calls were made."""
    import aiohttp

    print("ready", flush=True)
    urls = enumerate(sys.stdin.read().split())
    num_calls = 0
    async with aiohttp.ClientSession() as http:

        async def converse():
            nonlocal num_calls
            for number, url in urls:
                messages = question(start + number)
                for turn in range(TURNS):
                    body = {"model": "any", "messages": messages, "tools": TOOLS, "stream": is_streamed}
                    async with http.post(url + "/chat/completions", json=body) as answer:
                        said = (
                            whole(await answer.text())
                            if is_streamed
                            else (await answer.json())["choices"][0]["message"]
                        )
                    call_id = said["tool_calls"][0]["id"]
                    told = {"role": "tool", "tool_call_id": call_id, "content": result(start + number, turn)}
                    messages = [*messages, said, told]
                    num_calls += 1

        await asyncio.gather(*(converse() for _ in range(CLIENTS)))
    print(num_calls, flush=True)


def whole(events):
    """Return the message that the deltas of a stream make."""
    content, call = "", {}
    for line in events.splitlines():
        if not line.startswith("data: {"):
            continue
        delta = json.loads(line[6:])["choices"][0]["delta"]
        content += delta.get("content") or ""
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                call = {"id": part["id"], "type": "function", "function": {**part["function"]}}
            else:
                call["function"]["arguments"] += part["function"]["arguments"]
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def figures(repeats=5):
    """Measure everything, with the collector set as `agentenv train` sets it."""
    relax_garbage_collection()
    renderer = Renderer(bench_tokenizer(), family="qwen3")
    starts = iter(range(10**6, 10**8, 10**4))
    asyncio.run(direct(renderer, start=next(starts)))  # warm
    alone = min(asyncio.run(direct(renderer, start=next(starts))) for _ in range(repeats))
    out = [figure("session_cpu_ms_per_call", alone, unit="ms")]
    for is_streamed, name in (
        (False, "gateway_cpu_ms_added_per_call"),
        (True, "gateway_cpu_ms_added_per_streamed_call"),
    ):
        cost = [
            asyncio.run(through_gateway(renderer, start=next(starts), is_streamed=is_streamed)) for _ in range(repeats)
        ]
        out.append(figure(name, min(cost) - alone, unit="ms", at_most=1.0))
    return out


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"]:
        asyncio.run(client(start=int(sys.argv[2]), is_streamed=sys.argv[3] == "1"))
    else:
        for line in figures():
            print(json.dumps(line))
