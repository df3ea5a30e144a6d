"""The `fetch` tool: read a page by HTTP from hosts of an allow-list, and from no private address."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Collection, Sequence
from html.parser import HTMLParser

import httpx

from agentenv.errors import EpisodeError, ToolError, UsageError, describe
from agentenv.tool import tool
from agentenv.toolkit import Toolkit

MAX_URL_CHARS = 2_000
MAX_REDIRECTS = 5
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
_TEXT = re.compile(r"text/|application/(?:[\w.+-]*\+)?(?:json|xml)\b")


class Fetch(Toolkit):
    """Reading pages.

    A name is looked up once and the connection goes to the address that was checked, so a name that changes its
    address between the two gains nothing. Proxies of the environment are not used.

    Args:
        hosts: the only hosts: names, `*.example.org` for all names below one, or addresses.
        allow_private: True also allows loopback, private and link-local addresses.
        schemes: allowed ones of `http` and `https`.
        max_bytes: of one page; what follows is left out.
        timeout_s: seconds of one call, redirects included.
    """

    def __init__(
        self,
        hosts: Collection[str],
        *,
        allow_private: bool = False,
        schemes: Sequence[str] = ("https", "http"),
        max_bytes: int = 1 << 20,
        timeout_s: float = 15.0,
    ) -> None:
        if isinstance(hosts, str) or not hosts:
            raise UsageError(f"hosts is {hosts!r}; a list of at least one host is needed")
        self._hosts = tuple(host.lower().rstrip(".") for host in hosts)
        self._allow_private = allow_private
        self._schemes = tuple(schemes)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    @tool(read_only=True, reaches_outside=True, idempotent=True)
    async def fetch(self, url: str) -> str:
        """Read a page of the web as text.

        Args:
            url: a full address, e.g. https://example.org/page.
        """
        if len(url) > MAX_URL_CHARS:
            raise ToolError(f"the address has {len(url):,} characters; at most {MAX_URL_CHARS:,} are allowed")
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._read(url)
        except TimeoutError:
            raise ToolError(f"the page did not come within {self._timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise EpisodeError("tool", "fetch", describe(error)) from error

    async def _read(self, url: str) -> str:
        async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=self._timeout_s) as client:
            for _ in range(MAX_REDIRECTS + 1):
                target = self._checked(url)
                address = await self._address(target)
                request = client.build_request(
                    "GET",
                    target.copy_with(host=address),
                    headers={"Host": target.netloc.decode("ascii"), "Accept-Encoding": "identity"},
                    extensions={"sni_hostname": target.host},
                )
                response = await client.send(request, stream=True)
                try:
                    if not response.has_redirect_location:
                        return await self._text(response)
                    url = str(target.join(response.headers["location"]))
                finally:
                    await response.aclose()
        raise ToolError(f"the page redirects more than {MAX_REDIRECTS} times")

    def _checked(self, url: str) -> httpx.URL:
        """Return the address of a page that may be read, or raise `ToolError`."""
        try:
            target = httpx.URL(url)
        except (httpx.InvalidURL, UnicodeError, ValueError, TypeError):
            raise ToolError(f'"{url[:80]}" is no address of a page') from None
        if target.scheme not in self._schemes or not target.host:
            raise ToolError(f'"{url[:80]}" must begin with {" or ".join(f"{scheme}://" for scheme in self._schemes)}')
        if target.userinfo:
            raise ToolError("an address must not carry a user or password")
        host = target.host.lower().rstrip(".")
        if not any(_is_host(host, allowed) for allowed in self._hosts):
            raise ToolError(f'the host "{host[:80]}" is not allowed; allowed are {", ".join(self._hosts)}')
        return target

    async def _address(self, target: httpx.URL) -> str:
        """Return the address of the host after every address that it has was found to be allowed."""
        port = target.port or (443 if target.scheme == "https" else 80)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(target.host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise ToolError(f'the host "{target.host[:80]}" cannot be found') from None
        addresses = [str(item[4][0]).partition("%")[0] for item in found]
        if not self._allow_private and not all(_is_public(address) for address in addresses):
            raise ToolError(f'the host "{target.host[:80]}" has a private address, which is not allowed')
        return addresses[0]

    async def _text(self, response: httpx.Response) -> str:
        kind = response.headers.get("content-type", "text/plain").lower()
        if response.status_code >= 500 or response.status_code == 429:
            raise EpisodeError("tool", "fetch", f"the server answered {response.status_code}")
        if response.status_code >= 400:
            raise ToolError(f"the server answered {response.status_code} {response.reason_phrase}")
        if not _TEXT.match(kind):
            raise ToolError(f"the page is {kind[:80]}, which is no text")
        data = bytearray()
        async for part in response.aiter_raw():
            data += part
            if len(data) > self._max_bytes:
                break
        text = bytes(data[: self._max_bytes]).decode(_encoding(response), "replace")
        shown = _plain_text(text) if "html" in kind else text
        return f"{shown}\n[... the page goes on]" if len(data) > self._max_bytes else shown


def _is_host(host: str, allowed: str) -> bool:
    if allowed.startswith("*."):
        return host.endswith(allowed[1:])
    return host == allowed


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    if ip in _TRANSLATED:  # a gateway would turn it into an IPv4 address of any kind
        return False
    mapped = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    return ip.is_global and not ip.is_multicast and (mapped is None or (mapped.is_global and not mapped.is_multicast))


def _encoding(response: httpx.Response) -> str:
    try:
        "".encode(response.charset_encoding or "utf-8")
    except LookupError:
        return "utf-8"
    return response.charset_encoding or "utf-8"


class _Text(HTMLParser):
    _HIDDEN = frozenset({"script", "style", "noscript", "template", "svg"})
    _BREAKS = frozenset({"p", "br", "div", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article", "pre"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._HIDDEN:
            self._hidden.append(tag)
        if tag in self._BREAKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self._hidden and tag == self._hidden[-1]:
            self._hidden.pop()
        if tag in self._BREAKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def _plain_text(html: str) -> str:
    reader = _Text()
    reader.feed(html)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.parts).split("\n"))
    return "\n".join(line for line in lines if line)
