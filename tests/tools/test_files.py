"""File tools over a tree in memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentenv.errors import ToolError, UsageError
from agentenv.tools.file_text import clean_path, inserted, numbered, replaced
from agentenv.tools.files import Files
from tests.tools.desks import box, told

TREE = {"a.py": "one\ntwo\nthree\n", "src/b.py": "Two = 2\n", "src/deep/c.txt": "end"}


async def test_files_are_listed_below_a_folder():
    tools = box(Files(TREE))
    assert await told(tools, "list_files") == "a.py (14)\nsrc/b.py (8)\nsrc/deep/c.txt (3)"
    assert await told(tools, "list_files", folder="src/deep/") == "src/deep/c.txt (3)"
    assert await told(tools, "list_files", folder="sr") == 'Error: there is no folder "sr"'


async def test_a_file_is_shown_with_line_numbers():
    tools = box(Files(TREE))
    assert await told(tools, "view_file", path="./a.py") == "1\tone\n2\ttwo\n3\tthree"
    assert await told(tools, "view_file", path="a.py", first_line=2, last_line=9) == "2\ttwo\n3\tthree"
    assert "has lines 1 to 3" in await told(tools, "view_file", path="a.py", first_line=4)
    assert await told(tools, "view_file", path="a.px") == 'Error: there is no file "a.px". Did you mean "a.py"?'


async def test_a_passage_is_replaced_where_it_occurs_exactly_once():
    files = Files(TREE)
    tools = box(files)
    assert await told(tools, "replace_text", path="a.py", old="two\n", new="") == "Replaced at line 2."
    assert files.tree["a.py"] == "one\nthree\n"
    assert "more than once (lines 1, 2, ...)" in await told(tools, "replace_text", path="a.py", old="e", new="f")
    assert "does not occur" in await told(tools, "replace_text", path="a.py", old="two", new="x")
    assert "is empty" in await told(tools, "replace_text", path="a.py", old="", new="x")


async def test_lines_are_inserted_after_a_line():
    files = Files(TREE)
    tools = box(files)
    await told(tools, "insert_lines", path="src/deep/c.txt", after_line=1, text="more")
    assert files.tree["src/deep/c.txt"] == "end\nmore\n"
    await told(tools, "insert_lines", path="a.py", after_line=0, text="zero\n")
    assert files.tree["a.py"].startswith("zero\none\n")
    assert "there is no line 9" in await told(tools, "insert_lines", path="a.py", after_line=9, text="x")


async def test_a_search_finds_lines_with_their_places():
    tools = box(Files(TREE))
    assert await told(tools, "search_files", text="tWo") == "a.py:2: two\nsrc/b.py:1: Two = 2"
    assert await told(tools, "search_files", text="two", folder="src") == "src/b.py:1: Two = 2"
    assert await told(tools, "search_files", text="none") == "No line contains it."
    assert (await told(tools, "search_files", text="")).startswith("Error: search for 1 to 200")
    many = await told(box(Files({"m": "x\n" * 500})), "search_files", text="x")
    assert many.endswith("(the first 100 lines; there are more)")


async def test_files_are_created_and_replaced_within_the_limits():
    files = Files(TREE, max_files=4, max_chars=40)
    tools = box(files)
    assert await told(tools, "create_file", path="new/d.py", text="x\n") == "Created new/d.py (1 lines)."
    assert await told(tools, "create_file", path="new/d.py", text="") == "Replaced new/d.py (0 lines)."
    assert "no more are allowed" in await told(tools, "create_file", path="e", text="")
    assert "would hold" in await told(tools, "create_file", path="a.py", text="x" * 40)
    assert "is a file, so it cannot hold" in await told(tools, "create_file", path="a.py/x", text="")
    assert '"src" is a folder' in await told(tools, "create_file", path="src", text="")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", "~/x", "a\0b", "x" * 2000])
async def test_a_path_out_of_the_folder_is_refused(path):
    tools = box(Files(TREE))
    for name, more in [("view_file", {}), ("create_file", {"text": ""})]:
        assert (await told(tools, name, path=path, **more)).startswith("Error: ")


@given(st.text(alphabet="ab./~\0", max_size=12))
def test_no_cleaned_path_leads_out_of_the_folder(path):
    try:
        cleaned = clean_path(path)
    except ToolError:
        return
    assert not cleaned.startswith(("/", "~")) or (cleaned.startswith("~") and not path.startswith("~"))
    assert ".." not in cleaned.split("/")
    if not cleaned.startswith("~"):
        assert clean_path(cleaned or ".") == cleaned


@given(st.text(alphabet="ab\n", min_size=1, max_size=30), st.text(alphabet="ab\n", min_size=1, max_size=4), st.text())
def test_a_replacement_is_made_exactly_where_the_passage_is_unique(text, old, new):
    starts = [i for i in range(len(text)) if text.startswith(old, i)]
    try:
        changed, line = replaced(text, old, new)
    except ToolError:
        assert len(starts) != 1
        return
    assert len(starts) == 1
    assert changed == text[: starts[0]] + new + text[starts[0] + len(old) :]
    assert line == text[: starts[0]].count("\n") + 1


def test_an_empty_file_can_be_shown_and_filled():
    assert numbered("", first=1, last=None) == "(the file is empty)"
    assert inserted("", "x", after=0) == "x\n"


def test_limits_below_one_are_refused():
    with pytest.raises(UsageError, match="max_files is 0"):
        Files(max_files=0)
