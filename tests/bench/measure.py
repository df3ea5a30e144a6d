"""How a figure is taken and written down."""

import time
from collections.abc import Awaitable, Callable


def figure(name: str, value: float, *, unit: str, at_most: float | None = None, at_least: float | None = None) -> dict:
    """Return one line of the benchmark."""
    if at_most is not None:
        return {
            "name": name,
            "value": round(value, 4),
            "unit": unit,
            "target": f"<= {at_most:g}",
            "ok": value <= at_most,
        }
    if at_least is not None:
        return {
            "name": name,
            "value": round(value, 4),
            "unit": unit,
            "target": f">= {at_least:g}",
            "ok": value >= at_least,
        }
    return {"name": name, "value": round(value, 4), "unit": unit, "target": "", "ok": True}


def cpu_seconds(function: Callable[[], object], *, repeats: int = 5) -> float:
    """Return the smallest CPU time of several runs after a warm-up; noise only ever adds."""
    function()
    out = []
    for _ in range(repeats):
        started = time.process_time()
        function()
        out.append(time.process_time() - started)
    return min(out)


async def async_cpu_seconds(function: Callable[[], Awaitable[object]], *, repeats: int = 5) -> tuple[float, float]:
    """Return the smallest CPU and wall seconds of several runs after a warm-up; noise only ever adds."""
    await function()
    cpu, wall = [], []
    for _ in range(repeats):
        started, started_wall = time.process_time(), time.perf_counter()
        await function()
        cpu.append(time.process_time() - started)
        wall.append(time.perf_counter() - started_wall)
    return min(cpu), min(wall)
