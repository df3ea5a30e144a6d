"""A taskset of the real verifiers, for the Python that has it: sums."""

import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]


class SumData(vf.TaskData):
    """A sum and its truth."""

    answer: str = ""


class SumTask(vf.Task[SumData]):
    """Pays for the right number, and a little for brevity."""

    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        return float(trace.last_reply.strip() == self.data.answer)

    @vf.reward(weight=0.5)
    async def short(self, trace: vf.Trace) -> float:
        if trace.last_reply == "break":
            raise RuntimeError("a broken reward")
        return float(len(trace.last_reply) < 4)


class AddUpConfig(vf.TasksetConfig):
    """How many sums."""

    size: int = 20


class AddUp(vf.Taskset[SumTask, AddUpConfig]):
    """Sums of equal numbers."""

    def load(self):
        for number in range(self.config.size):
            print("noise on standard output")  # noqa: T201
            yield SumTask(SumData(prompt=f"What is {number} + {number}?", answer=str(2 * number)), self.config.task)


__all__ = ["AddUp"]
