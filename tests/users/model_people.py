"""Users that a scripted engine speaks for, made by import string as an environment makes them."""

from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.engine.scripted import Faults, ScriptedEngine
from agentenv.renderer import Renderer
from agentenv.users import UserBrief
from agentenv.users.model import ModelUser, ModelUserOptions

RENDERER = Renderer(byte_tokenizer(), family="qwen3")


def _user(brief: UserBrief, *, seed: int, texts: list[str], faults: Faults | None = None) -> ModelUser:
    script = [[*byte_tokenizer().encode(text), RENDERER.stop_ids[0]] for text in texts]
    engine = ScriptedEngine(script, latency_s=0.001, faults=faults)
    options = ModelUserOptions(deadline_s=0.2)
    return ModelUser(brief, engine=engine, renderer=RENDERER, seed=seed, options=options)


def polite(brief: UserBrief, *, seed: int) -> ModelUser:
    """Return one who opens, answers once and leaves."""
    return _user(brief, seed=seed, texts=["Please help me.", "I do not know.", "Goodbye. [END]"])


def looping(brief: UserBrief, *, seed: int) -> ModelUser:
    """Return one who always says the same."""
    return _user(brief, seed=seed, texts=["Help me."])


def hanging(brief: UserBrief, *, seed: int) -> ModelUser:
    """Return one whose engine never answers."""
    return _user(brief, seed=seed, texts=["Help me."], faults=Faults(hang_every=1))


def nobody(brief: UserBrief, *, seed: int) -> object:
    """Return what is no user."""
    return object()
