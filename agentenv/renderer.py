"""Messages to token ids and back, token-exactly; the only file that knows chat templates.

Model families come from the `renderers` package. Everything else goes through the model's own chat template, with
an exact-prefix check of ours. Three things repeat in every rollout and are cached: opening prompts (all members of
a group share one), observations, and parses of completions.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, cast

from agentenv.content import Image, segments, with_texts
from agentenv.cutting import CutSide, cut_message, cut_text
from agentenv.errors import ModelError, UsageError, did_you_mean
from agentenv.hermes import PROBES, HermesReader
from agentenv.message_key import MessageKey, dumped, message_keys
from agentenv.messages import Message, ToolCall, decode_arguments, images_of, malformed_call
from agentenv.skeleton import Skeleton, can_fill, learn_skeleton
from agentenv.text_calls import bare_json_call, parse_turn
from agentenv.tokenizer import LeanTokenizer, neutraliser
from agentenv.vision import SUPPORTED, ImageTokens

logger = logging.getLogger(__name__)

ToolSpecs = tuple[Mapping[str, object], ...]

_PROBE_TOOL: Mapping[str, object] = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    },
}
_MAX_TOOL_SETS = 4096
_CACHE_SIZE = 2048  # what repeats, repeats soon; larger caches make garbage collection slow
_FAMILIES = ("qwen3", "llama-3", "qwen3.5", "glm-4.5", "glm-5", "deepseek-v3", "kimi-k2", "minimax-m2", "gpt-oss")
_VISION_FAMILIES = ("qwen3-vl", "qwen3.5")


class _Family(Protocol):
    """What a model family must answer; implemented by adapters over `renderers` and over chat templates."""

    stop_ids: tuple[int, ...]

    def prompt(self, messages: tuple[Message, ...], tools: ToolSpecs) -> list[int]: ...

    def continuation(self, messages: tuple[Message, ...], tools: ToolSpecs) -> list[int] | None: ...

    def parse(self, token_ids: list[int], tools: ToolSpecs) -> Message: ...

    def turn(self, message: Message, tools: ToolSpecs) -> list[int]: ...


class Renderer:
    """Renders conversations for one tokenizer.

    Args:
        tokenizer: of the model.
        family: `"auto"`, a family of the `renderers` package such as `"qwen3"` or `"llama-3"`, or `"template"` for
            the model's own chat template.

    Attributes:
        family_name: the family in use.
        stop_ids: ids that end a turn.
    """

    def __init__(self, tokenizer: LeanTokenizer, *, family: str = "auto") -> None:
        self.tokenizer = tokenizer
        self.family_name = detect_family(tokenizer) if family == "auto" else family
        self._family = _make_family(tokenizer, self.family_name)
        self.stop_ids = self._family.stop_ids
        placeholder = () if tokenizer.vision is None else (tokenizer.decode(tokenizer.vision.token_id),)
        self._clean_prompt = neutraliser((*tokenizer.special_tokens, *placeholder))
        self._clean_tool = neutraliser(tokenizer.added_tokens)
        self._prompts = functools.lru_cache(maxsize=_CACHE_SIZE)(self._prompt)
        self._continuations = functools.lru_cache(maxsize=_CACHE_SIZE)(self._continuation)
        self._parses = functools.lru_cache(maxsize=_CACHE_SIZE)(self._parse)
        self._turns = functools.lru_cache(maxsize=_CACHE_SIZE)(self._turn)
        self._skeletons: dict[tuple[object, ...], Skeleton | None] = {}
        self._control_ids = frozenset(map(tokenizer.convert_tokens_to_ids, tokenizer.added_tokens))
        # holding the specs keeps their ids from being reused
        self._tools_seen: dict[tuple[int, ...], tuple[ToolSpecs, str]] = {}
        self._tools_by_text: dict[str, ToolSpecs] = {"": ()}

    def prompt_ids(self, messages: Sequence[Message], *, tools: ToolSpecs = ()) -> tuple[int, ...]:
        """Render a whole conversation up to where the assistant starts to write.

        An image is the run of placeholder ids that the model reads it as; `images_of(messages)` go to the engine.

        Raises:
            UsageError: there are images, but the model reads text only or its template leaves them out.
        """
        images = images_of(messages)
        vision = self.vision if images else None
        ids = self._prompts(message_keys(messages), self._tools_key(tools))
        return ids if vision is None else vision.expand(ids, images)

    def continuation_ids(
        self, messages: Sequence[Message], *, is_closed: bool, tools: ToolSpecs = ()
    ) -> tuple[int, ...] | None:
        """Return the ids that follow a sampled turn: what closes it, the new messages, the next turn's opening.

        Args:
            messages: new messages, none of them an assistant's.
            is_closed: True when the sampled turn ended with a stop id; else the close is written here.
            tools: as in the prompt.

        Returns:
            ids to append to prompt + completion, or None when the template rewrites history, so that the caller must
            render the conversation anew and start a new training sequence.
        """
        if any(message.role == "assistant" for message in messages):
            raise UsageError("an assistant message cannot be appended without re-encoding what was sampled")
        images = images_of(messages)
        vision = self.vision if images else None
        ids = self._continuations(message_keys(messages), self._tools_key(tools))
        if ids is None:
            return None
        if vision is not None:
            ids = vision.expand(ids, images)
        return ids[1:] if is_closed else ids

    def parse(self, token_ids: Sequence[int], *, tools: ToolSpecs = (), turn: int = 0) -> Message:
        """Read an assistant message from sampled ids; malformed tool calls are kept, with their status.

        Args:
            token_ids: the completion, with or without its stop id.
            tools: as in the prompt.
            turn: index of the turn; makes call ids unique within the episode.
        """
        message = self._parses(tuple(token_ids), self._tools_key(tools))
        if not message.tool_calls:
            return message
        calls = tuple(
            ToolCall(
                call_id=f"call_{turn}_{index}",
                name=call.name,
                arguments=call.arguments,
                status=call.status,
                raw=call.raw,
            )
            for index, call in enumerate(message.tool_calls)
        )
        return Message(role="assistant", content=message.content, tool_calls=calls, reasoning=message.reasoning)

    def turn_ids(self, message: Message, *, tools: ToolSpecs = ()) -> tuple[int, ...]:
        """Return the ids, stop id included, that a policy would sample to say `message`; for demonstrations."""
        return self._turns(message_keys((message,))[0], self._tools_key(tools))

    def holds_placeholder(self, token_ids: Sequence[int]) -> bool:
        """True where ids that a policy wrote would be taken for an image if they were left in a prompt."""
        vision = self.tokenizer.vision
        return vision is not None and vision.token_id in token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""
        return self.tokenizer.decode(token_ids)

    def cut(self, message: Message, *, max_tokens: int, keep: CutSide = "middle") -> Message:
        """Shorten a message to about `max_tokens` tokens; see `cut_text` and `cut_message`."""
        if message.images:
            return cut_message(message, self.tokenizer, vision=self.vision, max_tokens=max_tokens, keep=keep)
        content = cut_text(message.content, self.tokenizer, max_tokens=max_tokens, keep=keep)
        return message if content == message.content else replace(message, content=content)

    @property
    def vision(self) -> ImageTokens:
        """How the model reads images.

        Raises:
            UsageError: it reads text only.
        """
        if self.tokenizer.vision is None:
            raise UsageError(f"images came, but {self.tokenizer.name_or_path} reads text only; images need {SUPPORTED}")
        return self.tokenizer.vision

    def _tools_key(self, tools: ToolSpecs) -> str:
        """Return a text that stands for the schemas; schemas seen before cost a look-up by identity."""
        if not tools:
            return ""
        identity = tuple(map(id, tools))
        seen = self._tools_seen.get(identity)
        if seen is None:
            if len(self._tools_seen) >= _MAX_TOOL_SETS:
                self._tools_seen.clear()
            seen = self._tools_seen[identity] = (tools, dumped(tools))
            self._tools_by_text[seen[1]] = tools
        return seen[1]

    def _prompt(self, messages: tuple[MessageKey, ...], tools: str) -> tuple[int, ...]:
        cleaned, specs = self._cleaned(messages), self._tools_by_text[tools]
        ids = self._from_skeleton("prompt", cleaned, tools=tools)
        return tuple(self._family.prompt(cleaned, specs) if ids is None else ids)

    def _continuation(self, messages: tuple[MessageKey, ...], tools: str) -> tuple[int, ...] | None:
        cleaned = self._cleaned(messages)
        ids = self._from_skeleton("continuation", cleaned, tools=tools)
        if ids is None:
            ids = self._family.continuation(cleaned, self._tools_by_text[tools])
        return None if ids is None else tuple(ids)

    def _from_skeleton(
        self, kind: Literal["prompt", "continuation"], messages: tuple[Message, ...], *, tools: str
    ) -> list[int] | None:
        """Render by filling a known skeleton; None where there is none, or the contents do not fit in."""
        contents = [message.content for message in messages]
        if any(message.role == "assistant" or message.images for message in messages) or not can_fill(contents):
            return None
        key = (kind, tools, *((m.role, m.name, m.tool_call_id) for m in messages))
        if key not in self._skeletons:
            if len(self._skeletons) >= _MAX_TOOL_SETS:
                self._skeletons.clear()
            render = self._family.prompt if kind == "prompt" else self._family.continuation
            self._skeletons[key] = learn_skeleton(
                lambda texts: render(
                    tuple(replace(m, content=text) for m, text in zip(messages, texts, strict=True)),
                    self._tools_by_text[tools],
                ),
                num_contents=len(messages),
                tokenizer=self.tokenizer,
                control_ids=self._control_ids,
            )
        skeleton = self._skeletons[key]
        return None if skeleton is None else skeleton.fill(contents, self.tokenizer)

    def _parse(self, token_ids: tuple[int, ...], tools: str) -> Message:
        return self._family.parse(list(token_ids), self._tools_by_text[tools])

    def _turn(self, message: MessageKey, tools: str) -> tuple[int, ...]:
        return tuple(self._family.turn(message.message, self._tools_by_text[tools]))

    def _cleaned(self, messages: tuple[MessageKey, ...]) -> tuple[Message, ...]:
        out = []
        for key in messages:
            message = key.message
            clean = self._clean_tool if message.role == "tool" else self._clean_prompt
            if message.images:
                content, images = with_texts(message.content, message.images, change=clean)
                out.append(replace(message, content=content, images=images))
                continue
            content = clean(message.content)
            out.append(message if content == message.content else replace(message, content=content))
        return tuple(out)


def detect_family(tokenizer: LeanTokenizer) -> str:
    """Find the family whose rendering equals the model's own chat template, token by token; else `"template"`.

    Known model names are trusted. For local folders and fine-tunes the comparison decides, on conversations with
    tools, tool results and several turns.

    Raises:
        ModelError: the name is unknown and there is no chat template to compare with.
    """
    from renderers.base import MODEL_RENDERER_MAP

    known = MODEL_RENDERER_MAP.get(tokenizer.name_or_path)
    if known is not None:
        return known
    if not tokenizer.chat_template:
        raise ModelError(
            f"{tokenizer.name_or_path}: no chat template and no known model name; add chat_template.jinja to the "
            f"folder, or name the family with model.renderer (qwen3, llama-3, ...)"
        )
    for name in _FAMILIES if tokenizer.vision is None else _VISION_FAMILIES:
        if _renders_like_template(tokenizer, name):
            return name
    logger.info("%s: no known family renders like its chat template; using the template itself", tokenizer.name_or_path)
    return "template"


def _renders_like_template(tokenizer: LeanTokenizer, name: str) -> bool:
    call = ToolCall(call_id="call_0_0", name="look", arguments={"n": 3})
    spoken = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="Look at 3."),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="blue", tool_call_id="call_0_0", name="look"),
    )
    probes = [(spoken, (_PROBE_TOOL,)), (spoken[:2], ()), (spoken[1:2], (_PROBE_TOOL,))]
    if tokenizer.vision is not None:
        seen = (Image(data=b"", position=2),)
        probes.append(((spoken[0], *(m if m.role == "assistant" else replace(m, images=seen) for m in spoken[1:])), ()))
    try:
        family = _PackagedFamily(tokenizer, name)
        for messages, tools in probes:
            expected = _TemplateFamily(tokenizer).prompt(messages, tools)
            if family.prompt(messages, tools) != expected:
                return False
    except Exception:  # a family may need tokens that this tokenizer lacks, and each says so in its own way
        return False
    return True


def _make_family(tokenizer: LeanTokenizer, name: str) -> _Family:
    return _TemplateFamily(tokenizer) if name == "template" else _PackagedFamily(tokenizer, name)


class _PackagedFamily:
    """A family of the `renderers` package."""

    def __init__(self, tokenizer: LeanTokenizer, name: str) -> None:
        from renderers import config_from_name, create_renderer
        from renderers.base import MODEL_RENDERER_MAP
        from renderers.reasoning import prompt_ends_in_reasoning

        families = sorted(set(MODEL_RENDERER_MAP.values()))
        if name not in families:
            raise UsageError(
                f'unknown renderer family "{name}"; allowed: auto, template, {", ".join(families)}.'
                f"{did_you_mean(name, families)}"
            )
        try:
            self._renderer = create_renderer(cast(Any, tokenizer), cast(Any, config_from_name(name)))
        except Exception as error:
            raise ModelError(f"{tokenizer.name_or_path}: cannot be rendered as {name} ({error})") from error
        self.stop_ids = tuple(self._renderer.get_stop_token_ids())
        # an image is then one placeholder, and nothing needs torch
        has_images = getattr(self._renderer, "supports_process_multimodal", False)
        self._options: dict[str, Any] = {"process_multimodal": False} if has_images else {}
        # what stands before a completion when a continuation is asked for: one turn that just closed
        self._opening = self.prompt((Message(role="user", content="?"),), ())
        # only a prompt that opens a reasoning block changes how a completion is read
        is_in_reasoning = prompt_ends_in_reasoning(tokenizer, self._opening, stop_ids=set(self.stop_ids))
        self._parse_prompt = self._opening if is_in_reasoning else None
        self._quick: HermesReader | None = None
        reader = HermesReader(tokenizer, stop_ids=self.stop_ids)
        if not is_in_reasoning and reader.is_usable and self._agrees(reader, tokenizer):
            self._quick = reader

    def prompt(self, messages: Sequence[Message], tools: ToolSpecs) -> list[int]:
        """Render up to the assistant's opening."""
        return self.render(messages, tools, is_open=True)

    def render(self, messages: Sequence[Message], tools: ToolSpecs, *, is_open: bool) -> list[int]:
        """Render messages, with or without the assistant's opening at the end."""
        renderer: Any = self._renderer
        options = {"tools": _package_tools(tools), "add_generation_prompt": is_open}
        if self._options:
            return renderer.render(_template_dicts(messages), **options, **self._options).token_ids
        return renderer.render_ids(_template_dicts(messages), **options)

    def continuation(self, messages: tuple[Message, ...], tools: ToolSpecs) -> list[int] | None:
        """Return the closing id and what follows a turn that was closed; None where history would be rewritten."""
        close = self.stop_ids[0]
        bridge: Any = self._renderer.bridge_to_next_turn
        dicts = _template_dicts(messages)
        bridged = bridge(self._opening, [close], dicts, tools=_package_tools(tools), **self._options)
        if bridged is None:
            # families that drop old reasoning at a new user query re-render then; without reasoning nothing changes
            return _canonical_continuation(self, messages, tools)
        return list(bridged.token_ids[len(self._opening) :])

    def parse(self, token_ids: list[int], tools: ToolSpecs) -> Message:
        """Read a message from ids."""
        quick = self._quick.read(token_ids) if self._quick is not None else None
        return quick if quick is not None else self._parse(token_ids, tools)

    def _parse(self, token_ids: list[int], tools: ToolSpecs) -> Message:
        parsed = self._renderer.parse_response(token_ids, tools=_package_tools(tools), prompt_ids=self._parse_prompt)
        calls = tuple(_as_call(call, index) for index, call in enumerate(parsed.tool_calls))
        return Message(
            role="assistant", content=parsed.content or "", tool_calls=calls, reasoning=parsed.reasoning_content or ""
        )

    def _agrees(self, reader: HermesReader, tokenizer: LeanTokenizer) -> bool:
        """True when the quick reader gives what the family's parser gives, with and without a stop id."""
        probes = [
            ids for text in PROBES for ids in (tokenizer.encode(text), [*tokenizer.encode(text), self.stop_ids[0]])
        ]
        return all(reader.read(ids) in (None, self._parse(ids, ())) for ids in [*probes, [], [self.stop_ids[0]]])

    def turn(self, message: Message, tools: ToolSpecs) -> list[int]:
        """Return the sampled ids of a turn."""
        user = Message(role="user", content="?")
        # a later user message keeps families from wrapping the last turn into an empty reasoning block
        messages = (user, message) if message.reasoning else (user, message, user)
        rendered = self._renderer.render(cast(Any, [m.to_dict() for m in messages]), tools=_package_tools(tools))
        owned = [
            (i, s)
            for i, (m, s) in enumerate(zip(rendered.message_indices, rendered.sampled_mask, strict=False))
            if m == 1
        ]
        ids = [rendered.token_ids[i] for i, is_sampled in owned if is_sampled]
        if not ids:
            raise ModelError("this family cannot say which ids a turn is made of; demonstrations need another family")
        return ids


class _TemplateFamily:
    """The model's own chat template, which is opaque: continuations are found by comparing two renderings."""

    def __init__(self, tokenizer: LeanTokenizer) -> None:
        if not tokenizer.chat_template:
            raise ModelError(f"{tokenizer.name_or_path}: no chat template; add chat_template.jinja to the folder")
        if tokenizer.eos_token_id is None:
            raise ModelError(f"{tokenizer.name_or_path}: the tokenizer names no eos token, so no turn could end")
        self._tokenizer = tokenizer
        self.stop_ids = (tokenizer.eos_token_id,)

    def prompt(self, messages: Sequence[Message], tools: ToolSpecs) -> list[int]:
        """Render up to the assistant's opening."""
        return self.render(messages, tools, is_open=True)

    def render(self, messages: Sequence[Message], tools: ToolSpecs, *, is_open: bool) -> list[int]:
        """Render messages, with or without the assistant's opening at the end."""
        ids = self._tokenizer.apply_chat_template(
            _template_dicts(messages),
            tools=list(tools) or None,
            add_generation_prompt=is_open,
            tokenize=True,
            return_dict=False,
        )
        return list(ids)

    def continuation(self, messages: tuple[Message, ...], tools: ToolSpecs) -> list[int] | None:
        """Return the closing id and what follows a closed turn, if the template only appends."""
        return _canonical_continuation(self, messages, tools)

    def parse(self, token_ids: list[int], tools: ToolSpecs) -> Message:
        """Read a message from the decoded text."""
        end = next((i for i, token in enumerate(token_ids) if token in self.stop_ids), len(token_ids))
        text = self._tokenizer.decode(token_ids[:end])
        message = parse_turn(text)
        return message if message.tool_calls else bare_json_call(text)

    def turn(self, message: Message, tools: ToolSpecs) -> list[int]:
        """Return the ids between the assistant's opening and its stop id."""
        user = Message(role="user", content="?")
        opening = self.render((user,), tools, is_open=True)
        whole = self.render((user, message), tools, is_open=False)
        end = _last_index(whole, self.stop_ids)
        if whole[: len(opening)] != opening or end < len(opening):
            raise ModelError("the chat template does not put a turn between its opening and a stop token")
        return whole[len(opening) : end + 1]


def _canonical_continuation(
    family: _PackagedFamily | _TemplateFamily, messages: tuple[Message, ...], tools: ToolSpecs
) -> list[int] | None:
    """Find what a template appends after an assistant's turn, by rendering with and without the new messages.

    A turn is `... <stop> rest`, so the continuation is `<stop> rest` plus what the second rendering adds. None when
    the second does not extend the first: the template rewrites history.
    """
    calls = tuple(
        ToolCall(call_id=message.tool_call_id or f"call_{i}", name=message.name or "tool", arguments={})
        for i, message in enumerate(messages)
        if message.role == "tool"
    )
    spoken = Message(role="assistant", content="" if calls else "?", tool_calls=calls)
    base = (Message(role="user", content="?"), spoken)
    before = family.render(base, tools, is_open=False)
    after = family.prompt((*base, *messages), tools)
    end = _last_index(before, family.stop_ids)
    if end < 0 or after[: len(before)] != before:
        return None
    return before[end:] + after[len(before) :]


def _last_index(ids: Sequence[int], wanted: Sequence[int]) -> int:
    for index in range(len(ids) - 1, -1, -1):
        if ids[index] in wanted:
            return index
    return -1


def _package_tools(tools: ToolSpecs) -> Any:
    return [dict(tool) for tool in tools] or None


def _as_call(parsed: Any, index: int) -> ToolCall:
    call_id = f"call_{index}"
    status = str(parsed.status.value)
    if status not in ("ok", "unknown_tool") or not parsed.name:
        kind = status if status != "ok" else "missing_name"
        return malformed_call(call_id=call_id, status=cast(Any, kind), raw=parsed.raw, name=parsed.name or "")
    arguments, status = decode_arguments(parsed.arguments)
    return ToolCall(call_id=call_id, name=str(parsed.name), arguments=arguments, status=status, raw=parsed.raw)


def _template_dicts(messages: Sequence[Message]) -> list[dict[str, object]]:
    """Return messages as templates expect them; an image is a part without data."""
    out = [message.to_dict() for message in messages]
    for value, message in zip(out, messages, strict=True):
        if message.images:
            value["content"] = [
                {"type": "image"} if isinstance(piece, Image) else {"type": "text", "text": piece}
                for piece in segments(message.content, message.images)
            ]
    return out
