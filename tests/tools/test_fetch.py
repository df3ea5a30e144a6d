"""Fetching pages and asking a retriever: allow-list, redirects, private addresses, limits, and servers that fail."""

import json
import time

import pytest

from agentenv.errors import EpisodeError, UsageError
from agentenv.tools.fetch import Fetch, _is_host, _is_public
from agentenv.tools.retriever import HttpSearch
from tests.tools.desks import box, told
from tests.tools.http_pages import send, serving

HTML = "<html><head><title>T</title><script>x()</script></head><body><h1>Hello</h1><p>a&amp;b  c<br>d</p></body></html>"


def page(handler, body):
    """Answer by path."""
    path = handler.path
    if path == "/html":
        send(handler, HTML, kind="text/html; charset=utf-8")
    elif path == "/latin":
        send(handler, "café".encode("latin-1"), kind="text/plain; charset=latin-1")
    elif path == "/unknown":
        send(handler, "plain", kind="text/plain; charset=klingon")
    elif path == "/long":
        send(handler, "x" * 5_000_000)
    elif path == "/picture":
        send(handler, b"\x89PNG", kind="image/png")
    elif path == "/missing":
        send(handler, "", status=404)
    elif path == "/broken":
        send(handler, "", status=503)
    elif path == "/away":
        send(handler, "", status=302, location="http://elsewhere.test/")
    elif path == "/loop":
        send(handler, "", status=302, location="/loop")
    elif path == "/hop":
        send(handler, "", status=302, location="/html")
    elif path == "/file":
        send(handler, "", status=302, location="file:///etc/passwd")
    elif path == "/slow":
        time.sleep(3)
    elif path == "/host":
        send(handler, handler.headers["host"])


@pytest.fixture(scope="module")
def port():
    with serving(page) as chosen:
        yield chosen


def local(**options):
    return box(
        Fetch(["localhost", "127.0.0.1"], allow_private=True, timeout_s=options.pop("timeout_s", 5.0), **options)
    )


async def test_a_page_is_read_as_text(port):
    tools = local()
    base = f"http://localhost:{port}"
    assert await told(tools, "fetch", url=f"{base}/html") == "T\nHello\na&b c\nd"
    assert await told(tools, "fetch", url=f"{base}/hop") == "T\nHello\na&b c\nd"
    assert await told(tools, "fetch", url=f"{base}/latin") == "café"
    assert await told(tools, "fetch", url=f"{base}/unknown") == "plain"
    assert await told(tools, "fetch", url=f"{base}/host") == f"localhost:{port}"


async def test_a_long_page_is_cut(port):
    text = await told(local(max_bytes=10), "fetch", url=f"http://127.0.0.1:{port}/long")
    assert text == "xxxxxxxxxx\n[... the page goes on]"


@pytest.mark.parametrize(
    ("path", "told_text"),
    [
        ("/away", 'the host "elsewhere.test" is not allowed; allowed are localhost, 127.0.0.1'),
        ("/file", "must begin with https:// or http://"),
        ("/loop", "redirects more than 5 times"),
        ("/missing", "the server answered 404"),
        ("/picture", "which is no text"),
        ("/slow", "did not come within 0.5 s"),
    ],
)
async def test_what_a_page_may_not_be_is_told_to_the_model(port, path, told_text):
    text = await told(local(timeout_s=0.5), "fetch", url=f"http://127.0.0.1:{port}{path}")
    assert text.startswith("Error: ")
    assert told_text in text


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "ftp://localhost/", "http://", "http://user:key@localhost/", "http://[::1", "http://evil.test/",
     "http://localhost.evil.test/", "http://localhost@evil.test/", "file:///etc/passwd", "http://\ud800/", "x" * 3000],
)  # fmt: skip
async def test_addresses_out_of_the_allow_list_are_refused_unasked(url):
    assert (await told(local(), "fetch", url=url)).startswith("Error: ")


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0", "169.254.169.254", "10.0.0.1", "2130706433"]
)
async def test_private_addresses_are_refused_also_by_name(host):
    tools = box(Fetch([host.strip("[]")]))
    text = await told(tools, "fetch", url=f"http://{host}/")
    assert "private address" in text or "cannot be found" in text


def test_which_addresses_are_public():
    assert _is_public("93.184.216.34")
    for address in (
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "100.64.0.1",
        "224.0.0.1",
        "fe80::1",
        "fd00::1",
    ):
        assert not _is_public(address), address


def test_a_star_allows_names_below_a_host_only():
    assert _is_host("a.b.example.org", "*.example.org")
    assert not _is_host("example.org", "*.example.org")
    assert not _is_host("badexample.org", "*.example.org")


async def test_a_server_that_fails_is_a_failure_after_its_retries(port):
    tools = local()
    with pytest.raises(EpisodeError, match="the server answered 503"):
        await told(tools, "fetch", url=f"http://127.0.0.1:{port}/broken")
    assert [entry.outcome for entry in tools.audit] == ["retried", "retried", "failed"]


async def test_nobody_listening_is_a_failure():
    with pytest.raises(EpisodeError):
        await told(local(), "fetch", url="http://127.0.0.1:1/")


def test_an_empty_allow_list_is_refused():
    with pytest.raises(UsageError, match="at least one host"):
        Fetch([])
    with pytest.raises(UsageError, match="a list of at least one host"):
        Fetch("example.org")


# retriever


def retriever(answers):
    """Return an answer function that sends these bodies one after the other, the last one again and again."""
    left = list(answers)

    def answer(handler, body):
        asked = json.loads(body)
        assert asked == {"queries": ["moon"], "topk": 2, "return_scores": True}
        reply = left.pop(0) if len(left) > 1 else left[0]
        send(handler, reply if isinstance(reply, bytes) else json.dumps(reply), kind="application/json")

    return answer


async def searched(*answers):
    with serving(retriever(answers)) as port:
        kit = HttpSearch(f"http://127.0.0.1:{port}/retrieve", num_hits=2, passage_chars=5)
        try:
            return await told(box(kit), "search", query="moon")
        finally:
            await kit.close()


async def test_hits_of_a_retriever_are_shown_in_every_usual_form():
    hits = [{"document": {"id": "7", "contents": "The moon pulls"}, "score": 1.0}, {"title": "Sea", "text": "wet"}]
    assert await searched({"result": [hits]}) == "[7] The m ...\n\n[Sea] wet"
    assert await searched({"result": [["plain"]]}) == "plain"
    assert await searched({"result": [[]]}) == "Nothing was found; try other words."


async def test_a_retriever_that_fails_once_is_asked_again():
    assert await searched(b"not json", {"result": [["moon"]]}) == "moon"


@pytest.mark.parametrize(
    "answer",
    [b"", b"[", [], {"result": []}, {"result": [[{"score": 1}]]}, {"result": 3}, b"x" * (5 << 20), b"[" * 100_000],
)
async def test_a_retriever_that_answers_garbage_is_a_failure(answer):
    with pytest.raises(EpisodeError, match="the retriever at http"):
        await searched(answer)


async def test_bad_queries_and_addresses_are_refused():
    assert (await told(box(HttpSearch("http://127.0.0.1:1")), "search", query=" ")).startswith("Error: a query has")
    with pytest.raises(UsageError, match="must begin with http"):
        HttpSearch("localhost:80")
