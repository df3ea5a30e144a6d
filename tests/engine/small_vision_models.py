"""Random vision-language models of the Qwen family, as model folders with everything that engines look for."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image as Pillow
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from agentenv.byte_tokenizer import VISION_TOKENS, byte_backend
from agentenv.messages import Image

Kind = Literal["qwen2-vl", "qwen3-vl"]

_PATCH_SIZE = {"qwen2-vl": 14, "qwen3-vl": 16}
_PROCESSOR = {"qwen2-vl": "Qwen2VLProcessor", "qwen3-vl": "Qwen3VLProcessor"}
_PIXELS = {"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 64}
_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10_000.0},
}

_CONTENT = (
    "{%- macro show(content) -%}{%- if content is string -%}{{ content }}{%- else -%}{%- for part in content -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)
PLAIN_TEMPLATE = (
    _CONTENT + "{%- if tools -%}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif -%}"
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n{{ show(message.content) }}"
    "{%- for call in message.tool_calls or [] -%}<tool_call>"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}</tool_call>{%- endfor -%}"
    "<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
"""A chat template that no packaged family renders like: the model's own template is used."""


def chat_template(kind: Kind) -> str:
    """Return the template of the small model; that of Qwen3-VL renders as the packaged family does."""
    if kind == "qwen2-vl":
        return PLAIN_TEMPLATE
    from renderers.qwen3_vl import _TOOLS_FOOTER, _TOOLS_HEADER

    head = json.dumps(_TOOLS_HEADER)
    foot = json.dumps(_TOOLS_FOOTER)
    return (
        _CONTENT + "{%- set has_system = messages[0].role == 'system' -%}"
        "{%- if tools -%}<|im_start|>system\n{% if has_system %}{{ messages[0].content ~ '\n\n' }}{% endif -%}"
        "{{ "
        + head
        + " }}{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}{{ "
        + foot
        + " }}<|im_end|>\n"
        "{% elif has_system -%}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif -%}"
        "{%- for message in messages -%}"
        "{%- if message.role == 'tool' -%}"
        "{%- if messages[loop.index0 - 1].role != 'tool' -%}<|im_start|>user{%- endif -%}"
        "{{ '\n<tool_response>\n' }}{{ show(message.content) }}{{ '\n</tool_response>' }}"
        "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}<|im_end|>\n{% endif -%}"
        "{%- elif message.role != 'system' -%}<|im_start|>{{ message.role }}\n{{ show(message.content) }}"
        "{%- for call in message.tool_calls or [] -%}"
        "{%- if not loop.first or message.content -%}{{ '\n' }}{%- endif -%}"
        '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
        "</tool_call>{%- endfor -%}<|im_end|>\n{% endif -%}"
        "{%- endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
    )


def picture(width: int, height: int, *, seed: int = 0, media_type: str = "image/png", position: int = 0) -> Image:
    """Return an image of random pixels."""
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    file = io.BytesIO()
    Pillow.fromarray(pixels.numpy()).save(file, media_type.removeprefix("image/").upper())
    return Image(data=file.getvalue(), media_type=media_type, position=position)


def decoded(image: Image) -> Pillow.Image:
    """Return the pixels, as an engine sees them."""
    return Pillow.open(io.BytesIO(image.data)).convert("RGB")


def save_model_files(folder: Path, *, kind: Kind) -> Path:
    """Write everything but the weights: tokenizer, template, configuration, image and video processors."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(kind)
    tokenizer.save_pretrained(folder)
    _config(kind, tokenizer).save_pretrained(folder)
    image_processor(kind).save_pretrained(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "processor_class": _PROCESSOR[kind]}))
    video = {**settings, "video_processor_type": _PROCESSOR[kind].replace("Processor", "VideoProcessor")}
    del video["image_processor_type"]
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    return folder


def save_model(folder: Path, *, kind: Kind, seed: int = 0) -> Path:
    """Write a whole model, rough enough that its predictions depend on what it sees."""
    save_model_files(folder, kind=kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(kind)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.15)
    model.save_pretrained(folder)
    return folder


def load_model(folder: Path, *, kind: Kind) -> Any:
    """Return the model in float32, for reference."""
    classes: dict[str, Any] = {"qwen2-vl": Qwen2VLForConditionalGeneration, "qwen3-vl": Qwen3VLForConditionalGeneration}
    return classes[kind].from_pretrained(folder, dtype=torch.float32).eval()


def image_processor(kind: Kind) -> Any:
    """Return transformers' image processor of the small model; this kind needs no torchvision."""
    mean = [0.5, 0.5, 0.5]
    return Qwen2VLImageProcessorPil(
        size=dict(_PIXELS), patch_size=_PATCH_SIZE[kind], merge_size=2, image_mean=mean, image_std=mean
    )


@torch.no_grad()
def reference_logprobs(
    model: Any, token_ids: Sequence[int], images: Sequence[Image], *, processor: Any, temperature: float = 1.0
) -> Tensor:
    """Return log p(token t | tokens and images before it) of tokens 1, 2, ..., by the model's own forward.

    The pixels are those of the given image processor: the kinds with and without torchvision resize a little
    differently.
    """
    token_T = torch.tensor(list(token_ids))
    seen = processor(images=[decoded(image) for image in images], return_tensors="pt")
    is_image_T = (token_T == model.config.image_token_id).int()
    outputs = model(
        input_ids=token_T[None],
        attention_mask=torch.ones_like(token_T)[None],
        mm_token_type_ids=is_image_T[None],
        pixel_values=seen["pixel_values"],
        image_grid_thw=seen["image_grid_thw"],
        use_cache=False,
    )
    logit_TV = outputs.logits[0].double() / temperature
    return logit_TV[:-1].log_softmax(-1).gather(1, token_T[1:, None])[:, 0]


def _tokenizer(kind: Kind) -> Any:
    backend = byte_backend()
    backend.add_special_tokens(list(VISION_TOKENS))
    full = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    full.chat_template = chat_template(kind)
    return full


def _config(kind: Kind, tokenizer: Any) -> Any:
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(VISION_TOKENS))
    shared = {
        "image_token_id": image,
        "video_token_id": video,
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "tie_word_embeddings": False,
    }
    text = {
        **_TEXT,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": _PATCH_SIZE[kind], "spatial_merge_size": 2}
    if kind == "qwen3-vl":
        # transformers always interleaves for this family, vLLM where the configuration says so
        text["rope_parameters"] = {**_TEXT["rope_parameters"], "mrope_interleaved": True}
    if kind == "qwen2-vl":
        vision |= {"embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2, "in_channels": 3}
        return Qwen2VLConfig(
            text_config=text, vision_config=vision, architectures=["Qwen2VLForConditionalGeneration"], **shared
        )
    vision |= {
        "hidden_size": 64,
        "intermediate_size": 96,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLConfig(
        text_config=text, vision_config=vision, architectures=["Qwen3VLForConditionalGeneration"], **shared
    )


def _model(kind: Kind) -> Any:
    config = _config(kind, _tokenizer(kind))
    return Qwen2VLForConditionalGeneration(config) if kind == "qwen2-vl" else Qwen3VLForConditionalGeneration(config)
