"""What `agentenv serve` and `agentenv check engine` do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from agentenv.check_engine import check_engine
from agentenv.config import load_config
from agentenv.engine.serve import serve
from agentenv.engine.server_config import ServerConfig

if TYPE_CHECKING:
    from agentenv.check import CheckReport, CheckResult
    from agentenv.engine.protocol import Engine

_COLOURS = {"ok": "green", "FAILED": "bold red", "skipped": "dim"}


def serve_engine(overrides: Sequence[str], *, model: str, host: str, port: int) -> int:
    """Start the servers that the keys of `engine` ask for, and serve until interrupted; returns the exit code.

    Raises:
        ConfigError: a key or a value is wrong.
        UsageError: the engine is not installed, or the model is not there.
    """
    return serve(load_config(ServerConfig, None, overrides=overrides), model=model, host=host, port=port)


def show_engine_check(
    *,
    name: str,
    model: str,
    url: str | None,
    in_process: bool,
    dtype: str,
    max_length: int,
    updates_weights: bool,
) -> bool:
    """Check an engine, and print every promise as it is looked at; returns whether all hold.

    Args:
        name: hf, vllm or sglang.
        model: folder of the weights that it holds.
        url: of a server that already runs.
        in_process: True runs a large engine inside this process.
        dtype: of its weights.
        max_length: tokens of prompt and output, at most.
        updates_weights: False leaves its weights alone.

    Raises:
        UsageError: the engine or the model is not there.
    """
    console = Console(highlight=False)

    def tell(result: CheckResult) -> None:
        colour = _COLOURS[result.status]
        console.print(f"[{colour}]{result.status:8}[/]{result.name:24}{escape(result.detail)}", soft_wrap=True)

    async def check() -> CheckReport:
        options: dict[str, Any] = {"dtype": dtype, "max_length": max_length}
        engine = await _opened(name, model=model, url=url, in_process=in_process, options=options)
        try:
            return await check_engine(
                engine,
                model=model,
                name=name,
                updates_weights=updates_weights,
                honours_seeds=name != "sglang",
                raise_on_failure=False,
                told=tell,
                **options,
            )
        finally:
            await engine.close()

    report = asyncio.run(check())
    console.print(
        f"{name}: {len(report.results) - len(report.failures)} of {len(report.results)} promises, none broken"
        if report.is_ok
        else f"{name} breaks {len(report.failures)} of {len(report.results)} promises"
    )
    return report.is_ok


async def _opened(name: str, *, model: str, url: str | None, in_process: bool, options: dict[str, Any]) -> Engine:
    if name == "hf":
        from agentenv.engine.hf import HFEngine, HFEngineConfig

        return HFEngine.from_pretrained(model, config=HFEngineConfig(**options))
    from agentenv.engine.open import open_engine

    place = "in_process" if in_process else "process"
    given = {"name": name, "place": place, **({"url": url} if url else {}), **options}
    return await open_engine(ServerConfig.model_validate(given), model=model)
