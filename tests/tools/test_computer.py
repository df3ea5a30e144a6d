"""Python, shell and files in the sandbox of one episode: the real bubblewrap."""

import pytest

from agentenv import tool_turn
from agentenv.errors import SandboxUnavailable, UsageError
from agentenv.toolkit import attached
from agentenv.tools.computer import Computer
from agentenv.tools.sandbox import Limits, SandboxSettings, chosen, close_sandboxes
from tests.tools.desks import Desk, box, offered, told

STRONG = SandboxSettings(backend="bwrap", min_isolation="strong")


async def opened(limits):
    try:
        choice = await chosen(STRONG)
    except SandboxUnavailable as error:
        pytest.skip(str(error).splitlines()[0])
    return await choice.backend.open(limits=limits)


@pytest.fixture
async def computer():
    kit = Computer(files={"data/a.txt": "one\ntwo\n"}, limits=Limits(wall_s=3.0), open_with=opened)
    await kit.sandbox()
    yield kit
    await kit.close()
    await close_sandboxes()


async def test_variables_of_python_stay_and_errors_are_shown(computer):
    tools = box(computer)
    assert await told(tools, "run_python", code="x = 20\nprint('hi')\nx + 1") == "hi\n21"
    assert await told(tools, "run_python", code="x * 2") == "40"
    assert "ZeroDivisionError" in await told(tools, "run_python", code="1 / 0")
    assert await told(tools, "run_python", code="y = 1") == "(no output)"
    assert await told(tools, "run_python", code="open('data/a.txt').read()") == "'one\\ntwo\\n'"


async def test_a_python_that_hangs_is_replaced_and_the_model_is_told(computer):
    tools = box(computer)
    await told(tools, "run_python", code="x = 1")
    assert "ran past its time and was stopped; all variables are lost" in await told(
        tools, "run_python", code="while True: pass"
    )
    assert "NameError" in await told(tools, "run_python", code="x")


async def test_the_folder_and_exported_variables_of_the_shell_stay(computer):
    tools = box(computer)
    assert await told(tools, "run_shell", command="cd data\nexport GREETING='a b \"c\" $d'\nLOCAL=1") == "(no output)"
    assert await told(tools, "run_shell", command='pwd; echo "$GREETING"; echo "[$LOCAL]"') == (
        '/work/data\na b "c" $d\n[]'
    )
    assert await told(tools, "run_shell", command="cat a.txt; ls nowhere; exit 3") == (
        "one\ntwo\nls: cannot access 'nowhere': No such file or directory\n(exit code 3)"
    )
    assert await told(tools, "run_shell", command="pwd") == "/work/data"


async def test_a_shell_command_that_leaves_no_state_keeps_the_one_before(computer):
    tools = box(computer)
    await told(tools, "run_shell", command="cd data")
    text = await told(tools, "run_shell", command="cd /; exec true")
    assert text == "(The current folder and variables are those of before this command.)"
    assert await told(tools, "run_shell", command="pwd") == "/work/data"
    assert "ran past its time" in await told(tools, "run_shell", command="cd /; sleep 60")
    assert await told(tools, "run_shell", command="pwd") == "/work/data"


@pytest.mark.parametrize(
    "command", ["for", "echo '", "f() {", "exit", "\ud800", "$(", "set -e; false; echo no", "a\0b"]
)
async def test_a_broken_command_leaves_a_shell_that_works(computer, command):
    tools = box(computer)
    await told(tools, "run_shell", command=command)
    assert await told(tools, "run_shell", command="echo fine") == "fine"


async def test_exported_variables_of_the_model_are_values_and_no_commands(computer):
    tools = box(computer)
    await told(tools, "run_shell", command="export A='$(touch forged)' B='`touch forged`' C=\"x';touch forged;'\"")
    assert await told(tools, "run_shell", command='ls; echo "$A $B $C"') == (
        "data\n$(touch forged) `touch forged` x';touch forged;'"
    )


async def test_files_of_the_sandbox_are_edited_with_the_file_tools(computer):
    tools = box(computer)
    assert await told(tools, "list_files") == "data/a.txt (8)"
    assert await told(tools, "view_file", path="data/a.txt", first_line=2) == "2\ttwo"
    assert await told(tools, "replace_text", path="data/a.txt", old="two", new="2") == "Replaced at line 2."
    assert await told(tools, "create_file", path="new/b.py", text="print(7)") == "Created new/b.py (1 lines)."
    assert await told(tools, "insert_lines", path="new/b.py", after_line=1, text="# two") == (
        "Inserted 1 lines after line 1."
    )
    assert await told(tools, "run_shell", command="python3 new/b.py; cat data/a.txt") == "7\none\n2"
    assert await told(tools, "search_files", text="TWO") == "new/b.py:2: # two"
    assert 'Did you mean "data/a.txt"?' in await told(tools, "view_file", path="data/b.txt")
    await told(tools, "run_python", code="_ = open('bytes', 'wb').write(b'\\xff\\x00')")
    assert await told(tools, "view_file", path="bytes") == 'Error: "bytes" is no text in UTF-8'


async def test_a_link_out_of_the_folder_leads_nowhere(computer):
    tools = box(computer)
    await told(tools, "run_shell", command="ln -s /etc/passwd link; ln -s / root")
    for name, more in [("view_file", {}), ("create_file", {"text": "x"})]:
        for path in ("link", "root/etc/hostname"):
            text = await told(tools, name, path=path, **more)
            assert text.startswith("Error: "), (name, path, text)


def test_an_episode_has_a_computer_of_its_own():
    class Lab(Desk):
        """Use a computer. Reward: none."""

        computer = attached(Computer, parts=("python",), open_with=opened)

    env = Lab()
    assert offered(env.tool_specs) == ["run_python"]
    env.reset(seed=0)
    assert env.step(tool_turn("run_python", {"code": "x = 1\nx"}).to_dict())[0] == "1"
    env.reset(seed=0)
    assert "NameError" in env.step(tool_turn("run_python", {"code": "x"}).to_dict())[0]
    env.close()


def test_parts_that_do_not_exist_are_refused():
    with pytest.raises(UsageError, match="parts are pearl"):
        Computer(parts=("pearl",))  # type: ignore[arg-type]
