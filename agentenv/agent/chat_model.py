"""LangChain's view of the policy: a chat model whose turns are sampled for an episode and recorded token by token."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from pydantic import Field, PrivateAttr

from agentenv.agent.graph_session import GraphSession
from agentenv.agent.graph_turn import GraphTurn
from agentenv.agent.langchain_messages import as_invalid_call, as_tool_call, from_langchain, reasoning_of
from agentenv.errors import UsageError, did_you_mean
from agentenv.renderer import Renderer, ToolSpecs

try:
    from langchain_core.caches import BaseCache
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models import BaseChatModel, LanguageModelInput
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, UsageMetadata
    from langchain_core.messages.ai import InputTokenDetails
    from langchain_core.messages.tool import tool_call_chunk
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from langchain_core.runnables import Runnable
    from langchain_core.tools import BaseTool
    from langchain_core.utils.function_calling import convert_to_openai_tool
except ModuleNotFoundError as error:
    raise UsageError(f'LangChain is missing ({error}); install it with: pip install "agentenv[langgraph]"') from error

TAKEN = ("tools", "tool_choice", "max_tokens", "max_completion_tokens", "logprobs")
"""Options of a call that are followed."""
IGNORED = (
    "temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "user", "stream",
    "stream_options", "timeout", "strict",
)  # fmt: skip
"""Options that are accepted without effect: how tokens are drawn is the run's business."""


class EpisodeChatModel(BaseChatModel):
    """A chat model that speaks with the policy of one episode.

    Every call is a turn of the trajectory. Histories that go on from an earlier turn extend its ids; two calls from one
    point become two training sequences. Messages carry `usage_metadata`, and in `response_metadata` `finish_reason`,
    `weight_version` (of the last token), `turn` (index in the trajectory) and, with `bind(logprobs=True)`, `logprobs`.

    A turn is sampled whole; `stream` and `astream` give it in chunks afterwards. The synchronous methods are for plain
    functions that a graph runs in threads. Temperature and the like are ignored; stop words cut the text and leave the
    ids as they were sampled; a forced tool choice would change what the policy is and is refused.

    Args:
        graph_session: of the episode.
        **options: of `BaseChatModel`: name, tags, metadata, callbacks.
    """

    cache: BaseCache | bool | None = Field(default=False, exclude=True)
    """Never: an answer out of a cache was not sampled by the policy."""

    _graph_session: GraphSession = PrivateAttr()

    def __init__(self, graph_session: GraphSession, **options: Any) -> None:
        super().__init__(**options)
        self._graph_session = graph_session

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools to the model.

        Args:
            tools: LangChain tools, pydantic models, functions or schemas in OpenAI's shape.
            tool_choice: `"auto"` or None: the policy decides.
            **kwargs: options of the calls.

        Raises:
            UsageError: a tool choice that forces the model.
        """
        options = {**kwargs, "tools": tuple(map(_spec, tools))}
        if tool_choice is not None:
            options["tool_choice"] = tool_choice
        _check_options(options)
        return self.bind(**options)

    @property
    def _llm_type(self) -> str:
        return "agentenv"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        work = functools.partial(self._complete, messages, stop, kwargs)
        return self._result(self._graph_session.bridge.from_thread(work), kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        work = functools.partial(self._complete, messages, stop, kwargs)
        return self._result(await self._graph_session.bridge.from_any_loop(work), kwargs)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        work = functools.partial(self._complete, messages, stop, kwargs)
        yield from self._chunks(self._graph_session.bridge.from_thread(work), kwargs)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        work = functools.partial(self._complete, messages, stop, kwargs)
        for chunk in self._chunks(await self._graph_session.bridge.from_any_loop(work), kwargs):
            yield chunk

    async def _complete(
        self, messages: list[BaseMessage], stop: list[str] | None, options: Mapping[str, Any]
    ) -> GraphTurn:
        _check_options(options)
        max_tokens = options.get("max_tokens") or options.get("max_completion_tokens")
        tools = cast(ToolSpecs, tuple(options.get("tools") or ()))
        return await self._graph_session.complete(
            [from_langchain(message) for message in messages], tools=tools, max_tokens=max_tokens, stop=stop or ()
        )

    def _result(self, turn: GraphTurn, options: Mapping[str, Any]) -> ChatResult:
        said = turn.reply.message
        message = AIMessage(
            content=said.content,
            tool_calls=[as_tool_call(call) for call in turn.calls],
            invalid_tool_calls=[as_invalid_call(call) for call in turn.attempts],
            additional_kwargs=reasoning_of(said),
            usage_metadata=_usage(turn),
            response_metadata=self._metadata(turn, options),
            id=self._message_id(turn),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _chunks(self, turn: GraphTurn, options: Mapping[str, Any]) -> Iterator[ChatGenerationChunk]:
        """Yield the text, every call and what is known of the turn, in chunks that add up to its message."""
        said, message_id = turn.reply.message, self._message_id(turn)
        if said.content or said.reasoning:
            yield _chunk(AIMessageChunk(content=said.content, additional_kwargs=reasoning_of(said), id=message_id))
        calls = [(call.name, json.dumps(dict(call.arguments)), call.call_id) for call in turn.calls]
        calls += [(call.name, as_invalid_call(call)["args"] or "", call.call_id) for call in turn.attempts]
        for index, (name, arguments, call_id) in enumerate(calls):
            part = tool_call_chunk(name=name, args=arguments, id=call_id, index=index)
            yield _chunk(AIMessageChunk(content="", tool_call_chunks=[part], id=message_id))
        yield _chunk(
            AIMessageChunk(
                content="",
                usage_metadata=_usage(turn),
                response_metadata=self._metadata(turn, options),
                id=message_id,
                chunk_position="last",
            )
        )

    def _message_id(self, turn: GraphTurn) -> str:
        return f"{self._graph_session.session.episode.session_id}-{turn.reply.turn}"

    def _metadata(self, turn: GraphTurn, options: Mapping[str, Any]) -> dict[str, Any]:
        versions = turn.reply.completion.weight_versions
        metadata: dict[str, Any] = {
            "finish_reason": turn.reply.finish,
            "turn": turn.reply.turn,
            "weight_version": versions[-1].version if versions else None,
        }
        if options.get("logprobs"):
            metadata["logprobs"] = {"content": _logprobs(turn, self._graph_session.session.episode.renderer)}
        return metadata


def _chunk(message: AIMessageChunk) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=message)


def _spec(tool: object) -> Mapping[str, Any]:
    """Return a tool's schema; one of the environment keeps its own, so that the prompt is the same to the token."""
    spec = getattr(tool, "episode_spec", None)
    return spec if isinstance(spec, Mapping) else convert_to_openai_tool(cast(Any, tool))


def _check_options(options: Mapping[str, Any]) -> None:
    choice = options.get("tool_choice")
    if choice not in (None, "auto"):
        raise UsageError(
            f"tool_choice is {choice!r}; only 'auto' is possible, because the policy's tokens are drawn freely. "
            "Bind only the tools that may be called, and let the environment reward the choice"
        )
    for name in options:
        if name not in TAKEN and name not in IGNORED:
            raise UsageError(
                f"the model of an episode has no option {name!r}.{did_you_mean(name, TAKEN)} "
                f"Followed are {', '.join(TAKEN)}; ignored are {', '.join(IGNORED)}"
            )


def _usage(turn: GraphTurn) -> UsageMetadata:
    prompt, completion = turn.reply.num_prompt_tokens, turn.reply.completion
    return UsageMetadata(
        input_tokens=prompt,
        output_tokens=len(completion.token_ids),
        total_tokens=prompt + len(completion.token_ids),
        input_token_details=InputTokenDetails(cache_read=completion.num_cached_tokens),
    )


def _logprobs(turn: GraphTurn, renderer: Renderer) -> list[dict[str, Any]]:
    """Return the log-probs of the sampled tokens in the shape of chat completions, with the ids beside."""
    completion = turn.reply.completion
    return [
        {"token": renderer.decode([token_id]), "token_id": token_id, "logprob": logprob, "top_logprobs": []}
        for token_id, logprob in zip(completion.token_ids, completion.logprobs, strict=True)
    ]
