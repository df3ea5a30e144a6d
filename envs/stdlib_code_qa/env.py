"""StdlibCodeQA: answer questions about real code by searching and reading it."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from agentenv.envs.drawing import pick_distinct
from agentenv.envs.question import Question, QuestionEnv
from agentenv.envs.stdlib_code_qa.questions import QUESTIONS
from agentenv.envs.stdlib_code_qa.sources import Module, load_module, module_names
from agentenv.tasks import Task
from agentenv.tools.files import Files

NUM_FILES = 4
_READING = ("list_files", "search_files", "view_file")


class StdlibCodeQA(QuestionEnv):
    """Answer a question about four modules of the standard library with tools that list, search and show files.

    The files are those of the running Python, so questions differ between its versions; the truth is computed from
    their syntax trees. Reward: 1.0 if the text after the last `####` is the truth, else 0.0.

    Args:
        difficulty: 1: the number of a function's parameters; 2: a default value; 3: the same, the file unnamed; 4: the
            number of a class's methods; 5: the base of the class that defines a method.
        **options: of `AgentEnv`.
    """

    random_threshold: ClassVar[float] = 0.2

    def __init__(self, *, difficulty: int = 2, **options: Any) -> None:
        self.modules: tuple[Module, ...] = ()
        super().__init__(difficulty=difficulty, **{"max_turns": 12, **options})

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw modules until they give a question."""
        while True:
            names = pick_distinct(rng, module_names(), count=NUM_FILES)
            self.modules = tuple(load_module(name) for name in names)
            question = QUESTIONS[self.difficulty - 1](rng, self.modules)
            if question is not None:
                return question

    def setup(self, rng: np.random.Generator, task: Task) -> str:
        """Draw files and a question about them."""
        prompt = super().setup(rng, task)
        self.attach(Files({module.file: module.text for module in self.modules}))
        self.offer_only(_READING)
        files = ", ".join(module.file for module in self.modules)
        return f"The files are {files}. {prompt}"
