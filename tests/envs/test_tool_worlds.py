"""Rules of the environments over tables, databases, code, APIs and many tools."""

import re
import unicodedata

import numpy as np
import pytest

from agentenv import tool_turn
from agentenv.envs.api_explorer.env import ApiExplorer
from agentenv.envs.data_table.env import DataTable
from agentenv.envs.sql_query.env import SqlQuery
from agentenv.envs.stdlib_code_qa.env import StdlibCodeQA
from agentenv.envs.tool_select.env import ToolSelect
from agentenv.envs.tool_select.offered import all_offers, neighbours
from agentenv.envs.unicode_lookup.env import UnicodeLookup
from agentenv.envs.wiki_hop.env import WikiHop
from agentenv.errors import UsageError


def call(env, name, **arguments):
    return env.step(tool_turn(name, arguments).to_dict())


@pytest.mark.parametrize(
    "env_class", [UnicodeLookup, DataTable, WikiHop, SqlQuery, StdlibCodeQA, ApiExplorer, ToolSelect]
)
@pytest.mark.parametrize("difficulty", [1, 3, 5])
def test_the_oracle_solves_every_difficulty(env_class, difficulty):
    env = env_class(difficulty=difficulty)
    for seed in range(20):
        env.reset(seed=seed)
        total, is_over = 0.0, False
        while not is_over:
            turn = env.oracle()
            _, value, terminated, truncated, _ = env.step(turn if isinstance(turn, str) else turn.to_dict())
            total, is_over = total + value, terminated or truncated
        assert total == 1.0
    env.close()


@pytest.mark.parametrize("difficulty", [0, 6])
def test_a_difficulty_outside_the_range_is_refused(difficulty):
    with pytest.raises(UsageError, match="allowed are 1 to 5"):
        DataTable(difficulty=difficulty)


def test_characters_are_looked_up_in_the_unicode_database():
    env = UnicodeLookup()
    env.reset(seed=0)
    assert call(env, "decompose", code_point="U+00E9")[0].startswith('[{"code_point": "U+0065"')
    assert f'"name": "{unicodedata.name("Σ")}"' in call(env, "upper_case", code_point="u+03c3")[0]
    assert call(env, "properties", code_point="65")[0] == (
        '{"name": "LATIN SMALL LETTER E", "general category": "Ll", "bidirectional class": "L", "code point": "U+0065"}'
    )
    assert call(env, "upper_case", code_point="U+00DF")[0].startswith("Error: it has no single")


def test_tables_are_filtered_and_aggregated_as_by_hand():
    env = DataTable(difficulty=1)
    env.reset(seed=1)
    column = next(iter(env.table.domain.numbers))
    half = env.table.domain.numbers[column][1] // 2
    expected = [value for row in env.table.rows if (value := int(row[column])) > half]
    found = call(env, "select", conditions=[{"column": column, "operator": ">", "value": half}])[0]
    assert found == f'{{"view": "view1", "num_rows": {len(expected)}}}'
    assert call(env, "aggregate", function="sum", column=column, view="view1")[0] == str(sum(expected))
    assert call(env, "aggregate", function="max", column=column, view="view1")[0] == str(max(expected))
    assert call(env, "aggregate", function="sum", column="nothing")[0].startswith(
        "Error: column 'nothing' does not fit"
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_query_that_names_the_visible_result_earns_nothing_and_another_right_one_does(seed):
    env = SqlQuery(difficulty=1)
    env.reset(seed=seed)
    assert env.visible is not None
    rows = env.visible.execute(env.question.query).fetchall()
    constants = ", ".join("(" + ", ".join(repr(value) for value in row) + ")" for row in rows)
    assert call(env, "submit_query", sql=f"VALUES {constants}")[1] == 0.0
    env.reset(seed=seed)
    assert call(env, "submit_query", sql=f"SELECT * FROM ({env.question.query}) ORDER BY 1 DESC")[1] == 1.0


def test_databases_are_closed_with_their_episode():
    env = SqlQuery()
    env.reset(seed=0)
    first = (env.visible, env.hidden)
    env.reset(seed=1)
    for connection in first:
        assert connection is not None
        with pytest.raises(Exception, match="closed"):
            connection.execute("SELECT 1")
    env.close()


def test_code_questions_are_true_of_the_text_itself():
    env = StdlibCodeQA(difficulty=2)
    for seed in range(30):
        env.reset(seed=seed)
        asked = re.search(r"In (\S+), what .* parameter (\w+) of the function (\w+)\?", env.question.text)
        assert asked is not None
        file, parameter, function = asked.groups()
        text = next(module.text for module in env.modules if module.file == file)
        head = text[text.index(f"def {function}(") :]
        written = re.search(rf"\b{parameter}\s*(?::[^=,]*)?=\s*([^,)\s]+)", head)
        assert written is not None
        assert written.group(1).strip("'\"") == env.question.answer.strip("'\"")


def test_the_service_explains_itself_to_whoever_asks():
    env = ApiExplorer(difficulty=3)
    env.reset(seed=0)
    assert env.service is not None
    layout = env.service.layout
    path = layout.path(next(iter(layout.collections)))
    assert path in call(env, "request", method="GET", path="/")[0]
    assert call(env, "request", method="GET", path=path)[0].startswith("401 ")
    assert call(env, "request", method="POST", path=layout.prefix + layout.login, body={"key": "wrong"})[0].startswith(
        "403 "
    )
    assert call(env, "request", method="POST", path=path, body={}, token=layout.token)[0].startswith(
        '422 {"error": "fields'
    )
    assert call(env, "request", method="GET", path="/nowhere")[0].startswith("404 ")


def test_one_change_too_many_costs_the_reward():
    for extra, expected in ((False, 1.0), (True, 0.0)):
        env = ApiExplorer(difficulty=2)
        env.reset(seed=0)
        assert env.job is not None
        for planned in env.job.calls:
            call(env, planned.name, **planned.arguments)
        if extra:
            call(env, env.job.calls[-1].name, **env.job.calls[-1].arguments)
        assert env.step("done")[1] == expected


def test_fifty_tools_are_offered_with_all_that_are_easily_mistaken_for_the_right_one():
    env = ToolSelect(difficulty=2)
    env.reset(seed=0)
    right = next(offer for offer in all_offers() if offer.name == env.expected[0].name)
    assert len(env.tool_specs) == 50
    assert {other.name for other in neighbours(right)} <= set(env.toolbox.tools)
    assert len(all_offers()) == 130
    names = [set(env.toolbox.tools) for seed in range(3) if env.reset(seed=seed)]
    assert names[0] != names[1] != names[2]


def test_the_first_wrong_call_ends_the_episode():
    env = ToolSelect()
    env.reset(seed=0)
    other = next(name for name in env.toolbox.tools if name != env.expected[0].name)
    arguments = {"room": "hall", "person": "Ada", "time": "07:30", "percent": 5, "days": 5, "number": 5}
    wanted = next(offer for offer in all_offers() if offer.name == other).action.parameters
    assert call(env, other, **{name: arguments[name] for name in wanted})[1:3] == (0.0, True)


def test_worlds_of_one_seed_are_equal_and_those_of_the_splits_differ():
    for env_class in (WikiHop, ApiExplorer, DataTable, SqlQuery):
        prints = []
        for split in ("train", "train", "test"):
            env = env_class(split=split)
            env.reset(seed=7)
            prints.append(env.fingerprint())
            env.close()
        assert prints[0] == prints[1] != prints[2]


def test_a_search_finds_the_article_of_a_title():
    env = WikiHop()
    env.reset(seed=0)
    for title in env.world.articles:
        assert env.search(title)[0]["title"] == title
    assert np.all([title in text for title, text in env.world.articles.items()])
