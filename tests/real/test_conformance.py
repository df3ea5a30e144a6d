"""The real engines keep every promise of the protocol, in this process and as servers."""

import pytest

from agentenv.check_engine import check_engine
from agentenv.engine.open import open_engine
from agentenv.engine.server_config import ServerConfig
from tests.real.real_models import saved_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MAX_LENGTH = 1024


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
async def test_it_keeps_every_promise_in_float32(engine_name, place, tied, tmp_path):
    saved_model(tmp_path, tied=tied)
    await _check(engine_name, place, tmp_path, dtype="float32")


async def test_it_keeps_every_promise_in_bfloat16(engine_name, tmp_path):
    saved_model(tmp_path, initializer_range=0.02)
    await _check(engine_name, "process", tmp_path, dtype="bfloat16")


async def _check(engine_name, place, folder, *, dtype):
    config = ServerConfig(name=engine_name, place=place, max_length=MAX_LENGTH, cache_tokens=32768, dtype=dtype)
    engine = await open_engine(config, model=folder, version=0)
    try:
        await check_engine(
            engine,
            model=folder,
            name=f"{engine_name} {place}",
            max_length=MAX_LENGTH,
            dtype=dtype,
            honours_seeds=engine_name != "sglang",
        )
    finally:
        await engine.close()
