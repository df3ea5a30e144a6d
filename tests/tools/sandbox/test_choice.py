"""Which back end is used, and that there is never a silent step down."""

from __future__ import annotations

import asyncio

import pytest

from agentenv.config import load_config
from agentenv.errors import ConfigError, SandboxError, SandboxUnavailable, UsageError
from agentenv.sandbox_settings import SandboxSettings, sandbox_settings, use_sandbox
from agentenv.tools.sandbox import chosen, close_sandboxes, execute, open_sandbox
from agentenv.tools.sandbox.choice import make_backend
from agentenv.tools.sandbox.unconfined import ALLOWED_BY
from agentenv.trainers.config import RunConfig
from agentenv.trainers.ranks import LocalTeam
from agentenv.trainers.site import LocalSite


@pytest.fixture(autouse=True)
async def _fresh_choice():
    before = sandbox_settings()
    await close_sandboxes()
    yield
    use_sandbox(before)
    await close_sandboxes()


async def test_the_default_is_the_strong_back_end_probed_once(strong):
    assert (await execute("print(1)")).stdout == "1\n"
    first, second = await asyncio.gather(chosen(), chosen())
    assert first is second
    assert first.describe() == "bwrap, isolation strong"
    sandbox = await open_sandbox()
    assert sandbox.isolation == "strong"
    await close_sandboxes()
    with pytest.raises(SandboxError):
        await sandbox.python("1")
    await sandbox.close()


async def test_without_bwrap_nothing_weaker_is_taken_and_the_error_names_the_choices(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SandboxUnavailable) as raised:
        await open_sandbox()
    told = str(raised.value)
    assert "- bwrap: bwrap is not installed" in told
    assert "sandbox.min_isolation: strong" in told
    for choice in ("apt-get install bubblewrap", "docker run", "AppArmor", "sandbox.url", "min_isolation: reduced"):
        assert choice in told


async def test_a_weaker_border_is_taken_only_when_it_was_asked_for(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SandboxUnavailable, match="isolation is reduced"):
        await chosen(SandboxSettings(backend="landlock"))
    choice = await chosen(SandboxSettings(min_isolation="reduced"))
    assert choice.backend.name == "landlock"
    assert "bwrap failed: bwrap is not installed" in choice.describe()


async def test_running_without_isolation_takes_the_config_and_the_environment_and_prints_a_banner(monkeypatch, capsys):
    monkeypatch.delenv(ALLOWED_BY, raising=False)
    with pytest.raises(SandboxUnavailable, match=f"{ALLOWED_BY}=1"):
        await chosen(SandboxSettings(backend="none"))
    assert "NO SANDBOX" not in capsys.readouterr().err
    monkeypatch.setenv(ALLOWED_BY, "1")
    use_sandbox(SandboxSettings(backend="none"))
    assert (await execute("print(1)")).stdout == "1\n"
    assert "NO SANDBOX" in capsys.readouterr().err


async def test_the_environment_alone_does_not_take_isolation_away(monkeypatch, strong):
    monkeypatch.setenv(ALLOWED_BY, "1")
    assert (await chosen()).backend.name == "bwrap"


def test_an_unknown_name_is_an_error_with_a_suggestion():
    with pytest.raises(UsageError, match='Did you mean "bwrap"'):
        make_backend(SandboxSettings(), "bwrp")


async def test_one_owner_serves_several_event_loops(strong):
    def elsewhere() -> str:
        return asyncio.run(execute("print(2)")).stdout

    others = [asyncio.create_task(asyncio.to_thread(elsewhere)) for _ in range(3)]
    assert (await execute("print(2)")).stdout == "2\n"
    assert [await other for other in others] == ["2\n"] * 3


def test_a_run_hands_its_three_keys_to_who_plays_its_episodes(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("env: {id: agentenv/GuessNumber-v0}\nmodel: {path: nowhere, device: cpu}\n")
    keys = ["sandbox.backend=landlock", "sandbox.min_isolation=reduced", "sandbox.url=http://x"]
    config = load_config(RunConfig, file, overrides=keys)
    LocalSite(config, team=LocalTeam())
    assert sandbox_settings() == SandboxSettings(backend="landlock", min_isolation="reduced", url="http://x")
    with pytest.raises(ConfigError, match='"strong"'):
        load_config(RunConfig, file, overrides=["sandbox.min_isolation=weak"])
