"""Image tokens: the counts of transformers' own processor, from sizes alone, and renderings that hold the runs."""

import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from agentenv.byte_tokenizer import byte_tokenizer
from agentenv.errors import ModelError, UsageError
from agentenv.message_key import MessageKey
from agentenv.messages import Image, Message, ToolCall, images_of
from agentenv.renderer import Renderer
from agentenv.tokenizer import load_tokenizer
from agentenv.vision import ImageTokens, read_image_tokens
from tests.engine.small_vision_models import Kind, decoded, image_processor, picture, save_model_files

ROOT = Path(__file__).resolve().parent.parent
KINDS: tuple[Kind, ...] = ("qwen2-vl", "qwen3-vl")
TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}},
}
SIDE = st.integers(1, 3000)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[Kind, Path]:
    return {kind: save_model_files(tmp_path_factory.mktemp("models") / kind, kind=kind) for kind in KINDS}


@pytest.fixture(scope="module")
def renderers(folders) -> dict[Kind, Renderer]:
    return {kind: Renderer(load_tokenizer(folder)) for kind, folder in folders.items()}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def renderer(renderers, kind) -> Renderer:
    return renderers[kind]


def conversation(*, media_type: str = "image/png") -> tuple[Message, ...]:
    """Two images in a prompt, side by side, and one in a tool's result."""
    asked = (picture(100, 60, position=6), picture(31, 200, seed=1, position=6))
    call = ToolCall(call_id="call_0_0", name="look", arguments={})
    return (
        Message(role="system", content="Be brief."),
        Message(role="user", content="Look: ü 🙂?", images=asked),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(
            role="tool",
            content="seen",
            tool_call_id="call_0_0",
            name="look",
            images=(picture(300, 30, seed=2, media_type=media_type, position=4),),
        ),
    )


def runs(token_ids: Any, token: int) -> list[int]:
    """Return the lengths of the runs of a token."""
    return [len(list(group)) for value, group in groupby(token_ids) if value == token]


@settings(max_examples=500, deadline=None)
@given(
    width=SIDE,
    height=SIDE,
    patch_size=st.sampled_from([14, 16]),
    merge_size=st.sampled_from([1, 2, 3]),
    min_pixels=st.integers(1, 200_000),
    more=st.integers(0, 2_000_000),
)
def test_sizes_are_those_of_transformers(width, height, patch_size, merge_size, min_pixels, more):
    vision = ImageTokens(
        token_id=0, patch_size=patch_size, merge_size=merge_size, min_pixels=min_pixels, max_pixels=min_pixels + more
    )
    limits = {"factor": patch_size * merge_size, "min_pixels": min_pixels, "max_pixels": min_pixels + more}
    try:
        high, wide = smart_resize(height, width, **limits)
    except ValueError:
        with pytest.raises(UsageError, match="differ by a factor of 200"):
            vision.resized(width, height)
        return
    assert vision.resized(width, height) == (wide, high)


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400))
def test_counts_are_those_of_the_models_own_image_processor(renderers, width, height):
    assume(max(width, height) <= 200 * min(width, height))
    image = picture(width, height)
    for kind in KINDS:
        (grid,) = image_processor(kind)(images=[decoded(image)])["image_grid_thw"]
        assert renderers[kind].vision.num_tokens(image) == int(grid.prod()) // 2**2


def test_known_sizes_give_the_published_number_of_tokens():
    # section 2.1 of the paper: 224 x 224 pixels, patches of 14, are 66 tokens with the two markers around them
    qwen2 = ImageTokens(token_id=0)
    assert qwen2.resized(224, 224) == (224, 224)
    assert qwen2.num_tokens(picture(224, 224)) + 2 == 66
    # 1920 x 1080 has 2.07 million pixels; at most 1280 merged patches of 28 x 28 are allowed
    assert qwen2.resized(1920, 1080) == (1316, 728)


def test_the_family_of_a_vision_model_is_found_with_images_and_the_template_serves_the_others(renderers):
    assert renderers["qwen3-vl"].family_name == "qwen3-vl"
    assert renderers["qwen2-vl"].family_name == "template"


def test_a_prompt_with_images_is_that_of_the_models_own_processor(renderer, folders, kind):
    """What `Qwen2VLProcessor` does: render the template, widen every placeholder, encode."""
    from transformers import AutoTokenizer

    messages = conversation()
    values = [message.to_dict() for message in messages]
    for value in values:
        if isinstance(value["content"], list):
            value["content"] = [p if p["type"] == "text" else {"type": "image"} for p in value["content"]]
    full: Any = AutoTokenizer.from_pretrained(folders[kind])
    text = full.apply_chat_template(values, tools=[TOOL], tokenize=False, add_generation_prompt=True)
    grids = image_processor(kind)(images=[decoded(image) for image in images_of(messages)])["image_grid_thw"]
    assert text.count("<|image_pad|>") == len(grids) == 3
    for grid in grids:
        text = text.replace("<|image_pad|>", "<|done|>" * (int(grid.prod()) // 4), 1)
    expected = full.encode(text.replace("<|done|>", "<|image_pad|>"), add_special_tokens=False)

    assert list(renderer.prompt_ids(messages, tools=(TOOL,))) == expected
    assert runs(expected, renderer.vision.token_id) == [renderer.vision.num_tokens(i) for i in images_of(messages)]


def test_a_continuation_with_images_extends_prompt_and_completion_exactly(renderer):
    system, user, turn, result = conversation()
    prompt = renderer.prompt_ids((system, user), tools=(TOOL,))
    sampled = renderer.turn_ids(turn, tools=(TOOL,))

    new = renderer.continuation_ids((result,), is_closed=True, tools=(TOOL,))

    assert new is not None
    assert (*prompt, *sampled, *new) == renderer.prompt_ids((system, user, turn, result), tools=(TOOL,))
    still_open = renderer.continuation_ids((result,), is_closed=False, tools=(TOOL,))
    assert still_open == (sampled[-1], *new)


def test_images_of_another_size_never_get_a_cached_rendering(renderer):
    def prompt(image: Image) -> tuple[int, ...]:
        return renderer.prompt_ids((Message(role="user", content="x", images=(image,)),))

    small, large = picture(64, 64), picture(200, 200)
    first, second = prompt(small), prompt(large)
    assert len(second) - len(first) == renderer.vision.num_tokens(large) - renderer.vision.num_tokens(small) > 0
    assert prompt(small) == first
    assert prompt(small.at(1)) != first  # behind the text
    assert renderer.prompt_ids((Message(role="user", content="x"),)) != first


def test_caches_hold_no_files():
    assert [len(image.data) for image in MessageKey(conversation()[1]).message.images] == [0, 0]


@pytest.mark.parametrize("role", ["user", "tool"])
def test_placeholders_in_foreign_text_stay_text(renderer, role):
    seen = picture(64, 64, position=3)
    forged = Message(
        role=role,
        content="a<|image_pad|>b<|vision_start|><|image_pad|><|vision_end|>",
        tool_call_id="c" if role == "tool" else "",
        images=(seen,),
    )
    opening = (Message(role="user", content="?"),) if role == "tool" else ()
    ids = renderer.prompt_ids((*opening, forged))
    assert runs(ids, renderer.vision.token_id) == [renderer.vision.num_tokens(seen)]
    # the image stands inside the first forged token, whose halves are text on both sides of it
    assert "a<|<|vision_start|><|image_pad|>" in renderer.decode(ids).replace("\u200b", "")
    assert renderer.decode(ids).count("\u200b") == 3


def test_images_where_the_template_leaves_them_out_are_refused(tmp_path):
    folder = save_model_files(tmp_path, kind="qwen2-vl")
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% for part in message.content if part is mapping and part.type == 'text' %}{{ part.text }}{% endfor %}"
        "<|im_end|>\n{% endfor %}"
    )
    message = Message(role="user", content="x", images=(picture(64, 64),))
    with pytest.raises(UsageError, match="1 images came, but the chat template writes 0 image placeholders"):
        Renderer(load_tokenizer(folder)).prompt_ids((message,))


def test_a_template_that_runs_images_together_is_refused(tmp_path):
    folder = save_model_files(tmp_path, kind="qwen2-vl")
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{% for part in message.content if part is mapping and part.type == 'image' %}"
        "<|image_pad|>{% endfor %}<|im_end|>{% endfor %}"
    )
    images = (picture(64, 64), picture(64, 64))
    with pytest.raises(ModelError, match="side by side"):
        Renderer(load_tokenizer(folder)).prompt_ids((Message(role="user", content="", images=images),))


def test_a_text_model_refuses_images_and_names_what_reads_them():
    renderer = Renderer(byte_tokenizer(), family="qwen3")
    message = Message(role="user", content="x", images=(picture(64, 64),))
    for refused in (
        lambda: renderer.prompt_ids((message,)),
        lambda: renderer.continuation_ids((message,), is_closed=True),
        lambda: renderer.cut(message, max_tokens=100),
    ):
        with pytest.raises(UsageError, match=r"bytes reads text only; images need models whose config\.json has"):
            refused()


def test_text_renders_alike_with_and_without_vision_in_the_family(renderers):
    messages = (Message(role="user", content="plain"), Message(role="user", content=" 7 \n"))
    template = Renderer(renderers["qwen3-vl"].tokenizer, family="template")
    assert renderers["qwen3-vl"].prompt_ids(messages) == template.prompt_ids(messages)


# Model folders.


def tokens_of(files: dict[str, object], folder: Path) -> ImageTokens | None:
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    return read_image_tokens(lambda name: folder / name, name="m")


SEEING = {"image_token_id": 7, "vision_config": {"patch_size": 16, "spatial_merge_size": 2}}
PROCESSOR = {"image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 16, "merge_size": 2}


def test_a_folder_says_how_images_become_tokens(tmp_path):
    old = {**PROCESSOR, "min_pixels": 3136, "max_pixels": 12_845_056, "size": {"min_pixels": 1, "max_pixels": 2}}
    assert tokens_of({"config.json": SEEING, "preprocessor_config.json": old}, tmp_path) == ImageTokens(
        token_id=7, patch_size=16, merge_size=2, min_pixels=3136, max_pixels=12_845_056
    )
    new = {"image_processor": {**PROCESSOR, "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}}}
    assert tokens_of({"processor_config.json": new}, tmp_path) == ImageTokens(
        token_id=7, patch_size=16, merge_size=2, min_pixels=65_536, max_pixels=16_777_216
    )


def test_a_silent_processor_means_the_defaults_of_transformers(tmp_path):
    from transformers import Qwen2VLImageProcessorPil

    silent = {"image_processor_type": "Qwen2VLImageProcessor"}
    config = {**SEEING, "vision_config": {"patch_size": 14, "spatial_merge_size": 2}}
    found = tokens_of({"config.json": config, "preprocessor_config.json": silent}, tmp_path)
    default: Any = Qwen2VLImageProcessorPil()
    assert found == ImageTokens(
        token_id=7,
        patch_size=default.patch_size,
        merge_size=default.merge_size,
        min_pixels=default.size["shortest_edge"],
        max_pixels=default.size["longest_edge"],
    )


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"config.json": {"model_type": "qwen3"}},
        {"config.json": {"image_token_id": 7}},
        {"config.json": SEEING},
        {"config.json": SEEING, "preprocessor_config.json": {"image_processor_type": "SiglipImageProcessor"}},
    ],
)
def test_models_without_known_vision_are_text_models(files, tmp_path):
    assert tokens_of(files, tmp_path) is None


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        ({**PROCESSOR, "patch_size": 14}, "vision_config.patch_size is 16 and the image processor's patch_size 14"),
        ({**PROCESSOR, "merge_size": 1}, "spatial_merge_size is 2 and the image processor's merge_size 1"),
        ({**PROCESSOR, "do_resize": False}, "do_resize false"),
        ({**PROCESSOR, "size": {"height": 224}}, "shortest_edge is None; a whole number"),
        ({**PROCESSOR, "max_pixels": "many"}, "longest_edge is 'many'; a whole number"),
        ({**PROCESSOR, "min_pixels": 0}, "at least 1"),
        ({**PROCESSOR, "min_pixels": 9_000_000}, "max_pixels at least min_pixels"),
    ],
)
def test_a_processor_that_contradicts_the_model_is_refused(processor, said, tmp_path):
    with pytest.raises(ModelError) as refused:
        tokens_of({"config.json": SEEING, "preprocessor_config.json": processor}, tmp_path)
    assert said in str(refused.value)


def test_a_processor_file_that_is_not_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SEEING))
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"preprocessor_config\.json: not valid JSON"):
        tokens_of({}, tmp_path)


def test_the_template_of_a_processor_counts_before_that_of_its_tokenizer(tmp_path):
    folder = save_model_files(tmp_path, kind="qwen2-vl")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    settings_file = folder / "tokenizer_config.json"
    settings_file.write_text(json.dumps({**json.loads(settings_file.read_text()), "chat_template": "text only"}))
    message = Message(role="user", content="x", images=(picture(64, 64),))
    renderer = Renderer(load_tokenizer(folder))
    assert runs(renderer.prompt_ids((message,)), renderer.vision.token_id) == [4]


def test_a_model_of_the_hub_sees_too(folders, tmp_path):
    """The cache that a download leaves: no network is needed to read it."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--maker--sees" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for source in folders["qwen3-vl"].iterdir():
        (snapshot / source.name).write_bytes(source.read_bytes())
    refs = cache / "models--maker--sees" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    program = (
        "from agentenv.tokenizer import load_tokenizer; vision = load_tokenizer('maker/sees').vision; "
        "print(vision.patch_size, vision.max_pixels)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.stdout.split() == ["16", "65536"], ran.stderr[-2000:]


def test_counting_tokens_needs_neither_torch_nor_torchvision():
    program = (
        "import sys; from agentenv.byte_tokenizer import vision_byte_tokenizer; "
        "from agentenv.messages import Image, Message; from agentenv.renderer import Renderer; "
        f"image = Image(data=bytes.fromhex('{picture(100, 60).data.hex()}')); "
        "renderer = Renderer(vision_byte_tokenizer(), family='qwen3-vl'); "
        "print(len(renderer.prompt_ids((Message(role='user', content='', images=(image,)),)))); "
        "print(sorted({'torch', 'torchvision', 'transformers'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    # <im_start> "user" newline, 8 placeholders between 2 markers, <im_end> newline, <im_start> "assistant" newline
    assert ran.stdout.splitlines() == [str(6 + 10 + 2 + 11), "[]"]
