"""Environment steps per second through Gymnasium, and what our base class adds to a bare text environment."""

import sys
import time
from pathlib import Path

import gymnasium

import agentenv
from agentenv import AgentEnv
from agentenv.spaces import TextSpace

sys.path.insert(0, str(Path(__file__).parent))
from measure import cpu_seconds, figure

STEPS = 5000
CALL = '<tool_call>{"name": "guess", "arguments": {"number": 16}}</tool_call>'


class BareText(gymnasium.Env):
    """The least that a text environment can be."""

    def __init__(self):
        self.observation_space = self.action_space = TextSpace()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return "hi", {}

    def step(self, action):
        return "ok", 0.0, False, False, {}


class OurText(AgentEnv):
    """The same through our base class."""

    inline = True

    def setup(self, rng, task):
        return "hi"

    def respond(self, text):
        return "ok"


def text_step_us(env) -> float:
    """Return microseconds of one step."""
    env.reset(seed=0)

    def play():
        for _ in range(STEPS):
            env.step("x")

    return cpu_seconds(play) / STEPS * 1e6


def tool_steps_per_s() -> float:
    """Return GuessNumber steps per CPU-second, tool call parsed from text, resets left out."""
    env = gymnasium.make("agentenv/GuessNumber-v0", max_guesses=100_000, max_turns=1_000_000)
    env.reset(seed=0)
    env.step(CALL)
    best = 0.0
    for _ in range(5):
        started = time.process_time()
        for _ in range(STEPS):
            env.step(CALL)
        best = max(best, STEPS / (time.process_time() - started))
    return best


def import_seconds() -> dict[str, float]:
    """Return CPU seconds of `import agentenv` and of `agentenv --help`, each the best of five fresh processes."""
    import resource
    import subprocess

    def cost(code: str) -> float:
        best = 1e9
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return best

    help_code = (
        "import sys; sys.argv = ['agentenv', '--help']; from agentenv.cli import app; app(standalone_mode=False)"
    )
    return {"import": cost("import agentenv") - cost("pass"), "help": cost(help_code)}


def figures():
    """Measure everything."""
    bare, ours = text_step_us(BareText()), text_step_us(OurText(max_turns=10**9))
    seconds = import_seconds()
    return [
        figure("env_steps_per_s", tool_steps_per_s(), unit="1/s", at_least=20_000),
        figure("env_step_added_us", ours - bare, unit="us", at_most=3.0),
        figure("import_s", seconds["import"], unit="s", at_most=0.5),
        figure("help_s", seconds["help"], unit="s", at_most=0.4),
    ]


if __name__ == "__main__":
    import json

    assert agentenv
    for line in figures():
        print(json.dumps(line))
