"""Names of environments: registering, making, and the mirror in Gymnasium."""

import importlib.metadata
import json
import subprocess
import sys
import warnings

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec

from agentenv.envs.guess_number.env import GuessNumber
from agentenv.errors import UnknownEnvError, UsageError
from agentenv.registry import constructor_options, load_plugins, make, make_bare, register, registered, registration

GUESS = "agentenv/GuessNumber-v0"
ENTRY = "agentenv.envs.guess_number.env:GuessNumber"


def high_of(env) -> int:
    assert isinstance(env.unwrapped, GuessNumber)
    return env.unwrapped.high


def test_an_unknown_id_is_answered_with_the_nearest_one():
    for look_up in (registration, make, make_bare):
        with pytest.raises(UnknownEnvError, match=f'registered as "agentenv/GuesNumber-v0". Did you mean "{GUESS}"?'):
            look_up("agentenv/GuesNumber-v0")


def test_an_unknown_constructor_argument_is_answered_with_the_nearest_one():
    with pytest.raises(UsageError, match=f'{GUESS} has no option "hihg". Did you mean "high"?'):
        make_bare(GUESS, hihg=3)
    with pytest.raises(UsageError, match=r'no option "max_turn". Did you mean "max_turns"?'):
        make_bare(GUESS, max_turn=3)


def test_options_are_those_of_the_class_and_of_its_bases():
    assert constructor_options(GuessNumber)[:3] == ("high", "max_guesses", "max_turns")
    assert "split" in constructor_options(GuessNumber)

    class Closed(GuessNumber):
        def __init__(self, *, level: int = 1) -> None:
            super().__init__()

    assert constructor_options(Closed) == ("level",)


def test_a_bare_environment_is_the_class_itself_and_a_made_one_is_wrapped():
    assert type(make_bare(GUESS)) is GuessNumber
    made = make(GUESS, high=7)
    assert isinstance(made.unwrapped, GuessNumber)
    assert made is not made.unwrapped
    assert high_of(made) == 7


def test_arguments_of_the_registration_are_defaults():
    register("test/SmallGuess-v0", ENTRY, high=3)
    assert high_of(make_bare("test/SmallGuess-v0")) == 3
    assert high_of(make_bare("test/SmallGuess-v0", high=5)) == 5
    assert high_of(gymnasium.make("test/SmallGuess-v0")) == 3


def test_registering_the_same_thing_twice_changes_nothing():
    register("test/Twice-v0", ENTRY)
    register("test/Twice-v0", ENTRY)
    assert [r.env_id for r in registered()].count("test/Twice-v0") == 1


def test_a_taken_id_is_refused():
    register("test/Taken-v0", ENTRY)
    with pytest.raises(UsageError, match=f"test/Taken-v0 is already registered for {ENTRY}"):
        register("test/Taken-v0", "somewhere.else:Env")


@pytest.mark.parametrize("env_id", ["", "Name", "Name-v0", "a/b/Name-v0", "a/Name", "a/Na me-v0"])
def test_an_id_needs_namespace_name_and_version(env_id):
    with pytest.raises(UsageError, match="write namespace/Name-v0"):
        register(env_id, ENTRY)


def test_import_strings_that_lead_nowhere_are_told_when_first_used():
    register("test/NoModule-v0", "agentenv.nowhere:Env")
    register("test/NoClass-v0", "agentenv.env:Nothing")
    register("test/NoEnv-v0", "agentenv.env:Step")
    with pytest.raises(UsageError, match=r"cannot import 'agentenv.nowhere:Env'"):
        make_bare("test/NoModule-v0")
    with pytest.raises(UsageError, match=r"cannot import 'agentenv.env:Nothing'"):
        make_bare("test/NoClass-v0")
    with pytest.raises(UsageError, match="is not a subclass of AgentEnv"):
        make_bare("test/NoEnv-v0")


def test_the_listing_is_sorted_and_described():
    entries = [entry for entry in registered() if entry.env_id.startswith("agentenv/")]
    assert [e.env_id for e in entries] == sorted(e.env_id for e in entries)
    assert all(e.description for e in entries)


def test_a_spec_survives_json_and_makes_the_same_environment():
    spec = gymnasium.make(GUESS, high=9).spec
    assert spec is not None
    read = EnvSpec.from_json(json.dumps(json.loads(spec.to_json())))

    assert read.make().reset(seed=4) == gymnasium.make(GUESS, high=9).reset(seed=4)


def test_nondeterministic_environments_say_so_to_gymnasium():
    register("test/Live-v0", ENTRY, nondeterministic=True)
    assert gymnasium.spec("test/Live-v0").nondeterministic
    assert not gymnasium.spec(GUESS).nondeterministic


def test_gymnasium_imports_the_package_by_the_module_prefix():
    script = f"import gymnasium; print(gymnasium.make('agentenv:{GUESS}').reset(seed=0)[0])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Guess my number")


def test_importing_the_package_stays_free_of_heavy_libraries():
    script = (
        "import sys, agentenv; print([m for m in ('torch', 'transformers', 'datasets', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plugin_that_collides_is_left_out_with_a_warning(tmp_path, monkeypatch):
    (tmp_path / "plug-1.dist-info").mkdir()
    (tmp_path / "plug-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1\n")
    (tmp_path / "plug-1.dist-info" / "entry_points.txt").write_text(
        f"[agentenv.envs]\n{GUESS} = plug:Env\nplug/Own-v0 = {ENTRY}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_plugins()

    assert [str(w.message) for w in caught if GUESS in str(w.message)]
    assert type(make_bare("plug/Own-v0")) is GuessNumber
