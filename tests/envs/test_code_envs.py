"""HumanEval, CodeWrite, BugFix and PythonMath: hidden tests in the sandbox, and what tries to get around them."""

import asyncio

import numpy as np
import pytest

from agentenv import Task, tool_turn
from agentenv.envs.bug_fix.bugs import break_function
from agentenv.envs.bug_fix.env import BugFix
from agentenv.envs.code_write.env import CodeWrite
from agentenv.envs.code_write.specification import make_problem
from agentenv.envs.graded_code import _CHEATS, code_in, fenced, passes, sandbox_unavailable
from agentenv.envs.humaneval.env import HumanEval, whole_source
from agentenv.envs.humaneval.problems import all_problems, problems_of
from agentenv.envs.python_math import env as python_math
from agentenv.envs.python_math.problems import make_problem as make_number_problem
from agentenv.errors import EpisodeError, SandboxUnavailable
from agentenv.sandbox_settings import SandboxSettings, sandbox_settings, use_sandbox

WHY_NOT = sandbox_unavailable()
sandboxed = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "a sandbox works")


def graded(problem, answer):
    async def run():
        source = whole_source(problem, answer)
        return await passes(source, problem.test, entry_point=problem.entry_point, support=problem.prompt)

    return run()


@sandboxed
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_the_canonical_solutions_score_164_and_empty_ones_0():
    problems = all_problems()
    right = [await graded(problem, fenced(problem.prompt + problem.solution)) for problem in problems]
    empty = [await graded(problem, answer) for problem in problems for answer in ("", fenced("    pass\n"))]
    assert [problem.task_id for problem, value in zip(problems, right, strict=True) if value != 1.0] == []
    assert (len(right), sum(right), sum(empty)) == (164, 164.0, 0.0)


@sandboxed
async def test_a_body_alone_is_a_whole_answer_too():
    problem = all_problems()[0]
    assert await graded(problem, problem.solution) == 1.0


@sandboxed
@pytest.mark.timeout(300)
@pytest.mark.parametrize("index", range(len(_CHEATS)))
async def test_no_cheating_program_passes_any_kind_of_test(index):
    # problems whose tests are calls, run as a program, and compare with a tolerance
    for number in (0, 32, 38, 53):
        problem = all_problems()[number]
        assert await graded(problem, fenced(_CHEATS[index].replace("ENTRY", problem.entry_point))) == 0.0


def test_the_problems_are_parted_and_all_of_them_are_there():
    train, test = problems_of("train", "split"), problems_of("test", "split")
    assert (len(train), len(test), len(all_problems())) == (41, 123, 164)
    assert not {problem.task_id for problem in train} & {problem.task_id for problem in test}
    assert problems_of("train", "all") == problems_of("test", "all") == all_problems()


def test_the_last_fenced_block_is_the_code():
    assert code_in("a\n```python\nx = 1\n```\nb\n```\ny = 2\n```\n") == "y = 2\n"
    assert code_in("z = 3") == "z = 3"


@sandboxed
def test_a_task_of_humaneval_is_played_by_its_id():
    env = HumanEval()
    env.reset(seed=0, options={"task": Task(task_id="HumanEval/5")})
    assert env.problem.entry_point == "intersperse"
    assert env.step(env.oracle())[1] == 1.0
    env.close()


@pytest.mark.parametrize("num_bugs", [1, 2, 3, 4])
def test_every_bug_is_on_a_line_of_its_own_and_is_revealed(num_bugs):
    for seed in range(15):
        found = break_function(np.random.default_rng(seed), num_bugs=num_bugs)
        pairs = zip(found.broken.splitlines(), found.right.splitlines(), strict=True)
        assert sum(one != other for one, other in pairs) == num_bugs


def test_no_constant_comes_near_the_expected_values():
    for seed in range(50):
        _, tests = make_problem(np.random.default_rng(seed), num_steps=5)
        assert len({repr(test.expected) for test in tests}) >= 6


@sandboxed
def test_a_bug_is_mended_through_the_tools_and_an_unmended_file_earns_nothing():
    env = BugFix(difficulty=1)
    for mend, expected in ((True, 1.0), (False, 0.0)):
        env.reset(seed=2)
        assert env.broken is not None
        text = env.broken.right if mend else env.broken.broken
        env.step(tool_turn("create_file", {"path": "solution.py", "text": text}).to_dict())
        assert env.step("done")[1] == expected
    env.close()


@sandboxed
def test_code_is_tried_out_before_it_is_handed_in():
    env = CodeWrite()
    env.reset(seed=0)
    assert env.step(tool_turn("run_python", {"code": "print(6 * 7)"}).to_dict())[0] == "42"
    assert env.step(tool_turn("run_python", {"code": "import sys; sys.exit(3)"}).to_dict())[0] == "[exit code 3]"
    assert env.specification is not None
    assert env.step(env.specification.solution)[1] == 1.0
    env.close()


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_the_cells_of_a_number_problem_compute_its_answer(difficulty):
    for seed in range(10):
        problem = make_number_problem(np.random.default_rng(seed), difficulty=difficulty)
        space = {}
        for cell in problem.cells[:-1]:
            exec(cell, space)
        assert eval(problem.cells[-1], space) == problem.answer


@sandboxed
def test_variables_stay_for_the_episode_and_not_for_the_next():
    env = python_math.PythonMath()
    env.reset(seed=0)
    env.step(tool_turn("python", {"code": "x = 41"}).to_dict())
    assert env.step(tool_turn("python", {"code": "x + 1"}).to_dict())[0] == "42"
    first = env.sandbox
    env.reset(seed=0)
    assert env.sandbox is not first
    assert "NameError" in env.step(tool_turn("python", {"code": "x"}).to_dict())[0]
    lost = env.step(tool_turn("python", {"code": "import os; os.kill(os.getpid(), 9)"}).to_dict())[0]
    assert lost == "The interpreter was ended by signal 9. The interpreter was replaced: its variables are lost."
    env.close()
    assert env.sandbox is None


@pytest.mark.parametrize("env_class", [HumanEval, CodeWrite, BugFix, python_math.PythonMath])
def test_without_a_sandbox_no_episode_begins(env_class):
    before = sandbox_settings()
    # a border that is weaker than what is asked for is no sandbox
    use_sandbox(SandboxSettings(backend="landlock", min_isolation="strong"))
    try:
        env = env_class()
        with pytest.raises((SandboxUnavailable, EpisodeError), match="sandbox"):
            env.reset(seed=0)
        env.close()
        assert "sandbox" in env_class.unavailable()
    finally:
        use_sandbox(before)


def test_probing_for_a_sandbox_works_inside_a_running_loop():
    async def probe():
        return sandbox_unavailable()

    assert asyncio.run(probe()) == WHY_NOT
