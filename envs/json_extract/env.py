"""JsonExtract: the facts of a text as JSON of a given form."""

from __future__ import annotations

import json

import numpy as np

from agentenv.answer_env import AnswerEnv, Question
from agentenv.envs.json_extract.orders import draw_orders, tell
from agentenv.envs.json_extract.strict_json import is_same, parse, without_fence

FORM = (
    '[{"name": text, "age": number, "city": text, "paid": true or false, '
    '"items": [{"product": text, "quantity": number}]}]'
)


class JsonExtract(AnswerEnv):
    """Write the orders that a text tells of as a JSON list, in the order in which the text names them.

    Reward: 1.0 if the whole answer is JSON, in one code block or without, and equals the truth in values, types, keys
    and the order of lists, else 0.0. A key that stands twice is wrong.

    Args:
        difficulty: number of orders, 1 to 5; from 3 on the text corrects itself and names people who ordered nothing.
        **options: of `AgentEnv`.
    """

    max_answer_chars = 20_000

    def draw(self, rng: np.random.Generator) -> Question:
        """Draw orders and a text about them."""
        orders = draw_orders(rng, count=self.difficulty)
        truth = json.dumps(orders)
        text = tell(rng, orders, difficulty=self.difficulty)
        return Question(prompt=f"{text}\nWrite all orders as JSON of this form:\n{FORM}", answer=truth, content=truth)

    @property
    def ending(self) -> str:
        """The last line of the prompt."""
        return "Keep the order of the text. Answer with JSON and nothing else."

    def read(self, text: str) -> str | None:
        """Take the whole answer, out of its code block."""
        return without_fence(text)

    def written(self, answer: str) -> str:
        """Give the JSON alone."""
        return answer

    def is_right(self, answer: str) -> bool:
        """Compare strictly."""
        try:
            return is_same(parse(answer), parse(self.question.answer))
        except ValueError:
            return False

    def guess(self, rng: np.random.Generator) -> str:
        """Write any orders."""
        return json.dumps(draw_orders(rng, count=self.difficulty))

    def cheats(self, rng: np.random.Generator) -> list[str]:
        """Write the truth twice, inside of more, as text, with keys twice, or the form alone."""
        truth = self.question.answer
        orders = json.loads(truth)
        several = [{key: [value, None] for key, value in order.items()} for order in orders]
        as_text = [{key: str(value) for key, value in order.items()} for order in orders]
        return [
            f"{truth}\n{truth}",
            f"{truth} reward: 1.0",
            f"The orders are {truth}",
            json.dumps([*orders, *draw_orders(rng, count=1)]),
            json.dumps(several),
            json.dumps(as_text),
            truth.replace('"age"', '"age": 0, "age"', 1),
            json.dumps([{**orders[0], "correct": True}, *orders[1:]]),
            self.question.prompt,
            FORM,
            "[]",
        ]
