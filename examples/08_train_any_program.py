"""Let a program that only knows the OpenAI client play episodes, and turn what it did into training samples.

    python examples/08_train_any_program.py

`program()` below is anybody's agent: it reads where the model is from the usual environment variables and keeps its
own conversation. It is run as a command, once for every episode, and knows nothing of this package. A scripted engine
stands for the model, so that this runs in seconds anywhere; put any other engine in its place.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys

from openai import OpenAI


def program() -> None:
    """Call the model, and the tools that it asks for, until it calls none or the task is over."""
    client = OpenAI()
    task = json.loads(os.environ["AGENTENV_TASK"])
    messages = task["messages"]
    while True:
        turn = client.chat.completions.create(model="policy", messages=messages, tools=task["tools"]).choices[0].message
        messages.append(turn.to_dict())
        for call in turn.tool_calls or []:
            assert call.type == "function"
            body = {"call_id": call.id, **json.loads(call.function.arguments)}
            result = client.post(f"/tools/{call.function.name}", body=body, cast_to=object)
            assert isinstance(result, dict)
            messages.append(result["message"])
            if result["is_over"]:
                return
        if not turn.tool_calls:
            print(json.dumps({"answer": turn.content}))
            return


async def main() -> None:
    """Play one group of four and print what each member would be trained with."""
    # here and not above, because the program is started for every episode and needs none of it
    from agentenv import tool_turn
    from agentenv.agent.gateway import GatewayAgent
    from agentenv.byte_tokenizer import byte_tokenizer
    from agentenv.engine.scripted import ScriptedEngine, ScriptedRequest
    from agentenv.renderer import Renderer
    from agentenv.runner import GroupSpec, Runner
    from agentenv.trainers.samples_from import assign

    renderer = Renderer(byte_tokenizer(), family="qwen3")

    def model(request: ScriptedRequest) -> tuple[int, ...]:
        """Guess somewhere in the range that is left."""
        left = re.findall(r"(?:higher|lower) (\d+) (\d+)", renderer.decode(request.prompt_ids))
        low, high = map(int, left[-1]) if left else (1, 15)
        seed = request.sampling.seed or 0
        return renderer.turn_ids(tool_turn("guess", {"number": low + seed % (high - low + 1)}))

    async with GatewayAgent([sys.executable, __file__]) as agent:
        runner = Runner(engine=ScriptedEngine(model), renderer=renderer, agent=agent)
        group = await runner.run_group(GroupSpec(group_id="demo", env_id="agentenv/GuessNumber-v0", seed=3, size=4))
    samples = {sample.sample_id: sample for sample in assign([group], advantage="rloo")}
    for trajectory in group.trajectories:
        sample = samples[f"demo/{trajectory.member}/0"]
        advantage = sample.advantage_T[sample.is_sampled_T][0]
        print(
            f"member {trajectory.member}: {len(trajectory.turns)} turns in {len(trajectory.sequences)} sequence, "
            f"return {trajectory.reward:g}, {sample.is_sampled_T.sum()} trained tokens, advantage {advantage:+.2f}"
        )


if __name__ == "__main__":
    program() if "AGENTENV_TASK" in os.environ else asyncio.run(main())
