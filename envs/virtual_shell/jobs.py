"""Worlds of files, and jobs on them: what is asked, how it is done in the shell, and what the files look like then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agentenv.envs.drawing import pick, pick_distinct, pick_each
from agentenv.envs.virtual_shell.file_system import FileSystem, name_of, parent_of

_WORDS = (
    "amber", "anchor", "aspen", "basil", "beacon", "birch", "canal", "cedar", "cobalt", "comet", "copper", "coral",
    "delta", "ember", "falcon", "fern", "flint", "garnet", "harbor", "hazel", "heron", "indigo", "iris", "ivory",
    "jasper", "juniper", "lagoon", "larch", "linen", "lotus", "maple", "marble", "meadow", "mercury", "moss", "nectar",
    "nickel", "oasis", "olive", "onyx", "opal", "orchid", "pebble", "pine", "quartz", "raven", "reed", "ridge",
    "river", "robin", "saffron", "sage", "sienna", "slate", "sparrow", "summit", "thistle", "tulip", "umber", "velvet",
    "walnut", "willow", "yarrow", "zephyr",
)  # fmt: skip
_FOLDERS = ("archive", "backup", "data", "drafts", "logs", "notes", "projects", "reports", "shared", "site")
_ENDINGS = ("txt", "log", "csv", "md")
_LEVELS = ("DEBUG", "INFO", "WARN", "ERROR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One thing to do.

    Attributes:
        text: what is asked.
        line: a line for the shell that does it.
        done: the files afterwards.
    """

    text: str
    line: str
    done: FileSystem


def make_world(rng: np.random.Generator) -> FileSystem:
    """Draw a home folder with five folders, two of them nested, and fourteen files of a few lines each."""
    files = FileSystem()
    home = f"/home/{pick(rng, _WORDS)}"
    folders = [f"{home}/{name}" for name in pick_distinct(rng, _FOLDERS, count=4)]
    folders += [f"{folder}/{word}" for folder, word in zip(folders, pick_distinct(rng, _WORDS, count=2), strict=False)]
    for folder in folders:
        files.make_folder(folder, with_parents=True)
    names = pick_distinct(rng, _WORDS, count=14)
    places = pick_each(rng, folders, count=14)
    for index, (name, folder) in enumerate(zip(names, places, strict=True)):
        ending = _ENDINGS[index % len(_ENDINGS)]
        files.files[f"{folder}/{name}.{ending}"] = _content(rng, ending)
    return files


def make_job(rng: np.random.Generator, files: FileSystem, *, level: int) -> Job:
    """Draw a job of a level, 1 to 3: one file; files that must be found; contents that must be counted."""
    return pick(rng, _JOBS[level - 1])(rng, files)


def _content(rng: np.random.Generator, ending: str) -> str:
    count = int(rng.integers(4, 10))
    words = pick_each(rng, _WORDS, count=3 * count)
    if ending == "csv":
        groups = pick_each(rng, words[:3], count=count)
        return "".join(f"{words[3 * i]},{groups[i]},{words[3 * i + 1]}\n" for i in range(count))
    if ending == "log":
        levels = pick_each(rng, _LEVELS, count=count)
        return "".join(f"{levels[i]} {words[3 * i]} {words[3 * i + 1]}\n" for i in range(count))
    return "".join(f"{' '.join(words[3 * i : 3 * i + 3])}\n" for i in range(count))


def _rename(rng: np.random.Generator, files: FileSystem) -> Job:
    source, target = _file(rng, files), _new_file(rng, files)
    done = files.copy()
    done.move_to(source, target)
    return Job(text=f"Rename the file {source} to {target}.", line=f"mv {source} {target}", done=done)


def _copy(rng: np.random.Generator, files: FileSystem) -> Job:
    source, target = _file(rng, files), _new_file(rng, files)
    done = files.copy()
    done.copy_to(source, target)
    return Job(text=f"Copy the file {source} to {target}.", line=f"cp {source} {target}", done=done)


def _tidy(rng: np.random.Generator, files: FileSystem) -> Job:
    source, folder = _file(rng, files), _new_folder(rng, files)
    done = files.copy()
    done.make_folder(folder)
    done.move_to(source, f"{folder}/{name_of(source)}")
    text = f"Make the folder {folder} and move the file {source} into it."
    return Job(text=text, line=f"mkdir {folder} && mv {source} {folder}", done=done)


def _gather(rng: np.random.Generator, files: FileSystem) -> Job:
    home, ending, folder = _home(files), pick(rng, _ENDINGS), _new_folder(rng, files)
    done = files.copy()
    done.make_folder(folder)
    for path in _ending_in(files, ending):
        done.move_to(path, f"{folder}/{name_of(path)}")
    text = f"Make the folder {folder}, and move every file below {home} whose name ends in .{ending} into it."
    return Job(text=text, line=f"mkdir {folder} && find {home} -name '*.{ending}' | xargs mv -t {folder}", done=done)


def _discard(rng: np.random.Generator, files: FileSystem) -> Job:
    home, word = _home(files), _word_in_some(rng, files)
    done = files.copy()
    for path in _containing(files, word):
        done.remove(path)
    text = f"Remove every file below {home} in which the word {word} occurs, and no other."
    return Job(text=text, line=f"grep -rl {word} {home} | xargs rm", done=done)


def _list_paths(rng: np.random.Generator, files: FileSystem) -> Job:
    home, word, target = _home(files), _word_in_some(rng, files), _new_file(rng, files)
    done = files.copy()
    done.write(target, "".join(f"{path}\n" for path in sorted(_containing(files, word))))
    text = (
        f"Write the full paths of all files below {home} in which the word {word} occurs to the new file {target}, "
        "sorted, one per line."
    )
    return Job(text=text, line=f"grep -rl {word} {home} | sort > {target}", done=done)


def _count(rng: np.random.Generator, files: FileSystem) -> Job:
    source, level, target = pick(rng, _ending_in(files, "log")), pick(rng, _LEVELS), _new_file(rng, files)
    number = sum(line.startswith(level) for line in files.files[source].splitlines())
    done = files.copy()
    done.write(target, f"{number}\n")
    text = f"Count the lines of {source} that begin with {level}, and write the number to the new file {target}."
    return Job(text=text, line=f"grep -c '^{level}' {source} > {target}", done=done)


def _distinct(rng: np.random.Generator, files: FileSystem) -> Job:
    source, target = pick(rng, _ending_in(files, "csv")), _new_file(rng, files)
    field = int(rng.integers(1, 4))
    values = {line.split(",")[field - 1] for line in files.files[source].splitlines()}
    done = files.copy()
    done.write(target, "".join(f"{value}\n" for value in sorted(values)))
    text = (
        f"The lines of {source} are comma-separated. Write the different values of field {field} to the new file "
        f"{target}, sorted, each once, one per line."
    )
    return Job(text=text, line=f"cut -d , -f {field} {source} | sort -u > {target}", done=done)


def _most_frequent(rng: np.random.Generator, files: FileSystem) -> Job:
    sources = _ending_in(files, "log")
    counts = {path: Counter(line.split()[0] for line in files.files[path].splitlines()) for path in sources}
    sources = [path for path in sources if _has_winner(counts[path])]
    if not sources:
        return _count(rng, files)
    source, target = pick(rng, sources), _new_file(rng, files)
    done = files.copy()
    done.write(target, f"{counts[source].most_common(1)[0][0]}\n")
    text = f"Write the first word that most lines of {source} begin with to the new file {target}."
    line = f"cut -d ' ' -f 1 {source} | sort | uniq -c | sort -rn | head -n 1 | xargs echo | cut -d ' ' -f 2 > {target}"
    return Job(text=text, line=line, done=done)


def _join(rng: np.random.Generator, files: FileSystem) -> Job:
    ending, target = pick(rng, ("txt", "md")), _new_file(rng, files, ending="all")
    parts = sorted(_ending_in(files, ending))
    done = files.copy()
    done.write(target, "".join(files.files[path] for path in parts))
    for path in parts:
        done.remove(path)
    home = _home(files)
    text = (
        f"Write the contents of all files below {home} whose names end in .{ending}, in the order of their full paths, "
        f"one after the other into the new file {target}. Then remove those files."
    )
    found = f"find {home} -name '*.{ending}'"
    return Job(text=text, line=f"{found} | sort | xargs cat > {target} && {found} | xargs rm", done=done)


_JOBS: Sequence[Sequence[Callable[[np.random.Generator, FileSystem], Job]]] = (
    (_rename, _copy, _tidy),
    (_gather, _discard, _list_paths),
    (_count, _distinct, _most_frequent, _join),
)


def _home(files: FileSystem) -> str:
    return next(folder for folder in sorted(files.folders) if folder.count("/") == 2)


def _file(rng: np.random.Generator, files: FileSystem) -> str:
    return pick(rng, sorted(files.files))


def _new_file(rng: np.random.Generator, files: FileSystem, *, ending: str = "out") -> str:
    return f"{parent_of(_file(rng, files))}/{pick(rng, _WORDS)}-{int(rng.integers(10, 100))}.{ending}"


def _new_folder(rng: np.random.Generator, files: FileSystem) -> str:
    return f"{_home(files)}/{pick(rng, _WORDS)}-{int(rng.integers(10, 100))}"


def _ending_in(files: FileSystem, ending: str) -> list[str]:
    return [path for path in files.files if path.endswith(f".{ending}")]


def _containing(files: FileSystem, word: str) -> list[str]:
    return [path for path, content in files.files.items() if word in content]


def _word_in_some(rng: np.random.Generator, files: FileSystem) -> str:
    """Return a word of a log; no word is part of another."""
    return pick(rng, [word for word in files.files[pick(rng, _ending_in(files, "log"))].split() if word.islower()])


def _has_winner(counts: Counter[str]) -> bool:
    ranked = counts.most_common(2)
    return len(ranked) == 1 or ranked[0][1] > ranked[1][1]
