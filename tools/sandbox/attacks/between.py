"""Attacks by which one episode reaches the next."""

from __future__ import annotations

from agentenv.tools.sandbox.attacks.attack import Arena, Attack, Broken, Kind, nothing_outlives
from agentenv.tools.sandbox.attacks.processes import NAMED

_KIND: Kind = "between episodes"

_PLANT = """
import os
for folder in (".", "/tmp", "/dev/shm", "/var/tmp", os.path.expanduser("~"), "/run", "/home"):
    try:
        open(os.path.join(folder, "left-<<mark>>"), "w").write("x")
    except OSError:
        pass
"""
_FIND = """
import glob
for pattern in ("*", "/tmp/*", "/tmp/*/*", "/dev/shm/*", "/var/tmp/*", "/run/*", "/home/*"):
    for path in glob.glob(pattern):
        if "left-<<mark>>" in path:
            print("GOT", path)
"""
_PATCH = """
import builtins, json, os, random, sys
builtins.left = sys.left = os.left = json.left = random.left = "GOT a patch of the last episode"
json.dumps = builtins.len = random.random = lambda *a, **k: "GOT a patch of the last episode"
sys.modules["left"] = sys
sys.path.insert(0, "/tmp")
os.environ["LEFT"] = "1"
"""
_FIND_PATCH = """
import builtins, json, os, random, sys
for place in (builtins, sys, os, json, random):
    if hasattr(place, "left"):
        print(place.left)
if "left" in sys.modules or "LEFT" in os.environ or "/tmp" in sys.path or not isinstance(len("x"), int):
    print("GOT a patch of the last episode")
"""
_CHANCE = """
import os, random, sys, tempfile, uuid
print("chance", random.random(), uuid.uuid4(), os.urandom(8).hex(), random.getrandbits(64))
if "numpy" in sys.modules:
    import numpy
    print("chance", numpy.random.random())
print("chance", next(tempfile._get_candidate_names()))
"""


def _one_after_the_other(name: str, first: str, then: str) -> Attack:
    async def play(arena: Arena) -> None:
        for _ in range(2):  # the first sandbox may be a reused one, the second surely is
            await arena.program(first)
            result = await arena.program(then)
            _raise_got(result.text)
        async with arena.episode() as sandbox:
            await sandbox.python(arena.fill(first))
        async with arena.episode() as sandbox:
            cell = await sandbox.python(arena.fill(then))
            _raise_got(cell.output)
            done = await sandbox.run(["python3", "-c", arena.fill(then)])
            _raise_got(done.stdout)

    return Attack(name=name, kind=_KIND, play=play)


def _raise_got(text: str) -> None:
    got = [line for line in text.splitlines() if line.startswith("GOT")]
    if got:
        raise Broken(got[0][:200])


async def _leaves_processes(arena: Arena) -> None:
    code = arena.fill(f"{NAMED}\nif os.fork() == 0:\n    os.setsid()\n    linger()")
    async with arena.episode() as sandbox:
        await sandbox.python(code)
        await sandbox.run(["sh", "-c", arena.fill("sleep 60.<<mark>> &")])
    nothing_outlives(arena)


async def _same_chance(arena: Arena) -> None:
    """No two episodes draw the same numbers, although their processes come from one template."""
    seen: set[str] = set()
    for _ in range(4):
        lines = [line for line in (await arena.program(_CHANCE)).text.splitlines() if line.startswith("chance")]
        async with arena.episode() as sandbox:
            cell = await sandbox.python(_CHANCE)
            lines += [line for line in cell.output.splitlines() if line.startswith("chance")]
        words = [word for line in lines for word in line.split()[1:]]
        twice = seen.intersection(words)
        if twice or len(words) < 10:
            raise Broken(f"drawn twice: {sorted(twice)}" if twice else f"it did not run: {lines}")
        seen.update(words)


async def _runs_side_by_side(arena: Arena) -> None:
    """Variables and files of two open episodes do not mix."""
    async with arena.episode() as one, arena.episode() as other:
        await one.python("kept = 'one'; open('mine.txt', 'w').write('one')")
        await other.python("kept = 'other'; open('mine.txt', 'w').write('other')")
        for sandbox, word in ((one, "one"), (other, "other")):
            cell = await sandbox.python("kept + open('mine.txt').read()")
            if cell.value != repr(word * 2):
                raise Broken(f"episode {word} sees {cell.value}")


async def _snapshots_carry_only_files(arena: Arena) -> None:
    async with arena.episode() as sandbox:
        await sandbox.write_file("deep/kept.txt", b"kept")
        packed = await sandbox.snapshot()
        await sandbox.run(["sh", "-c", "rm -r deep; echo x > more.txt"])
        await sandbox.restore(packed)
        names = [info.path for info in await sandbox.list_files() if info.kind == "file"]
        if names != ["deep/kept.txt"] or await sandbox.read_file("deep/kept.txt") != b"kept":
            raise Broken(f"after a restore there are {names}")
    async with arena.episode() as sandbox:
        if await sandbox.list_files():
            raise Broken(f"a new episode begins with {await sandbox.list_files()}")


ATTACKS = (
    _one_after_the_other("leaves files for the next episode", _PLANT, _FIND),
    _one_after_the_other("leaves patches for the next episode", _PATCH, _FIND_PATCH),
    Attack(name="leaves processes for the next episode", kind=_KIND, play=_leaves_processes),
    Attack(name="draws the same numbers again", kind=_KIND, play=_same_chance),
    Attack(name="mixes with an episode at its side", kind=_KIND, play=_runs_side_by_side),
    Attack(name="keeps more than a snapshot holds", kind=_KIND, play=_snapshots_carry_only_files),
)
