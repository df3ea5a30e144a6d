"""The tools that are offered: every action for every object, and the sentences in which people ask for them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from agentenv.envs.drawing import pick
from agentenv.tool import Tool, ToolOptions, as_tool, tool_marked

Arguments = Mapping[str, object]


class Desk(Protocol):
    """What takes the calls."""

    def called(self, name: str, arguments: Arguments) -> str:
        """Take a call and return what the model is told."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What can be done with the objects of a kind.

    Attributes:
        name: verb of the tool's name.
        description: with `{thing}` for the object.
        parameters: names, of those in `_PARAMETERS`.
        sentences: ways to ask for it, with `{thing}` and the parameters as fields.
    """

    name: str
    description: str
    parameters: tuple[str, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One tool: an action on an object."""

    action: Action
    thing: str

    @property
    def name(self) -> str:
        """Of the tool."""
        return f"{self.action.name}_{self.thing.replace(' ', '_')}"


_DEVICES = ("lamp", "heater", "fan", "oven", "speaker", "sprinkler", "shutter", "kettle", "humidifier", "doorbell")
_RECORDS = ("invoice", "meeting", "contract", "ticket", "shipment", "booking", "lesson", "claim", "recipe", "survey")

_DEVICE_ACTIONS = (
    Action(
        name="start",
        description="Start the {thing} of a room now.",
        parameters=("room",),
        sentences=("Get the {thing} in the {room} going.", "I want the {thing} in the {room} to run, please."),
    ),
    Action(
        name="stop",
        description="Stop the {thing} of a room now.",
        parameters=("room",),
        sentences=("The {thing} in the {room} should not run any more.", "Switch off the {thing} in the {room}."),
    ),
    Action(
        name="set_level_of",
        description="Set the strength at which the {thing} of a room works.",
        parameters=("room", "percent"),
        sentences=(
            "Put the {thing} in the {room} at {percent} per cent.",
            "{percent} % on the {room} {thing}, please.",
        ),
    ),
    Action(
        name="schedule",
        description="Have the {thing} of a room start by itself at a time of day.",
        parameters=("room", "time"),
        sentences=(
            "The {thing} in the {room} should come on by itself at {time}.",
            "At {time} I need the {room} {thing} running without anybody touching it.",
        ),
    ),
    Action(
        name="report_use_of",
        description="Tell how long the {thing} of a room has run during the last days.",
        parameters=("room", "days"),
        sentences=(
            "For how long did the {thing} in the {room} run over the past {days} days?",
            "How many hours was the {room} {thing} going in the last {days} days?",
        ),
    ),
    Action(
        name="order_repair_of",
        description="Send for somebody who repairs the {thing} of a room.",
        parameters=("room",),
        sentences=("The {thing} in the {room} is broken; have it mended.", "Get the {room} {thing} fixed, it rattles."),
    ),
)
_RECORD_ACTIONS = (
    Action(
        name="open",
        description="Show the {thing} with a number.",
        parameters=("number",),
        sentences=("Let me see {thing} {number}.", "What does {thing} number {number} say?"),
    ),
    Action(
        name="cancel",
        description="Call off the {thing} with a number, for good.",
        parameters=("number",),
        sentences=("We no longer want {thing} {number}; call it off.", "Scrap {thing} number {number} for good."),
    ),
    Action(
        name="assign",
        description="Make a person responsible for the {thing} with a number.",
        parameters=("number", "person"),
        sentences=("{person} should take care of {thing} {number}.", "Give {thing} {number} to {person} to handle."),
    ),
    Action(
        name="share",
        description="Let a person read the {thing} with a number.",
        parameters=("number", "person"),
        sentences=(
            "{person} must be able to read {thing} {number}, nothing more.",
            "Let {person} have a look at {thing} {number}.",
        ),
    ),
    Action(
        name="postpone",
        description="Move the {thing} with a number back by some days.",
        parameters=("number", "days"),
        sentences=(
            "Push {thing} {number} back by {days} days.",
            "{days} days later would be better for {thing} {number}.",
        ),
    ),
    Action(
        name="archive",
        description="Put the {thing} with a number away; it is kept, but no longer listed.",
        parameters=("number",),
        sentences=(
            "{thing} {number} is dealt with; keep it but take it off the list.",
            "File {thing} {number} away so that it stops showing up.",
        ),
    ),
    Action(
        name="count_copies_of",
        description="Tell how many copies of the {thing} with a number a person holds.",
        parameters=("number", "person"),
        sentences=(
            "How many copies of {thing} {number} are with {person}?",
            "Find out how often {person} has {thing} {number}.",
        ),
    ),
)

_PARAMETERS: Mapping[str, tuple[type, str]] = {
    "room": (str, "name of the room."),
    "percent": (int, "share of full strength, 0 to 100."),
    "time": (str, "time of day as HH:MM."),
    "days": (int, "number of days."),
    "number": (int, "of the record."),
    "person": (str, "first name."),
}
_ROOMS = ("kitchen", "attic", "cellar", "study", "garage", "hall", "nursery", "library")
_PEOPLE = ("Ada", "Bruno", "Chiara", "Dmitri", "Esi", "Farah", "Goran", "Hedda", "Ivo", "Jun")


@functools.cache
def all_offers() -> tuple[Offer, ...]:
    """Return every tool that may be offered."""
    devices = [Offer(action=action, thing=thing) for thing in _DEVICES for action in _DEVICE_ACTIONS]
    records = [Offer(action=action, thing=thing) for thing in _RECORDS for action in _RECORD_ACTIONS]
    return (*devices, *records)


@functools.cache
def all_tools() -> tuple[Tool, ...]:
    """Return the tools of all offers; each needs a `Desk` as its owner."""
    return tuple(_tool_of(offer) for offer in all_offers())


def neighbours(offer: Offer) -> list[Offer]:
    """Return the offers that are easily mistaken for this one: same object or same action."""
    return [
        other
        for other in all_offers()
        if other != offer and (other.thing == offer.thing or other.action == offer.action)
    ]


def drawn_arguments(rng: np.random.Generator, offer: Offer) -> dict[str, str | int]:
    """Draw what a request gives."""
    drawn: dict[str, str | int] = {
        "room": pick(rng, _ROOMS),
        "percent": int(rng.integers(5, 100)),
        "time": f"{int(rng.integers(24)):02}:{int(rng.integers(60)):02}",
        "days": int(rng.integers(2, 60)),
        "number": int(rng.integers(100, 10_000)),
        "person": pick(rng, _PEOPLE),
    }
    return {name: drawn[name] for name in offer.action.parameters}


def sentence(rng: np.random.Generator, offer: Offer, arguments: Arguments) -> str:
    """Return a way to ask for a call."""
    text = pick(rng, offer.action.sentences).format(thing=offer.thing, **arguments)
    return text[0].upper() + text[1:]


def _tool_of(offer: Offer) -> Tool:
    def take(desk: Desk, **arguments: object) -> str:
        return desk.called(offer.name, arguments)

    parameters = {name: _PARAMETERS[name] for name in offer.action.parameters}
    lines = [f"    {name}: {text}" for name, (_, text) in parameters.items()]
    take.__name__ = take.__qualname__ = offer.name
    take.__doc__ = "\n".join([offer.action.description.format(thing=offer.thing), "", "Args:", *lines])
    take.__annotations__ = {name: kind for name, (kind, _) in parameters.items()}
    names = ("self", *parameters)
    signature = inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names])
    cast(Any, take).__signature__ = signature
    return as_tool(tool_marked(take, ToolOptions(inline=True)))
