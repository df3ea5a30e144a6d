"""Search over a local corpus: reading it, building the index once, and finding what BM25 ranks first."""

import json
import math

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from agentenv.errors import DataError, UsageError
from agentenv.tools import search_index
from agentenv.tools.corpus import Passage, read_corpus
from agentenv.tools.search import Search, corpus_index
from agentenv.tools.search_index import open_index
from tests.tools.desks import box, told

PASSAGES = tuple(
    Passage(passage_id=name, text=text)
    for name, text in [
        ("cats", "The cat sat on the mat. A cat purrs."),
        ("dogs", "The dog barks at the cat and at the moon over the sea."),
        ("moon", "The moon pulls the sea."),
    ]
)


def test_scores_are_those_of_bm25(tmp_path):
    index = open_index(PASSAGES, cache=tmp_path)

    hits = index.search("cat", num_hits=5)

    # without stop words cats has 5 words (cat twice), dogs 6, moon 3; the mean is 14/3, and cat is in 2 of 3 passages
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))

    def bm25(count, length):
        return idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * length / (14 / 3)))

    assert [hit.passage.passage_id for hit in hits] == ["cats", "dogs"]
    assert [hit.score for hit in hits] == pytest.approx([bm25(2, 5), bm25(1, 6)], rel=1e-5)


def test_the_best_of_many_passages_are_those_of_the_full_sum(tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.zipf(1.3, rng.integers(3, 30)) % 300) for _ in range(2_000)]
    index = open_index([Passage(passage_id=str(i), text=text) for i, text in enumerate(texts)], cache=tmp_path)
    for _ in range(100):
        query = [f"w{n}" for n in rng.zipf(1.3, 4) % 300]
        everything = index.search(" ".join(query), num_hits=2_000)
        assert index.search(" ".join(query), num_hits=7) == everything[:7]
        assert [hit.score for hit in everything] == sorted((hit.score for hit in everything), reverse=True)
        holding = {i for i, text in enumerate(texts) if set(text.split()) & set(query)}
        assert {int(hit.passage.passage_id) for hit in everything} == holding


async def test_the_tool_shows_snippets_and_whole_passages(tmp_path):
    kit = Search(open_index(PASSAGES, cache=tmp_path), num_hits=1, snippet_chars=10)
    tools = box(kit)
    assert await told(tools, "search", query="MOON sea?") == "[moon] The moon p ..."
    assert await told(tools, "open_passage", passage_id="moon") == "The moon pulls the sea."
    assert await told(tools, "search", query="zebra") == "Nothing was found; try other words."
    assert "there is no passage" in await told(tools, "open_passage", passage_id="x")
    assert (await told(tools, "search", query=" ")).startswith("Error: a query has 1 to 1,000")
    assert (await told(tools, "search", query="x" * 2_000)).startswith("Error: a query has")


def test_an_index_is_built_once_per_content(tmp_path):
    open_index(PASSAGES, cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    built = (folder / "scores.npy").stat().st_mtime_ns

    again = open_index(PASSAGES, cache=tmp_path)
    assert (folder / "scores.npy").stat().st_mtime_ns == built
    assert again.search("moon", num_hits=1)[0].passage.passage_id == "moon"

    open_index(PASSAGES[:2], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_torn_index_is_built_anew(tmp_path):
    open_index(PASSAGES, cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "scores.npy").write_bytes(b"torn")
    assert open_index(PASSAGES, cache=tmp_path).search("moon", num_hits=1)
    assert np.load(folder / "scores.npy").dtype == np.float32


def test_a_folder_is_cut_into_passages(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\n" + "x" * 25)
    (tmp_path / "sub" / "b.md").write_text("three")
    (tmp_path / "picture.png").write_bytes(b"\xff")
    found = read_corpus(tmp_path, passage_chars=10)
    assert [(p.passage_id, p.text) for p in found] == [
        ("a.txt#1", "one\n\ntwo"),
        ("a.txt#2", "x" * 10),
        ("a.txt#3", "x" * 10),
        ("a.txt#4", "x" * 5),
        ("sub/b.md#1", "three"),
    ]


def test_rows_of_jsonl_and_parquet_are_passages(tmp_path):
    rows = [{"id": "a", "title": "T", "text": "x"}, {"id": 7, "title": None, "text": "y"}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x", "y"]}), tmp_path / "c.parquet")

    first, second = read_corpus(tmp_path / "c.jsonl")
    assert (first, second.passage_id) == (Passage(passage_id="a", title="T", text="x"), "7")
    assert [p.passage_id for p in read_corpus(tmp_path / "c.parquet")] == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("bad.jsonl", b'{"text": 3}\n', "row 0: field 'text' is int; expected text"),
        ("bad.jsonl", b'{"words": "x"}\n', "row 0: field 'text' is missing; found words"),
        ("bad.jsonl", b'{"text": "a", "id": 1}\n{"text": "b", "id": 1}\n', "two rows have the id '1'"),
        ("bad.jsonl", b'{"text": "a", "id": []}\n', "field 'id' is list"),
        ("bad.jsonl", b'{"text": "\xff"}\n', "not UTF-8"),
        ("bad.jsonl", b"", "the file is empty"),
        ("bad.parquet", b"PAR1", "not a readable parquet file"),
        ("bad.csv", b"x", "unknown kind of file"),
    ],
)
def test_a_bad_corpus_file_is_named_with_its_fault(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.") as caught:
        read_corpus(tmp_path / name)
    assert told in str(caught.value)


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(DataError, match="the corpus is empty"):
        read_corpus(tmp_path)
    with pytest.raises(DataError, match="the corpus is empty"):
        open_index([], cache=tmp_path)
    with pytest.raises(DataError, match="holds a word"):
        open_index([Passage(passage_id="a", text="the of !")], cache=tmp_path)
    with pytest.raises(DataError, match="no such file"):
        read_corpus(tmp_path / "missing.jsonl")


def test_a_file_of_a_folder_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8"):
        read_corpus(tmp_path)


def test_a_corpus_on_disk_is_opened_once_in_a_process(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("moon")
    first = corpus_index(tmp_path / "corpus", cache=tmp_path / "cache")
    assert corpus_index(tmp_path / "corpus", cache=tmp_path / "cache") is first


def test_numbers_of_hits_out_of_range_are_refused(tmp_path):
    with pytest.raises(UsageError, match="num_hits is 0"):
        Search(PASSAGES, num_hits=0)
    with pytest.raises(UsageError, match="num_hits is 0"):
        open_index(PASSAGES, cache=tmp_path).search("x", num_hits=0)
    assert "the" in search_index.STOP_WORDS
