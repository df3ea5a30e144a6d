"""Trajectories as Arrow tables and back, exactly; the schema of the store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa

from agentenv.errors import StoreError
from agentenv.messages import CallStatus, Image, Message, Role, ToolCall
from agentenv.trajectory import StopReason, TokenSequence, Trajectory, Turn, VersionSpan

SCHEMA_VERSION = 2

_VALUES = pa.map_(pa.string(), pa.float64())
_SPAN = pa.struct([("version", pa.int64()), ("start", pa.int32()), ("end", pa.int32())])
_TURN = pa.struct(
    [
        ("sequence", pa.int32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("finish_reason", pa.string()),
        ("weight_versions", pa.list_(_SPAN)),
        ("num_tool_calls", pa.int32()),
        ("num_malformed_calls", pa.int32()),
        ("reward_components", _VALUES),
    ]
)
_CALL = pa.struct([(name, pa.string()) for name in ("call_id", "name", "arguments", "status", "raw")])
_MESSAGE = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("tool_calls", pa.list_(_CALL)),
        ("tool_call_id", pa.string()),
        ("name", pa.string()),
        ("reasoning", pa.string()),
    ]
)
_IMAGE = pa.struct([("data", pa.binary()), ("media_type", pa.string())])
_IMAGE_PLACE = pa.struct([("message", pa.int32()), ("image", pa.int32()), ("position", pa.int32())])
_SEQUENCE_IMAGE = pa.struct([("image", pa.int32()), ("position", pa.int32())])
_SEQUENCES = {"token_ids": pa.int32(), "logprobs": pa.float32(), "is_sampled": pa.bool_()}
SCHEMA = pa.schema(
    [
        ("phase", pa.string()),
        ("step", pa.int64()),
        ("env_id", pa.string()),
        ("task_id", pa.string()),
        ("group_id", pa.string()),
        ("member", pa.int32()),
        ("seed", pa.int64()),
        ("attempt", pa.int32()),
        ("stop_reason", pa.string()),
        ("error", pa.string()),
        ("reward", pa.float64()),  # derived, for queries from outside; reading back ignores it
        ("reward_components", _VALUES),
        ("metrics", _VALUES),
        ("turns", pa.list_(_TURN)),
        ("messages", pa.list_(_MESSAGE)),
        ("images", pa.list_(_IMAGE)),  # every file once; the two columns below point at it by index
        ("message_images", pa.list_(_IMAGE_PLACE)),
        ("sequence_images", pa.list_(pa.list_(_SEQUENCE_IMAGE))),
        *((name, pa.list_(pa.list_(kind))) for name, kind in _SEQUENCES.items()),
    ],
    metadata={"agentenv.schema_version": str(SCHEMA_VERSION)},
)
"""One row per trajectory; the three token columns and `sequence_images` hold one inner list per sequence."""


def table_of(trajectories: Sequence[Trajectory], *, step: int, phase: str) -> pa.Table:
    """Return trajectories as a table of `SCHEMA`.

    Text that is no Unicode (a lone surrogate) is stored with backslash escapes, since UTF-8 cannot hold it.
    Tool-call arguments are stored as JSON; a value that JSON does not know is stored as its text.

    Raises:
        StoreError: a value does not fit its column.
    """
    try:
        columns = [*_scalar_columns(trajectories, step=step, phase=phase), *_token_columns(trajectories)]
        return pa.Table.from_arrays(columns, schema=SCHEMA)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise StoreError(f"{len(trajectories)} trajectories do not fit the store's columns: {error}") from error


def trajectories_of(table: pa.Table) -> Iterator[Trajectory]:
    """Yield the trajectories of a table of `SCHEMA`; their arrays are fresh copies."""
    table = table.combine_chunks()
    plain = table.drop_columns([*_SEQUENCES, "reward"])
    columns = {name: _chunk(table, name) for name in _SEQUENCES}
    inner = {name: column.values for name, column in columns.items()}
    flat = {name: lists.values.to_numpy(zero_copy_only=False) for name, lists in inner.items()}
    row_ends = columns["token_ids"].offsets.to_numpy()
    token_ends = inner["token_ids"].offsets.to_numpy()
    for column, lists in zip(columns.values(), inner.values(), strict=True):
        if not (np.array_equal(column.offsets, row_ends) and np.array_equal(lists.offsets, token_ends)):
            raise StoreError("the token columns of a stored trajectory differ in length")
    for index, row in enumerate(plain.to_pylist(maps_as_pydicts="strict")):
        spans = zip(
            token_ends[row_ends[index] : row_ends[index + 1]],
            token_ends[row_ends[index] + 1 : row_ends[index + 1] + 1],
            strict=True,
        )
        sequences = tuple(
            TokenSequence(
                **{name: values[start:end].copy() for name, values in flat.items()},
                images=tuple(_image(row, place) for place in places),
            )
            for (start, end), places in zip(spans, row["sequence_images"], strict=True)
        )
        yield _trajectory(row, sequences=sequences)


def _scalar_columns(trajectories: Sequence[Trajectory], *, step: int, phase: str) -> list[pa.Array]:
    count = len(trajectories)
    images = [_images(one) for one in trajectories]
    values: dict[str, Iterable[object]] = {
        "phase": [_text(phase)] * count,
        "step": [step] * count,
        "env_id": (_text(one.env_id) for one in trajectories),
        "task_id": (_text(one.task_id) for one in trajectories),
        "group_id": (_text(one.group_id) for one in trajectories),
        "member": (one.member for one in trajectories),
        "seed": (one.seed for one in trajectories),
        "attempt": (one.attempt for one in trajectories),
        "stop_reason": (one.stop_reason.value for one in trajectories),
        "error": (_text(one.error) for one in trajectories),
        "reward": (float(one.reward) for one in trajectories),
        "reward_components": (_pairs(one.reward_components) for one in trajectories),
        "metrics": (_pairs(one.metrics) for one in trajectories),
        "turns": ([_turn_row(turn) for turn in one.turns] for one in trajectories),
        "messages": ([_message_row(message) for message in one.messages] for one in trajectories),
        "images": ([{"data": i.data, "media_type": _text(i.media_type)} for i in files.values()] for files in images),
        "message_images": (_message_places(one, files) for one, files in zip(trajectories, images, strict=True)),
        "sequence_images": (_sequence_places(one, files) for one, files in zip(trajectories, images, strict=True)),
    }
    return [pa.array(list(column), type=SCHEMA.field(name).type) for name, column in values.items()]


def _token_columns(trajectories: Sequence[Trajectory]) -> list[pa.Array]:
    """Build the nested lists from offsets over joined arrays, so that no token becomes a Python object."""
    sequences = [sequence for one in trajectories for sequence in one.sequences]
    row_ends = _offsets([len(one.sequences) for one in trajectories])
    token_ends = _offsets([len(sequence) for sequence in sequences])
    columns: list[pa.Array] = []
    for name, kind in _SEQUENCES.items():
        dtype = np.dtype(kind.to_pandas_dtype())
        parts = [np.asarray(getattr(sequence, name)).astype(dtype, copy=False) for sequence in sequences]
        flat = pa.array(np.concatenate(parts) if parts else np.zeros(0, dtype), type=kind)
        columns.append(pa.ListArray.from_arrays(row_ends, pa.ListArray.from_arrays(token_ends, flat)))
    return columns


def _offsets(lengths: Sequence[int]) -> pa.Array:
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    if ends[-1] > np.iinfo(np.int32).max:
        raise OverflowError(f"{ends[-1]} tokens in one table; at most 2^31 - 1 fit")
    return pa.array(ends.astype(np.int32))


def _turn_row(turn: Turn) -> dict[str, object]:
    return {
        "sequence": turn.sequence,
        "start": turn.start,
        "end": turn.end,
        "finish_reason": turn.finish_reason,
        "weight_versions": [
            {"version": span.version, "start": span.start, "end": span.end} for span in turn.weight_versions
        ],
        "num_tool_calls": turn.num_tool_calls,
        "num_malformed_calls": turn.num_malformed_calls,
        "reward_components": _pairs(turn.reward_components),
    }


def _message_row(message: Message) -> dict[str, object]:
    return {
        "role": message.role,
        "content": _text(message.content),
        "tool_calls": [_call_row(call) for call in message.tool_calls],
        "tool_call_id": _text(message.tool_call_id),
        "name": _text(message.name),
        "reasoning": _text(message.reasoning),
    }


def _images(one: Trajectory) -> dict[str, Image]:
    """Return the images of a trajectory by digest and format, each once, in the order in which they appear."""
    groups = [*(message.images for message in one.messages), *(sequence.images for sequence in one.sequences)]
    return {_image_key(image): image for images in groups for image in images}


def _image_key(image: Image) -> str:
    return f"{image.media_type} {image.digest}"


def _message_places(one: Trajectory, files: Mapping[str, Image]) -> list[dict[str, int]]:
    index = {key: number for number, key in enumerate(files)}
    return [
        {"message": number, "image": index[_image_key(image)], "position": image.position}
        for number, message in enumerate(one.messages)
        for image in message.images
    ]


def _sequence_places(one: Trajectory, files: Mapping[str, Image]) -> list[list[dict[str, int]]]:
    index = {key: number for number, key in enumerate(files)}
    return [
        [{"image": index[_image_key(image)], "position": image.position} for image in sequence.images]
        for sequence in one.sequences
    ]


def _call_row(call: ToolCall) -> dict[str, str]:
    return {
        "call_id": _text(call.call_id),
        "name": _text(call.name),
        "arguments": json.dumps(dict(call.arguments), default=str),
        "status": call.status,
        "raw": _text(call.raw),
    }


def _trajectory(row: Mapping[str, Any], *, sequences: tuple[TokenSequence, ...]) -> Trajectory:
    return Trajectory(
        env_id=row["env_id"],
        task_id=row["task_id"],
        group_id=row["group_id"],
        member=row["member"],
        seed=row["seed"],
        stop_reason=StopReason(row["stop_reason"]),
        turns=tuple(_turn(turn) for turn in row["turns"]),
        sequences=sequences,
        reward_components=row["reward_components"],
        messages=_messages(row),
        error=row["error"],
        metrics=row["metrics"],
        attempt=row["attempt"],
    )


def _turn(row: Mapping[str, Any]) -> Turn:
    spans = tuple(VersionSpan(**span) for span in row["weight_versions"])
    return Turn(**{**row, "weight_versions": spans})


def _messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    images: dict[int, list[Image]] = {}
    for place in row["message_images"]:
        images.setdefault(place["message"], []).append(_image(row, place))
    return tuple(
        Message(
            **{
                **message,
                "role": cast(Role, message["role"]),
                "tool_calls": tuple(_call(one) for one in message["tool_calls"]),
                "images": tuple(images.get(number, ())),
            }
        )
        for number, message in enumerate(row["messages"])
    )


def _image(row: Mapping[str, Any], place: Mapping[str, int]) -> Image:
    return Image(**row["images"][place["image"]], position=place["position"])


def _call(row: Mapping[str, str]) -> ToolCall:
    return ToolCall(
        call_id=row["call_id"],
        name=row["name"],
        arguments=json.loads(row["arguments"]),
        status=cast(CallStatus, row["status"]),
        raw=row["raw"],
    )


def _pairs(values: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(_text(name), float(value)) for name, value in values.items()]


def _text(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _chunk(table: pa.Table, name: str) -> Any:
    chunks = table.column(name).chunks
    return chunks[0] if chunks else pa.array([], type=SCHEMA.field(name).type)
