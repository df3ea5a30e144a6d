"""Serves a back end of this machine to others by SandboxFusion's protocol: `agentenv serve-sandbox`."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentenv.errors import AgentEnvError, ToolError, UsageError, describe
from agentenv.tools.sandbox.sandbox import Completed, Limits, Sandbox, SandboxBackend

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse

MAX_BODY_BYTES = 64 << 20

_PROGRAM = ".agentenv-program"
_COMMANDS: Mapping[str, tuple[str, ...]] = {"python": ("python3", _PROGRAM), "bash": ("bash", _PROGRAM)}


class RunCode(BaseModel):
    """A request of `POST /run_code`; fields that this server does not know are ignored, as the protocol has more."""

    model_config = ConfigDict(extra="ignore")

    code: str
    language: Literal["python", "bash"]
    stdin: str | None = None
    run_timeout: float = Field(default=10.0, gt=0)
    memory_limit_MB: int = -1
    files: dict[str, str | None] = Field(default_factory=dict)
    fetch_files: list[str] = Field(default_factory=list, max_length=64)


def sandbox_app(backend: SandboxBackend, *, limits: Limits | None = None, token: str = "") -> Starlette:
    """Return the server's application.

    Args:
        backend: runs the programs, each in a sandbox of its own.
        limits: the most that a request may ask for.
        token: what clients must show as `Authorization: Bearer`; "" is none.
    """
    try:
        from starlette.applications import Starlette
        from starlette.routing import Route
    except ImportError as error:
        raise UsageError('the server needs starlette and uvicorn; run `pip install "agentenv[gateway]"`') from error
    from starlette.responses import JSONResponse

    most = limits or Limits(wall_s=60.0)

    async def run_code(request: Request) -> JSONResponse:
        if token and not hmac.compare_digest(request.headers.get("authorization", ""), f"Bearer {token}"):
            return JSONResponse({"detail": "a token is needed"}, status_code=401)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                return JSONResponse({"detail": f"at most {MAX_BODY_BYTES:,} bytes"}, status_code=413)
        try:
            call = RunCode.model_validate_json(bytes(body))
        except ValidationError as error:
            return JSONResponse({"detail": error.errors(include_url=False, include_input=False)}, status_code=422)
        return JSONResponse(await answer(call, backend=backend, limits=_limits(call, most)))

    async def ping(_: Request) -> JSONResponse:
        return JSONResponse({"isolation": backend.isolation, "backend": backend.name})

    return Starlette(routes=[Route("/run_code", run_code, methods=["POST"]), Route("/v1/ping", ping)])


async def answer(call: RunCode, *, backend: SandboxBackend, limits: Limits) -> dict[str, Any]:
    """Run a program and return the protocol's answer; what is wrong with the sandbox stands in it as `SandboxError`."""
    try:
        if call.language == "python" and not call.files and not call.fetch_files:
            return _answer(await backend.execute(call.code, stdin=call.stdin or "", limits=limits), {})
        sandbox = await backend.open(limits=limits)
        try:
            return await _answer_with_files(call, sandbox)
        finally:
            await sandbox.close()
    except (ToolError, binascii.Error) as error:
        return {"status": "Failed", "message": describe(error), "run_result": None, "files": {}}
    except AgentEnvError as error:
        return {"status": "SandboxError", "message": describe(error), "run_result": None, "files": {}}


async def _answer_with_files(call: RunCode, sandbox: Sandbox) -> dict[str, Any]:
    for name, data in call.files.items():
        await sandbox.write_file(name, base64.b64decode(data or "", validate=True))
    await sandbox.write_file(_PROGRAM, call.code.encode("utf-8", "replace"))
    completed = await sandbox.run(_COMMANDS[call.language], stdin=call.stdin or "")
    fetched: dict[str, str] = {}
    for name in call.fetch_files:
        try:
            data = await sandbox.read_file(name, max_bytes=MAX_BODY_BYTES)
        except ToolError:
            continue  # it made no such file
        fetched[name] = base64.b64encode(data).decode()
    return _answer(completed, fetched)


def _answer(completed: Completed, files: Mapping[str, str]) -> dict[str, Any]:
    result = {
        "status": "TimeLimitExceeded" if completed.ending == "timeout" else "Finished",
        "execution_time": completed.wall_s,
        "return_code": _return_code(completed),
        "stdout": completed.stdout,
        "stderr": completed.stderr,
    }
    return {
        "status": "Success" if completed.is_success else "Failed",
        "message": "",
        "compile_result": None,
        "run_result": result,
        "executor_pod_name": None,
        "files": dict(files),
    }


def _return_code(completed: Completed) -> int | None:
    """Tell a signal as Python does, by a negative number; memory ends by SIGKILL."""
    if completed.ending == "exited":
        return completed.exit_code
    if completed.ending == "timeout":
        return None
    return -(completed.signal or 9)


def _limits(call: RunCode, most: Limits) -> Limits:
    """Return what a request asks for, at most what the server grants."""
    asked = call.memory_limit_MB << 20 if call.memory_limit_MB > 0 else most.memory_bytes
    return replace(
        most,
        wall_s=min(call.run_timeout, most.wall_s),
        memory_bytes=min(asked, most.memory_bytes),
        output_bytes=max(most.output_bytes, 1 << 20),
    )


def serve(*, backend: str, host: str, port: int, token: str, report: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Raises:
        UsageError: others can reach the address and there is no token.
        SandboxUnavailable: the back end does not work here.
    """
    import uvicorn

    from agentenv.sandbox_settings import SandboxSettings
    from agentenv.tools.sandbox.choice import chosen, close_sandboxes

    if host not in ("127.0.0.1", "::1", "localhost") and len(token) < 16:
        raise UsageError(
            f"{host} can be reached by other machines, which may then run code here; pass a token of 16 characters or "
            "more, or listen on 127.0.0.1"
        )

    async def run() -> None:
        choice = await chosen(SandboxSettings(backend=backend))
        report(f"serving {choice.describe()} on http://{host}:{port}/run_code")
        app = sandbox_app(choice.backend, token=token)
        try:
            await uvicorn.Server(
                uvicorn.Config(app, host=host, port=port, lifespan="off", log_level="warning", server_header=False)
            ).serve()
        finally:
            await close_sandboxes()

    asyncio.run(run())
