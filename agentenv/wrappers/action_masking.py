"""Calls that are not allowed now are answered by the wrapper and never reach the environment."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import gymnasium

from agentenv.errors import UsageError
from agentenv.import_string import load_callable
from agentenv.messages import Message, ToolCall
from agentenv.spaces import Action
from agentenv.step import Step
from agentenv.tool import refused
from agentenv.wrappers.agent_wrapper import AgentWrapper, Verdict, Withheld

Allowed = Mapping[str, "Sequence[object] | None"]
"""Tool -> the values that its first argument may have; None allows all. A tool that is left out may not be called."""

Mask = Callable[[gymnasium.Env], Allowed]
"""Says what is allowed now; it is given the environment itself, without wrappers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    """A call that was not passed on, by its place in the turn."""

    index: int
    message: Message


class ActionMasking(AgentWrapper):
    """Refuses masked calls, and says before every turn what is allowed.

    A turn whose calls are all refused counts as a turn and costs nothing else; of a turn with several calls the allowed
    ones are played. Text without calls passes.

    Args:
        env: what is wrapped.
        mask: tool -> allowed values of its first argument (null: all), the same for the whole episode; or an import
            string `module:function`; or a function (the spec is then no longer plain JSON). By default the
            environment's own method `allowed_calls()`, which the adapters of board games have.
        announce: say what is allowed under every answer.
    """

    def __init__(
        self,
        env: gymnasium.Env[str, Action],
        *,
        mask: Allowed | str | Mask | None = None,
        announce: bool = True,
    ) -> None:
        super().__init__(env, mask=mask, announce=announce)
        self.announce = announce
        self._mask = _mask_of(mask, env)
        self._refusals: tuple[_Refusal, ...] = ()

    def allowed(self) -> Allowed:
        """Return what may be called now."""
        return self._mask(self.unwrapped)

    def opening(self, step: Step) -> Step:
        """Say what is allowed."""
        return self._announced(step)

    def before(self, turn: Message) -> Verdict:
        """Take refused calls out of the turn."""
        allowed = self.allowed() if turn.tool_calls else {}
        reasons = [_why_refused(call, allowed) for call in turn.tool_calls]
        self._refusals = tuple(
            _Refusal(index=index, message=refused(turn.tool_calls[index], reason).to_message())
            for index, reason in enumerate(reasons)
            if reason
        )
        if not self._refusals:
            return turn
        if len(self._refusals) == len(turn.tool_calls):
            messages, self._refusals = tuple(refusal.message for refusal in self._refusals), ()
            return Withheld(messages=messages)
        kept = tuple(call for call, reason in zip(turn.tool_calls, reasons, strict=True) if not reason)
        return replace(turn, tool_calls=kept)

    def after(self, turn: Message, step: Step) -> Step:
        """Put the refusals where the calls stood, and say what is allowed next."""
        messages = list(step.messages)
        for refusal in self._refusals:
            messages.insert(refusal.index, refusal.message)
        self._refusals = ()
        return self._announced(replace(step, messages=tuple(messages)))

    def _announced(self, step: Step) -> Step:
        if not self.announce or not step.messages or step.stop_reason is not None:
            return step
        last = step.messages[-1]
        told = replace(last, content=f"{last.content}\n{_told(self.allowed())}")
        return replace(step, messages=(*step.messages[:-1], told))


def _mask_of(mask: Allowed | str | Mask | None, env: gymnasium.Env) -> Mask:
    if mask is None:
        if not env.has_wrapper_attr("allowed_calls"):
            raise UsageError(
                f"{type(env.unwrapped).__name__} does not say what is allowed; give a mask: "
                '{"tool": [values of its first argument] or null}, or an import string module:function'
            )
        return lambda _: env.get_wrapper_attr("allowed_calls")()
    if isinstance(mask, Mapping):
        known = [str(name) for name in mask]
        if not all(values is None or isinstance(values, (list, tuple)) for values in mask.values()):
            raise UsageError(f"mask for {', '.join(known)}: give every tool a list of values, or null for all")
        return lambda bare: cast(Allowed, mask)
    return cast(Mask, load_callable(mask, what="mask") if isinstance(mask, str) else mask)


def _why_refused(call: ToolCall, allowed: Allowed) -> str:
    if call.status != "ok":
        return ""  # the environment says itself what is wrong with it
    if call.name not in allowed:
        return f"{call.name} may not be called now. {_told(allowed)}"
    values = allowed[call.name]
    given = next(iter(call.arguments.values()), None)
    if values is None or any(type(given) is type(value) and given == value for value in values):
        return ""
    told = json.dumps(given, default=str, ensure_ascii=False)[:80]
    return f"{call.name}({told}) is not allowed now. {_told(allowed)}"


def _told(allowed: Allowed) -> str:
    if not allowed:
        return "Nothing may be called now."
    return "Allowed now: " + "; ".join(
        name if values is None else f"{name} with {', '.join(map(str, values)) or 'nothing'}"
        for name, values in allowed.items()
    )
