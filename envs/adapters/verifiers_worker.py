"""Serves the tasks of a verifiers taskset over pipes; it runs in the Python that has verifiers, without this package.

One JSON object per line: `{"load": {...}}`, `{"task": 3}`, `{"score": 3, "messages": [...]}`; one line answers each.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import inspect
import itertools
import json
import os
import sys
from typing import Any


class Served:
    """A loaded taskset."""

    def __init__(self) -> None:
        self.tasks: list[Any] = []

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load the taskset and say how many tasks it has, or why they cannot be played here."""
        loaders = importlib.import_module("verifiers.v1.utils.loaders")
        name = request["taskset"]
        config = loaders.taskset_config_type(name)(id=name, **request["config"])
        taskset = loaders.load_taskset(config)
        self.tasks = list(itertools.islice(taskset, request["max_tasks"]))
        if not self.tasks:
            return {"refused": "it has no task"}
        first = self.tasks[0]
        if first.NEEDS_CONTAINER or first.data.image:
            return {"refused": "its tasks need a container"}
        if type(first).toolsets(first.config) or type(taskset).toolsets(config):
            return {"refused": "its tasks have tool servers"}
        if first.data.prompt is None:
            return {"refused": "a simulated user opens its conversations"}
        needing = [fn.__name__ for fn in first.hooks("reward") if _needs_runtime(fn)]
        if needing:
            return {"refused": f"its rewards look into a runtime: {', '.join(needing)}"}
        return {"num_tasks": len(self.tasks), "version": importlib.metadata.version("verifiers")}

    def task(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return what the agent is shown of a task, and its data."""
        data = self.tasks[request["task"]].data
        dumped = data.model_dump(mode="json")
        prompt = dumped["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if data.system_prompt:
            messages = [{"role": "system", "content": data.system_prompt}, *messages]
        return {"messages": messages, "data": dumped}

    def score(self, request: dict[str, Any]) -> dict[str, Any]:
        """Score a conversation with the rewards of its task."""
        vf = importlib.import_module("verifiers.v1")
        types = importlib.import_module("verifiers.v1.types")
        kinds = {"system": types.SystemMessage, "user": types.UserMessage, "assistant": types.AssistantMessage}
        task = self.tasks[request["score"]]
        described = vf.TraceTask(type=type(task).__name__, data=task.data, hash=task.hash, key=task.key)
        trace = vf.Trace(task=described, agent=vf.AgentInfo.model_construct())
        for index, said in enumerate(request["messages"]):
            message = kinds[said["role"]](content=said["content"])
            parent = index - 1 if index else None
            trace.nodes.append(vf.MessageNode(parent=parent, message=message, sampled=said["role"] == "assistant"))
        asyncio.run(task.score(trace))
        return {"reward": float(trace.reward), "parts": {k: v.value for k, v in trace.rewards.items() if v is not None}}


def _needs_runtime(function: Any) -> bool:
    parameter = inspect.signature(function).parameters.get("runtime")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def main() -> None:
    """Answer requests until the other side closes the pipe."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what tasks print is no answer
    served = Served()
    verbs = {"load": lambda request: served.load(request["load"]), "task": served.task, "score": served.score}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = verbs[next(iter(request))](request)
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {str(error)[:2000]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
