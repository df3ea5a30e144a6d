"""The JSON client against a real server that misbehaves."""

import asyncio

import pytest
from aiohttp import web

from agentenv.engine.http import JsonClient
from agentenv.errors import DeadlineExceeded, EngineClosed, EngineError


@pytest.fixture
async def server():
    app = web.Application()
    app.router.add_post("/echo", _echo)
    app.router.add_post("/slow", _slow)
    app.router.add_post("/broken", _answer('{"half": '))
    app.router.add_post("/list", _answer("[1]"))
    app.router.add_post("/down", _answer("<html>overloaded</html>", status=503))
    app.router.add_post("/cut", _cut)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def client(server):
    client = JsonClient(server, busy_s=0.3)
    yield client
    await client.close()


async def _echo(request):
    return web.json_response({"got": await request.json()})


async def _slow(request):
    await asyncio.sleep(30)
    return web.json_response({})


def _answer(text, status=200):
    async def handler(request):
        return web.Response(text=text, status=status)

    return handler


async def _cut(request):
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b'{"a": ')
    request.transport.close()
    return response


async def test_an_object_goes_there_and_back(client):
    assert await client.post("/echo", {"ids": [1, 2]}, deadline_s=5) == {"got": {"ids": [1, 2]}}


async def test_a_slow_server_ends_with_the_deadline(client):
    with pytest.raises(DeadlineExceeded, match=r"within 0.05 s"):
        await client.post("/slow", {}, deadline_s=0.05)
    assert await client.post("/echo", {}, deadline_s=5) == {"got": {}}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/broken", "not JSON"),
        ("/list", "answered list"),
        ("/down", "answered 503: <html>overloaded"),
        ("/cut", "failed"),
        ("/missing", "answered 404"),
    ],
)
async def test_a_bad_answer_is_named(client, path, said):
    with pytest.raises(EngineError, match=said):
        await client.post(path, {}, deadline_s=5)


async def test_a_server_that_is_not_there_is_named():
    client = JsonClient("http://127.0.0.1:9")
    with pytest.raises(EngineError, match="is the server running"):
        await client.post("/echo", {}, deadline_s=5)
    await client.close()


async def test_a_closed_client_refuses(client):
    await client.close()
    await client.close()
    with pytest.raises(EngineClosed):
        await client.post("/echo", {}, deadline_s=5)


async def test_many_requests_share_the_connections(server):
    client = JsonClient(server, max_connections=4)
    answers = await asyncio.gather(*(client.post("/echo", {"i": i}, deadline_s=10) for i in range(100)))
    assert [answer["got"]["i"] for answer in answers] == list(range(100))
    await client.close()
