"""A byte-pair tokenizer of ordinary density (about four characters a token), trained on text that every Python has."""

import functools
import pydoc_data.topics

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from agentenv.byte_tokenizer import CONTROL_TOKENS, MARKUP_TOKENS
from agentenv.tokenizer import LeanTokenizer

TOOL_TALK = (
    '{"type": "function", "function": {"name": "look_up", "description": "", '
    '"parameters": {"type": "object", "properties": {}}}}'
)


@functools.cache
def bench_tokenizer() -> LeanTokenizer:
    """Train it; takes about two seconds."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([*pydoc_data.topics.topics.values(), *[TOOL_TALK] * 50], trainer)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP_TOKENS])
    return LeanTokenizer(backend, name_or_path="bench", eos_token="<|im_end|>")
