"""What a configuration file and overrides become, and what is said about wrong ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from agentenv.config import (
    Config,
    count_keys,
    diff,
    key_table,
    load_config,
    public_values,
    public_yaml,
    reference_markdown,
    schema,
    to_yaml,
)
from agentenv.errors import ConfigError


class AlgorithmSection(Config):
    """How advantages are made."""

    advantage: Literal["grpo", "rloo", "gae"] = "rloo"
    """Estimator of the advantage."""
    clip_low: float = Field(default=0.2, gt=0, description="Lower clip | of the ratio.")
    kl: Literal["k1", "k2"] | None = None


class TrainerSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    num_steps: int = Field(default=100, ge=1)
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    checkpoint_folder: Path | None = None


class LocalEngine(Config):
    kind: Literal["local"] = "local"
    num_threads: int = 1


class RemoteEngine(Config):
    kind: Literal["remote"]
    url: str
    api_key: str = ""


class RootSection(Config):
    name: str = "run"
    seed: int = 0
    algorithm: AlgorithmSection = AlgorithmSection()
    trainer: TrainerSection = TrainerSection()
    engine: Annotated[LocalEngine | RemoteEngine, Field(discriminator="kind")] = LocalEngine()
    env_kwargs: dict[str, int | str] = Field(default_factory=dict)
    tags: tuple[str, ...] = ()


def written(folder: Path, text: str) -> Path:
    path = folder / "train.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, text: str, *, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(RootSection, written(folder, text), overrides=overrides)
    return str(caught.value)


def test_a_file_fills_the_sections_and_the_rest_keeps_its_defaults(tmp_path):
    path = written(
        tmp_path, "seed: 7\nalgorithm:\n  advantage: grpo\ntrainer: {learning_rate: 1e-4, betas: [0.8, 1]}\n"
    )

    config = load_config(RootSection, path)

    assert config.seed == 7
    assert config.algorithm.advantage == "grpo"
    assert config.trainer == TrainerSection(learning_rate=0.0001, betas=(0.8, 1.0))
    assert config.algorithm.clip_low == 0.2


def test_an_empty_file_and_no_file_give_the_defaults(tmp_path):
    assert load_config(RootSection, written(tmp_path, "# nothing yet\n")) == RootSection()
    assert load_config(RootSection, None) == RootSection()


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones(tmp_path):
    path = written(tmp_path, "seed: 7\n")
    overrides = ["seed=1", "seed=2", "trainer.betas=[0.5, 0.6]", "env_kwargs.high=15", "algorithm.kl=k2", "tags=[a, b]"]

    config = load_config(RootSection, path, overrides=overrides)

    assert config.seed == 2
    assert config.trainer.betas == (0.5, 0.6)
    assert config.env_kwargs == {"high": 15}
    assert config.algorithm.kl == "k2"
    assert config.tags == ("a", "b")


def test_a_text_key_takes_an_override_as_it_stands():
    for given_text, expected in (("007", "007"), ("off: now # x", "off: now # x"), ('"a b"', "a b"), ("true", "true")):
        assert load_config(RootSection, None, overrides=[f"name={given_text}"]).name == expected


def test_null_and_a_whole_section_can_be_given_as_override():
    config = load_config(RootSection, None, overrides=["algorithm={advantage: gae, kl: k1}", "algorithm.kl=null"])
    assert config.algorithm == AlgorithmSection(advantage="gae", kl=None)


def test_a_syntax_error_names_file_line_and_column(tmp_path):
    message = complaint(tmp_path, "seed: 1\nalgorithm:\n  advantage: [grpo\ntrainer: 1\n")
    assert "train.yaml, line 4, column 8: not valid YAML" in message
    assert "flow sequence" in message


def test_a_misspelt_key_gets_its_neighbour_suggested_with_the_line(tmp_path):
    message = complaint(tmp_path, "seed: 1\nalgorithm:\n  advantge: grpo\n")
    assert 'train.yaml, line 3: unknown key "algorithm.advantge". Did you mean "algorithm.advantage"?' in message


def test_a_key_of_another_section_is_found_there(tmp_path):
    assert 'Did you mean "algorithm.advantage"?' in complaint(tmp_path, "trainer:\n  advantage: grpo\n")
    assert 'Did you mean "trainer.learning_rate"?' in complaint(tmp_path, "", overrides=("algorithm.learning_rat=1",))
    assert 'Did you mean "trainer.num_steps"?' in complaint(tmp_path, "", overrides=("trainr.num_steps=1",))
    assert 'Did you mean "algorithm"?' in complaint(tmp_path, "algoritm: {}\n")


def test_the_same_name_in_another_section_is_meant_rather_than_a_vaguely_similar_neighbour(tmp_path):
    assert 'Did you mean "tags"?' in complaint(tmp_path, "trainer:\n  tags: [a]\n")  # and not "trainer.betas"


def test_an_unknown_key_without_a_near_miss_lists_what_there_is(tmp_path):
    message = complaint(tmp_path, "trainer:\n  zzz: 1\n")
    assert message.endswith('Keys of "trainer": num_steps, learning_rate, betas, checkpoint_folder.')


def test_a_wrong_option_lists_the_options(tmp_path):
    message = complaint(tmp_path, "algorithm:\n  advantage: grpoo\n")
    assert (
        '"algorithm.advantage" is "grpoo" (text); expected one of "grpo", "rloo", "gae". Did you mean "grpo"?'
        in message
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trainer: {num_steps: fast}", '"trainer.num_steps" is "fast" (text); expected integer, at least 1'),
        ("trainer: {num_steps: 0}", '"trainer.num_steps" is 0; expected integer, at least 1'),
        ("trainer: {num_steps: true}", '"trainer.num_steps" is true; expected integer, at least 1'),
        ("trainer: {learning_rate: [1]}", '"trainer.learning_rate" is [1]; expected number'),
        ("algorithm: {clip_low: 0}", '"algorithm.clip_low" is 0; expected number, above 0'),
        ("algorithm: {kl: k3}", '"algorithm.kl" is "k3" (text); expected one of "k1", "k2" or null'),
        ("trainer: {betas: [0.9]}", 'key "trainer.betas.1" is missing; expected number'),
        ("name: 5", '"name" is 5; expected text'),
        ("trainer: 3", '"trainer" is 3; expected a section with num_steps, learning_rate'),
        ("engine: {kind: remote}", 'key "engine.url" is missing; expected text'),
        ("engine: {kind: remote, url: 1}", '"engine.url" is 1; expected text'),
        ("- 1", "the file holds a list; expected keys and values"),
        ("seed: 1\nseed: 2", 'line 2: key "seed" stands twice, first in line 1'),
        ("seed: !!python/object:os.system x", "not valid YAML"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(tmp_path, text, expected):
    assert expected in complaint(tmp_path, text)


def test_every_wrong_key_is_told_at_once_with_its_source(tmp_path):
    message = complaint(tmp_path, "seed: x\ntrainer:\n  num_steps: 0\n", overrides=("algorithm.clip_low=-1",))
    assert message.splitlines() == [
        f'{tmp_path}/train.yaml, line 1: "seed" is "x" (text); expected integer.',
        'override "algorithm.clip_low=-1": "algorithm.clip_low" is -1; expected number, above 0.',
        f'{tmp_path}/train.yaml, line 3: "trainer.num_steps" is 0; expected integer, at least 1.',
    ]


def test_a_wrong_override_is_named(tmp_path):
    assert 'override "seed" has no value' in complaint(tmp_path, "", overrides=("seed",))
    assert "not valid YAML" in complaint(tmp_path, "", overrides=("trainer.betas=[1",))
    assert '"seed" is 3, which has no keys' in complaint(
        tmp_path, "seed: 3\n", overrides=("seed=3", "env_kwargs=1")
    ) or ('"env_kwargs" is 1' in complaint(tmp_path, "", overrides=("env_kwargs=1",)))
    assert '"env_kwargs" is 1, which has no keys' in complaint(
        tmp_path, "env_kwargs: 1\n", overrides=("env_kwargs.a=1",)
    )


def test_a_missing_file_is_named_with_its_near_miss(tmp_path):
    written(tmp_path, "")
    with pytest.raises(ConfigError, match=r'trian.yaml: no such file. Did you mean "train.yaml"'):
        load_config(RootSection, tmp_path / "trian.yaml")


TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["1e-3", "off", "no", "010", "1:30", "2024-01-01", "null", "~", "", " x ", "1_000", ".inf", "true", "#", "a: b"]
)


@given(
    name=TEXTS,
    seed=st.integers(-(2**80), 2**80),
    rate=st.floats(allow_nan=False),
    tags=st.lists(TEXTS, max_size=3).map(tuple),
    kwargs=st.dictionaries(TEXTS, st.integers(-5, 5) | TEXTS, max_size=3),
)
def test_the_written_yaml_reads_back_to_an_equal_configuration(tmp_path_factory, name, seed, rate, tags, kwargs):
    config = RootSection(
        name=name,
        seed=seed,
        trainer=TrainerSection(learning_rate=rate, checkpoint_folder=Path("a/b")),
        tags=tags,
        env_kwargs=kwargs,
    )
    path = written(tmp_path_factory.getbasetemp(), to_yaml(config))
    assert load_config(RootSection, path) == config


def test_nan_survives_yaml(tmp_path):
    path = written(tmp_path, to_yaml(TrainerSection(learning_rate=math.nan)))
    assert math.isnan(load_config(TrainerSection, path).learning_rate)


def test_diff_names_the_changed_keys_with_both_values():
    old = RootSection(env_kwargs={"high": 15})
    new = RootSection(seed=3, algorithm=AlgorithmSection(advantage="grpo"), env_kwargs={"low": 1})

    changes = diff(old, new)

    assert [str(change) for change in changes] == [
        'algorithm.advantage: "rloo" -> "grpo"',
        "env_kwargs.high: 15 -> absent",
        "env_kwargs.low: absent -> 1",
        "seed: 0 -> 3",
    ]
    assert diff(old, old) == []


def test_the_key_table_lists_every_key_with_its_default_and_description():
    rows = {row.key: row for row in key_table(RootSection)}

    # 2 + 3 (algorithm) + 4 (trainer) + 2 and 3 (two kinds of engine, which share one key) + 2
    assert (count_keys(RootSection), len(key_table(RootSection))) == (15, 16)
    assert rows["algorithm.advantage"].description == "Estimator of the advantage."
    assert rows["algorithm.advantage"].default == "rloo"
    assert rows["algorithm.clip_low"].type == "number, above 0"
    assert rows["trainer.betas"].default == "[0.9, 0.98]"
    assert rows["engine.url"].default == "required"


def test_a_default_given_by_the_parent_section_is_the_one_shown():
    class Parent(Config):
        algorithm: AlgorithmSection = AlgorithmSection(advantage="gae")

    assert {row.key: row.default for row in key_table(Parent)}["algorithm.advantage"] == "gae"


def test_the_reference_page_has_a_table_per_section_with_bars_escaped():
    page = reference_markdown(RootSection)
    assert "## Top level" in page
    assert "## `algorithm`\n\nHow advantages are made.\n" in page
    assert "| `algorithm.clip_low` | number, above 0 | `0.2` | Lower clip \\| of the ratio. |" in page


def test_the_schema_forbids_unknown_keys():
    assert schema(AlgorithmSection)["additionalProperties"] is False
    assert schema(AlgorithmSection)["properties"]["advantage"]["enum"] == ["grpo", "rloo", "gae"]


def test_public_values_hide_secrets_by_key_and_by_look():
    config = RootSection(
        name="see https://me:hunter22@host/x",
        engine=RemoteEngine(kind="remote", url="https://host", api_key="abc"),
        env_kwargs={"token": "xyz", "max_tokens": 5, "stop_token": "<end>", "header": "Bearer abcdef.ghi"},
        tags=("sk-abcdefghijklmnopqrstuv",),
    )

    shown = public_values(config)

    assert shown["name"] == "see https://me:<hidden>@host/x"
    assert shown["engine"] == {"kind": "remote", "url": "https://host", "api_key": "<hidden>"}
    assert shown["env_kwargs"] == {
        "token": "<hidden>",
        "max_tokens": 5,
        "stop_token": "<end>",
        "header": "Bearer <hidden>",
    }
    assert shown["tags"] == ["<hidden>"]
    assert "api_key: <hidden>" in public_yaml(config)
