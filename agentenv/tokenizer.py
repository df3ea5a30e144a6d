"""A lean tokenizer: the Rust tokenizer behind a cache, with the few methods that rendering needs.

Loading needs no torch and no transformers; only opaque chat templates do, and they are loaded on first use.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tokenizers

from agentenv.errors import ModelError
from agentenv.vision import ImageTokens, read_image_tokens

_CACHE_SIZE = 2048
_MAX_CACHED_CHARS = 4096


class LeanTokenizer:
    """Text to ids and back. Encoding never adds special tokens.

    Args:
        backend: the Rust tokenizer.
        name_or_path: where it came from.
        eos_token: end-of-turn token.
        chat_template: Jinja text, or empty.
        load_full: returns the Hugging Face tokenizer, for chat templates.
        vision: how the model reads images; None where it reads text only.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        name_or_path: str,
        eos_token: str = "",
        chat_template: str = "",
        load_full: Callable[[], Any] | None = None,
        vision: ImageTokens | None = None,
    ) -> None:
        self._backend = backend
        self._load_full = load_full
        self.vision = vision
        self.name_or_path = name_or_path
        self.chat_template = chat_template
        self.eos_token_id: int | None = backend.token_to_id(eos_token) if eos_token else None
        self.unk_token_id: int | None = None
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_tokens = tuple(sorted(t.content for t in added.values() if t.special))
        self.added_tokens = tuple(sorted(t.content for t in added.values()))
        self._cached = functools.lru_cache(maxsize=_CACHE_SIZE)(self._encode)

    def encode(self, text: str, *args: Any, **kwargs: Any) -> list[int]:
        """Return the ids of `text`; texts that repeat are encoded once."""
        if len(text) > _MAX_CACHED_CHARS:
            return list(self._encode(text))
        return list(self._cached(text))

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return ids and their (start, end) character positions."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, token_ids: Any, *args: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        """Return the text of ids; special tokens are kept unless asked otherwise."""
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or of each in a list; None where there is none."""
        if isinstance(tokens, str):
            return self._backend.token_to_id(tokens)
        return [self._backend.token_to_id(token) for token in tokens]

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> Any:
        """Render through the chat template of the model folder.

        Raises:
            ModelError: there is no template.
        """
        if self._load_full is None or not self.chat_template:
            raise ModelError(f"{self.name_or_path}: no chat template; add chat_template.jinja, or name a family")
        return self._full.apply_chat_template(messages, chat_template=self.chat_template, **kwargs)

    @functools.cached_property
    def _full(self) -> Any:
        assert self._load_full is not None
        return self._load_full()

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(_encodable(text), add_special_tokens=False).ids)


def load_tokenizer(path: str | Path) -> LeanTokenizer:
    """Load the tokenizer of a model folder, or of a Hub id when transformers can fetch it.

    Raises:
        ModelError: the folder is missing, or holds no usable tokenizer.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return _from_hub(str(path))
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelError(f"{folder}: no tokenizer.json; save the model's fast tokenizer there")
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises a bare Exception
        raise ModelError(f"{file}: not a usable tokenizer ({error})") from error
    settings = _read_json(folder / "tokenizer_config.json")
    return LeanTokenizer(
        backend,
        name_or_path=str(path),
        eos_token=_token_text(settings.get("eos_token")),
        chat_template=_chat_template(folder, settings),
        load_full=lambda: _full_tokenizer(str(folder)),
        vision=_vision_of_folder(folder),
    )


def wrap_tokenizer(full: Any, *, vision: ImageTokens | None = None) -> LeanTokenizer:
    """Return a lean view of a fast Hugging Face tokenizer.

    Args:
        full: the tokenizer.
        vision: how its model reads images; looked up where the tokenizer came from a model folder.

    Raises:
        ModelError: it is a slow tokenizer.
    """
    backend = getattr(full, "backend_tokenizer", None)
    name = str(getattr(full, "name_or_path", "") or "tokenizer")
    if backend is None:
        raise ModelError(f"{name}: a slow tokenizer; convert it to a fast one (tokenizer.json)")
    template = getattr(full, "chat_template", None)
    folder = Path(name).expanduser()
    return LeanTokenizer(
        backend,
        name_or_path=name,
        eos_token=full.eos_token or "",
        chat_template=template if isinstance(template, str) else "",
        load_full=lambda: full,
        vision=_vision_of_folder(folder) if vision is None and folder.is_dir() else vision,
    )


def neutraliser(tokens: Sequence[str]) -> Callable[[str], str]:
    """Return a function that breaks control tokens in foreign text, so that they cannot become special ids.

    A zero-width space after the first character leaves the text readable and its token an ordinary one.
    """
    if not tokens:
        return lambda text: text
    pattern = re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
    return lambda text: pattern.sub(lambda found: found.group()[0] + "\u200b" + found.group()[1:], text)


def _encodable(text: str) -> str:
    """Replace lone surrogates, which have no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _from_hub(name: str) -> LeanTokenizer:
    try:
        full = _full_tokenizer(name)
    except ImportError as error:
        raise ModelError(f"{name}: no such folder, and transformers is not installed to look on the Hub") from error
    except Exception as error:
        raise ModelError(f"{name}: no such folder, and not a model that the Hub gave ({error})") from error
    return wrap_tokenizer(full, vision=read_image_tokens(lambda file: _hub_file(name, file), name=name))


def _hub_file(name: str, file: str) -> Path | None:
    from transformers.utils.hub import cached_file

    path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def _vision_of_folder(folder: Path) -> ImageTokens | None:
    return read_image_tokens(lambda file: folder / file, name=str(folder))


def _full_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def _read_json(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        return {}
    try:
        return cast(Mapping[str, object], json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from error


def _token_text(value: object) -> str:
    if isinstance(value, Mapping):
        return str(cast(Mapping[str, object], value).get("content", ""))
    return value if isinstance(value, str) else ""


def _chat_template(folder: Path, settings: Mapping[str, object]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    # the template of a processor, which knows images, counts before that of its tokenizer
    template = _read_json(folder / "chat_template.json").get("chat_template", settings.get("chat_template"))
    return template if isinstance(template, str) else ""
