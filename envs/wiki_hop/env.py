"""WikiHop: find a fact that lies several articles away, in an encyclopaedia that exists in this episode only."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np

from agentenv.envs.drawing import world_generator
from agentenv.envs.question import PlannedCall, Question, QuestionEnv
from agentenv.envs.wiki_hop.world import World, draw_path, make_world
from agentenv.errors import ToolError, did_you_mean
from agentenv.tasks import Task
from agentenv.tool import tool

_NUM_HITS = 4
_SNIPPET_CHARS = 60
_MAX_QUERY_CHARS = 200
_TITLE_WEIGHT = 3
_WORD = re.compile(r"\w+")


class WikiHop(QuestionEnv):
    """Answer a question that leads from article to article, with the tools `search` and `open_article`.

    People, towns, firms and rivers are invented anew for every episode, so nothing can be known beforehand.

    Reward: 1.0 if the text after the last `####` is the number that was asked for, else 0.0.

    Args:
        difficulty: number of articles that lead to the answer, 1 to 5.
        **options: of `AgentEnv`.
    """

    random_threshold: ClassVar[float] = 0.1

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.world = World(articles={}, kinds={}, related={})
        super().__init__(difficulty=difficulty, **{"max_turns": 2 * difficulty + 8, **options})

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Draw a world, its articles and a question."""
        generator = world_generator(rng, split=self.split)
        self.world = make_world(generator)
        text, visited, answer = draw_path(generator, self.world, num_hops=self.difficulty)
        calls: list[PlannedCall] = []
        for name in visited:
            calls.append(PlannedCall(name="search", arguments={"query": name}))
            calls.append(PlannedCall(name="open_article", arguments={"title": name}))
        others = [value for (_, relation), value in self.world.related.items() if not relation.target]
        candidates = tuple(sorted({answer, *others}))
        return self.ask(Question(text=text, answer=answer, calls=tuple(calls), candidates=candidates))

    @tool(read_only=True)
    def search(self, query: str) -> list[dict[str, str]]:
        """Find the articles that share most words with a query, words of the title first.

        Args:
            query: a few words.
        """
        words = set(_words(query[:_MAX_QUERY_CHARS]))
        scored = []
        for title, text in self.world.articles.items():
            score = _TITLE_WEIGHT * len(words & set(_words(title))) + len(words & set(_words(text)))
            if score:
                scored.append((-score, title))
        return [
            {"title": title, "begins": f"{self.world.articles[title][:_SNIPPET_CHARS]}..."}
            for _, title in sorted(scored)[:_NUM_HITS]
        ]

    @tool(read_only=True)
    def open_article(self, title: str) -> str:
        """Read an article.

        Args:
            title: as a search shows it.
        """
        if title not in self.world.articles:
            raise ToolError(f"there is no article {title[:80]!r}.{did_you_mean(title[:80], self.world.articles)}")
        return self.world.articles[title]

    def fingerprint(self) -> str:
        """Return the question and all articles."""
        return f"{self.question.text} {self.world.articles}"


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
