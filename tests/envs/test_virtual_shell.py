"""VirtualShell: its shell, its patterns, its limits, and what earns the reward."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv import tool_turn
from agentenv.envs.virtual_shell import jobs
from agentenv.envs.virtual_shell.env import VirtualShell
from agentenv.envs.virtual_shell.file_system import MAX_NODES, FileSystem
from agentenv.envs.virtual_shell.pattern import glob, regular_expression
from agentenv.envs.virtual_shell.shell import MAX_OUTPUT_CHARS, MAX_WORK, Shell


def shell_with(**files):
    made = FileSystem()
    made.make_folder("/d")
    for name, content in files.items():
        made.write(f"/d/{name.replace('_', '.')}", content)
    return Shell(files=made, folder="/d")


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("ls", "a.txt\nb.log"),
        ("ls -l a.txt", "a.txt"),
        ("ls -R /", "d/\nd/a.txt\nd/b.log"),
        ("cat a.txt", "one\ntwo\nthree"),
        ("cat *.txt b.log | wc -l", "5"),
        ("grep -n t a.txt", "2:two\n3:three"),
        ("grep -c '^ERR' b.log", "1"),
        ("grep -vi err b.log", "ok y"),
        ("grep -rl two .", "./a.txt"),
        ("find . -name '*.log'", "./b.log"),
        ("find /d -type d", "/d"),
        ("sort -r a.txt | head -n 1", "two"),
        ("tail -n 2 a.txt", "two\nthree"),
        ("echo a > c.out && cat c.out; echo 'x  y'", "a\nx  y"),
        ("echo 1 > n; echo 2 >> n; cat n", "1\n2"),
        ("echo q w | xargs -I @ echo '<@>'", "<q>\n<w>"),
        ("cut -d ' ' -f 2 b.log", "x\ny"),
        ("echo 'b a' | cut -d ' ' -f 1 | sort | uniq -c", "      1 b"),
        ("cd / && pwd", "/"),
        ("cd nowhere && pwd", "cd: /d/nowhere: No such file or directory"),
        ("cat nothing; echo on", "cat: /d/nothing: No such file or directory\non"),
        ("nmap", "sh: nmap: command not found"),
        ("echo $HOME", "sh: variables: not supported"),
        ("echo 'open", "sh: syntax error: a quote is not closed"),
        ("rm -r /", "rm: /: refusing to remove the root"),
        ("mv /d /d/e", "mv: /d: cannot copy a directory into itself"),
        ("true | | cat", "sh: true: command not found"),
        ("> x", "sh: syntax error: a command is missing"),
        ("", "(no output)"),
    ],
)  # fmt: skip
def test_a_line_prints_what_a_shell_prints(line, printed):
    told = shell_with(a_txt="one\ntwo\nthree\n", b_log="ERR x\nok y\n").run(line)
    assert told.startswith(printed) if "command not found" in printed else told == printed


def test_moving_and_copying_folders_keeps_everything_below_them():
    shell = shell_with(a_txt="1")
    shell.run("mkdir -p x/y && cp a.txt x/y && cp -r x z && mv x w && rm -r z/y")
    assert shell.files.files == {"/d/a.txt": "1", "/d/w/y/a.txt": "1"}
    assert shell.files.folders == {"/", "/d", "/d/w", "/d/w/y", "/d/z"}


@given(
    st.lists(st.sampled_from(["a", "b", ".", "a*", ".*", "[ab]", "[^a]"]), max_size=6),
    st.sampled_from(["", "^"]),
    st.sampled_from(["", "$"]),
    st.text("abc", max_size=8),
)
def test_regular_expressions_agree_with_the_standard_library(parts, start, end, text):
    pattern = f"{start}{''.join(parts)}{end}"
    assert regular_expression(pattern).is_in(text) == bool(re.search(pattern, text))


def test_globs_fit_whole_names():
    assert [name for name in ("a.log", "b.log", "a.logs", "log") if glob("[a-b]*.log").is_in(name)] == [
        "a.log",
        "b.log",
    ]
    assert glob("?").is_in("x")
    assert not glob("?").is_in("xy")


@pytest.mark.parametrize(
    "line",
    [
        "; ".join(["cat a.txt a.txt a.txt > b; cat b b b > a.txt"] * 40),
        "grep 'a*a*a*a*a*a*a*a*a*a*a*a*b' a.txt " + "a.txt " * 400,
        "cat " + "a.txt " * 900,
        "echo */../*/../*/../*/../*/../*/../*/../*/../*",
        "xargs " * 500,
        "echo " + "a " * 900 + "| xargs -I a echo " + "a" * 1000,
        "cp -r /d /e; " * 100,
        "mkdir -p " + "a/" * 1500,
    ],
)
def test_a_hostile_line_is_bounded_in_work_and_output(line):
    shell = shell_with(a_txt="aaaa aaaa\n" * 50)
    for number in range(30):
        shell.run(f"mkdir m{number}")
    assert len(shell.run(line)) < MAX_OUTPUT_CHARS + 100
    assert shell._work <= MAX_WORK
    assert len(shell.files.files) + len(shell.files.folders) <= MAX_NODES
    assert sum(map(len, shell.files.files.values())) <= 60_000


def test_no_word_of_the_worlds_is_part_of_another():
    words = jobs._WORDS
    assert [(a, b) for a in words for b in words if a != b and a in b] == []


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_line_of_every_job_leads_to_its_goal_and_not_doing_it_does_not(level):
    for seed in range(100):
        rng = np.random.default_rng(seed)
        world = jobs.make_world(rng)
        job = jobs.make_job(rng, world, level=level)
        shell = Shell(files=world.copy())
        assert shell.run(job.line) == "(no output)"
        assert shell.files == job.done != world


def test_a_side_effect_costs_the_reward():
    env = VirtualShell(difficulty=1)
    for extra, expected in (("pwd", 1.0), ("touch /x", 0.0), ("touch /x; rm /x", 1.0)):
        env.reset(seed=3)
        env.step(tool_turn("shell", {"command": env.jobs[0].line}).to_dict())
        env.step(tool_turn("shell", {"command": extra}).to_dict())
        assert env.step("done")[1] == expected
