"""Cheats that are paid, shared tasks, leaks, chance from outside and READMEs that say something else are found."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from agentenv import AgentEnv, Message, check_env, register, reward
from agentenv.check_leaks import descendants, held
from agentenv.check_readme import policy_numbers
from agentenv.check_replay import check_processes
from agentenv.errors import CheckFailed, UsageError
from agentenv.splits import draw_for, split_of


class Sums(AgentEnv):
    """Add two numbers. Reward: 1.0 if the answer is exact, else 0.0.

    Args:
        difficulty: digits of the numbers.
    """

    inline = True
    random_threshold = 0.1

    def __init__(self, *, difficulty: int = 2, **options):
        self.difficulty, self.numbers, self.said = difficulty, (0, 0), ""
        super().__init__(**options)

    def setup(self, rng, task):
        self.said = ""
        self.numbers = draw_for(self.split, lambda: tuple(int(n) for n in rng.integers(10**self.difficulty, size=2)))
        return "{} + {} = ?".format(*self.numbers)

    def respond(self, text):
        self.said = text
        self.finish()
        return ""

    @reward(low=0.0, high=1.0)
    def right(self) -> float:
        return float(self.said == str(sum(self.numbers)))

    def oracle(self):
        return str(sum(self.numbers))

    def cheat(self, rng):
        return " ".join(map(str, range(200)))


def failures(env, **options):
    report = check_env(env, num_seeds=options.pop("num_seeds", 30), raise_on_failure=False, **options)
    return {result.name: result.detail for result in report.failures}


def test_an_honest_environment_passes():
    assert failures(Sums) == {}


def test_a_grader_that_pays_a_cheat_is_found():
    class Generous(Sums):
        @reward(low=0.0, high=1.0)
        def right(self) -> float:
            return float(str(sum(self.numbers)) in self.said.split())

    assert failures(Generous)["cheating earns nothing"].startswith(
        "30 of 30 cheating episodes are paid; seed 0 earns 1"
    )


def test_an_environment_without_a_cheat_is_skipped_there():
    class Innocent(Sums):
        cheat = AgentEnv.cheat  # type: ignore[assignment]

    rows = check_env(Innocent, num_seeds=30).rows
    assert ("cheating earns nothing", "skipped", "it has no cheating policy") in rows


def test_a_task_of_both_splits_is_found_also_where_only_the_easiest_level_shares_one():
    class Undivided(Sums):
        def setup(self, rng, task):
            self.numbers, self.said = tuple(int(n) for n in rng.integers(10**self.difficulty, size=2)), ""
            return "{} + {} = ?".format(*self.numbers)

    class Large(Undivided):
        def __init__(self, *, difficulty: int = 9, **options):
            super().__init__(difficulty=difficulty, **options)

    for env_class in (Undivided, Large):
        assert "train and test share" in failures(env_class, num_seeds=100)["train and test share no task"]

    class Admitted(Undivided):
        split_by = "seed"

    assert failures(Admitted, num_seeds=100) == {}


def test_tasks_are_drawn_for_a_split_by_their_content():
    numbers = iter(range(1000))
    drawn = [draw_for("test", lambda: next(numbers)) for _ in range(20)]
    assert {split_of(str(n)) for n in drawn} == {"test"}
    assert all(split_of(str(n)) == "train" for n in range(drawn[-1]) if n not in drawn)
    with pytest.raises(UsageError, match="too few different tasks"):
        draw_for("test", lambda: "a" if split_of("a") == "train" else "b")


class Unordered(Sums):
    """Add in the order of a set. Reward: 1.0 if the answer is exact, else 0.0."""

    def setup(self, rng, task):
        super().setup(rng, task)
        return " ".join({f"word{n}" for n in range(20)}) + "{} + {} = ?".format(*self.numbers)


def test_an_order_that_depends_on_the_process_is_found():
    register("test/Sums-v0", f"{__name__}:Sums")
    register("test/Unordered-v0", f"{__name__}:Unordered")
    found = check_processes(["test/Sums-v0", "test/Unordered-v0"])
    assert found["test/Sums-v0"] == ""
    policies = "oracle, random, garbage, cheat"
    assert found["test/Unordered-v0"] == f"episodes differ from process to process; policies: {policies}"


def test_state_that_neighbours_share_is_found():
    class Shared(Sums):
        board: dict[str, object] = {}  # noqa: RUF012 - the mistake that is looked for

        def setup(self, rng, task):
            opening = super().setup(rng, task)
            self.board["numbers"] = self.numbers
            return opening

        def oracle(self):
            return str(sum(self.board["numbers"]))  # type: ignore[call-overload]

    found = failures(Shared)
    assert set(found) == {"same seed, same episode among 64 at once"}
    assert "at once is another" in found["same seed, same episode among 64 at once"]


class Holder(Sums):
    """Add, and keep something. Reward: 1.0 if the answer is exact, else 0.0."""

    kept: list[object] = []  # noqa: RUF012 - outlives the episode on purpose


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("take", "what"),
    [
        (lambda: os.open("/dev/null", os.O_RDONLY), "descriptors"),
        (lambda: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]), "processes"),
        (lambda: tempfile.mkdtemp(), "files"),
    ],
)
def test_what_closing_leaves_behind_is_found(take, what):
    kept = []

    class Leaking(Sums):
        def setup(self, rng, task):
            kept.append(take())
            return super().setup(rng, task)

    from agentenv.check_promises import PROMISES

    others = [name for name in PROMISES if name != "closing leaves nothing behind"]
    try:
        found = failures(Leaking, leave_out=others)
    finally:
        for thing in kept:
            if isinstance(thing, int):
                os.close(thing)
            elif isinstance(thing, subprocess.Popen):
                thing.kill()
                thing.wait()
    assert what in found["closing leaves nothing behind"]


def test_descendants_and_what_is_held_are_counted(tmp_path):
    before = held(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in descendants()
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "b").touch()
        now = held(tmp_path)
        assert (now.processes - before.processes, now.descriptors - before.descriptors, now.files) == (1, 1, 2)
    finally:
        child.kill()
        child.communicate()


README = """# Sums

`test/Written-v0`: add two numbers.

```
[user] 1 + 2 = ?
[assistant] 3
```

`difficulty`: digits.

**Reward** 1.0 if exact.
**Policies** (200 seeds): the oracle adds, mean return 1.00; random answers reach 0.01.
**Splits**: by content.
"""


def written(tmp_path, readme, name):
    """Put the class with a README into a folder of its own and register it."""
    module = f"written_{name}"
    (tmp_path / f"{module}.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    register(f"test/Written{name}-v0", f"{module}:Sums")
    found = failures(f"test/Written{name}-v0", leave_out=["same seed, same episode in other processes"])
    return found.get("its README describes it", "")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("", "", ""),
        ("# Sums\n", "# Sum\n", "the title `# Sums`"),
        ("`difficulty`: digits.\n", "", "the option `difficulty`"),
        ("**Splits**", "Splits", "a paragraph **Splits**"),
        ("[assistant]", "[model]", "a sample episode"),
        ("mean return 1.00", "mean return 0.20", "says that the oracle policy reaches 0.2; measured was 1.000 over 30"),
        ("reach 0.01", "reach nothing", 'no number such as 0.05 after the word "random"'),
    ],
)
def test_a_readme_that_says_something_else_is_found(tmp_path, monkeypatch, old, new, said):
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"{abs(hash((old, new)))}"
    text = README.replace("Written-v0", f"Written{name}-v0")
    found = written(tmp_path, text.replace(old, new) if old else text, name)
    assert (said in found) if said else (found == "")


def test_numbers_are_read_from_the_paragraph_of_the_policies_only():
    assert policy_numbers(README) == {"oracle": 1.0, "random": 0.01}
    with pytest.raises(CheckFailed, match="oracle"):
        policy_numbers("The oracle reaches 1.00, random 0.00.")


def test_an_environment_that_cannot_be_played_here_says_why():
    class Elsewhere(Sums):
        @classmethod
        def unavailable(cls) -> str:
            return "it needs a moon base; build one"

    with pytest.raises(UsageError, match="Elsewhere cannot be checked here: it needs a moon base"):
        check_env(Elsewhere)


def test_a_fingerprint_holds_what_was_said_and_called():
    env = Sums()
    env.reset(seed=0)
    env.step(env.oracle())
    assert env.fingerprint().splitlines() == [f"user {env.conversation[0].content}", f"assistant {env.oracle()}"]
    assert isinstance(env.conversation[1], Message)
