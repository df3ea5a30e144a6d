"""A seeded service: collections of items behind paths, methods, a login and a workflow that nobody documented."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from agentenv.envs.drawing import pick, pick_distinct, pick_each

Item = dict[str, object]
Answer = tuple[int, object]
"""Status and body."""

PAGE_SIZE = 4
MAX_ITEMS = 100
"""Items of one collection; then none can be made."""

_THINGS = ("lanterns", "kettles", "gardens", "ledgers", "engines", "charts", "ferries", "bells", "looms", "wells")
_NAME_FIELDS = ("name", "title", "label")
_NUMBER_FIELDS = ("height", "weight", "floor", "rank", "voltage", "width")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "colour": ("red", "green", "blue", "grey"),
    "tint": ("warm", "cold", "neutral"),
    "grade": ("raw", "plain", "fine", "royal"),
    "zone": ("north", "south", "harbour", "upland"),
    "material": ("brass", "oak", "slate", "wool"),
}
_STATE_FIELDS = ("state", "status", "phase")
_WORKFLOWS = (
    (("draft", "review"), ("reviewed", "publish"), ("public", "")),
    (("ordered", "pack"), ("packed", "ship"), ("sent", "")),
    (("new", "inspect"), ("inspected", "approve"), ("approved", "install"), ("running", "")),
    (("planned", "begin"), ("open", "pause"), ("paused", "finish"), ("closed", "")),
)
"""States in order, each with the action that leads to the next one."""
_PREFIXES = ("/v1", "/v2", "/api", "/api/v3", "/rest")
_LOGINS = ("/session", "/login", "/tokens")
_NAMES = (
    "amber", "anchor", "aspen", "birch", "cedar", "cobalt", "comet", "coral", "ember", "falcon", "fern", "flint",
    "garnet", "hazel", "heron", "indigo", "ivory", "jasper", "juniper", "larch", "lotus", "maple", "marble", "moss",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """Items of one kind.

    Attributes:
        name: plural, and the last part of the path.
        name_field: field that holds an item's name; texts.
        number_field: field of whole numbers.
        choice_field: field that holds one of `choices`.
        choices: its values.
        state_field: field that only actions change.
    """

    name: str
    name_field: str
    number_field: str
    choice_field: str
    choices: tuple[str, ...]
    state_field: str

    @property
    def fields(self) -> tuple[str, str, str]:
        """What a request may set."""
        return self.name_field, self.number_field, self.choice_field


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What has to be found out.

    Attributes:
        prefix: of every path but the root.
        collections: by name.
        update_method: `PATCH` or `PUT`, which changes the given fields of an item.
        login: path that hands out the token, empty where none is needed.
        key: what the login asks for.
        token: what it hands out.
        workflow: states in order, each with the action to the next.
    """

    prefix: str
    collections: Mapping[str, Collection]
    update_method: str
    login: str
    key: str
    token: str
    workflow: tuple[tuple[str, str], ...]

    def path(self, collection: str) -> str:
        """Return the path of a collection."""
        return f"{self.prefix}/{collection}"


@dataclass(kw_only=True)
class Service:
    """The service and its data: items by id, by collection."""

    layout: Layout
    items: dict[str, dict[int, Item]] = field(default_factory=dict)

    def copy(self) -> Service:
        """Return an independent copy."""
        return Service(layout=self.layout, items=copy.deepcopy(self.items))

    def handle(self, method: str, path: str, *, body: Mapping[str, object], token: str) -> Answer:
        """Answer a request as a service does: a status and a JSON body."""
        layout = self.layout
        bare, _, query = path.partition("?")
        bare = bare.rstrip("/") or "/"
        if bare == "/":
            return (200, self._links()) if method == "GET" else _not_allowed(method, "GET")
        if layout.login and bare == layout.prefix + layout.login:
            return self._login(method, body)
        parts = bare[len(layout.prefix) + 1 :].split("/")
        if not bare.startswith(f"{layout.prefix}/") or parts[0] not in layout.collections or len(parts) > 3:
            return 404, {"error": f"nothing is at {bare[:100]}; GET / lists what there is"}
        if layout.login and token != layout.token:
            return 401, {"error": "no valid token", "login": layout.prefix + layout.login}
        collection = layout.collections[parts[0]]
        if len(parts) == 1:
            return self._collection(collection, method, query=query, body=body)
        item = self.items[collection.name].get(int(parts[1])) if _is_id(parts[1]) else None
        if item is None:
            return 404, {"error": f"{collection.name} has no item {parts[1][:40]}; ids are whole numbers"}
        if len(parts) == 3:
            return self._act(collection, item, method, action=parts[2])
        return self._item(collection, item, method, body=body)

    def make(self, collection: Collection, values: Mapping[str, object]) -> Item:
        """Add an item in the first state and return it."""
        items = self.items.setdefault(collection.name, {})
        made: Item = {
            "id": max(items, default=100) + 1,
            **values,
            collection.state_field: self.layout.workflow[0][0],
        }
        items[int(str(made["id"]))] = made
        return made

    def advance(self, collection: Collection, item: Item) -> str:
        """Bring an item to its next state and return that; empty where it is in the last one."""
        states = [state for state, _ in self.layout.workflow]
        position = states.index(str(item[collection.state_field]))
        if position == len(states) - 1:
            return ""
        item[collection.state_field] = states[position + 1]
        return states[position + 1]

    def _links(self) -> dict[str, object]:
        links = [self.layout.path(name) for name in self.layout.collections]
        return {"links": [*links, self.layout.prefix + self.layout.login] if self.layout.login else links}

    def _login(self, method: str, body: Mapping[str, object]) -> Answer:
        if method != "POST":
            return _not_allowed(method, "POST")
        if set(body) != {"key"}:
            return 422, {"error": "the body must be an object with one field", "missing": ["key"]}
        if body["key"] != self.layout.key:
            return 403, {"error": "wrong key"}
        return 201, {"token": self.layout.token}

    def _collection(self, collection: Collection, method: str, *, query: str, body: Mapping[str, object]) -> Answer:
        items = list(self.items[collection.name].values())
        if method == "POST":
            problem = _problem(collection, body, required=collection.fields)
            if problem is None and len(items) >= MAX_ITEMS:
                return 507, {"error": f"the collection is full; it holds {MAX_ITEMS} items"}
            return problem or (201, dict(self.make(collection, body)))
        if method != "GET":
            return _not_allowed(method, "GET", "POST")
        page = query.removeprefix("page=") or "1"
        if not _is_id(page) or int(page) < 1:
            return 400, {"error": "the query is wrong; known is page=NUMBER, from 1"}
        start = (int(page) - 1) * PAGE_SIZE
        shown = [{"id": item["id"], collection.name_field: item[collection.name_field]} for item in items]
        is_last = start + PAGE_SIZE >= len(items)
        following = None if is_last else f"{self.layout.path(collection.name)}?page={int(page) + 1}"
        return 200, {"items": shown[start : start + PAGE_SIZE], "next": following}

    def _item(self, collection: Collection, item: Item, method: str, *, body: Mapping[str, object]) -> Answer:
        if method == "GET":
            action = dict(self.layout.workflow)[str(item[collection.state_field])]
            return 200, {**item, "actions": [action] if action else []}
        if method == "DELETE":
            del self.items[collection.name][int(str(item["id"]))]
            return 204, {}
        if method != self.layout.update_method:
            return _not_allowed(method, "GET", self.layout.update_method, "DELETE")
        problem = _problem(collection, body, required=())
        if problem is None:
            item.update(body)
        return problem or (200, dict(item))

    def _act(self, collection: Collection, item: Item, method: str, *, action: str) -> Answer:
        allowed = dict(self.layout.workflow)[str(item[collection.state_field])]
        if not allowed or action != allowed:
            state = item[collection.state_field]
            return 409, {"error": f"{action[:40]} is not possible in {state}", "actions": [allowed] if allowed else []}
        if method != "POST":
            return _not_allowed(method, "POST")
        return 200, {collection.state_field: self.advance(collection, item)}


def make_service(rng: np.random.Generator, *, needs_login: bool) -> Service:
    """Draw a service with three collections of six to eleven items."""
    things = pick_distinct(rng, _THINGS, count=3)
    collections: dict[str, Collection] = {}
    for thing in things:
        choice_field = pick(rng, tuple(_CHOICES))
        collections[thing] = Collection(
            name=thing,
            name_field=pick(rng, _NAME_FIELDS),
            number_field=pick(rng, _NUMBER_FIELDS),
            choice_field=choice_field,
            choices=_CHOICES[choice_field],
            state_field=pick(rng, _STATE_FIELDS),
        )
    key, token = (f"{int(number):08x}" for number in rng.integers(2**28, 2**32, size=2))
    layout = Layout(
        prefix=pick(rng, _PREFIXES),
        collections=collections,
        update_method=pick(rng, ("PATCH", "PUT")),
        login=pick(rng, _LOGINS) if needs_login else "",
        key=key,
        token=token,
        workflow=pick(rng, _WORKFLOWS),
    )
    service = Service(layout=layout)
    for collection in collections.values():
        count = int(rng.integers(6, 12))
        names = [f"{first} {second}" for first, second in zip(*_two_words(rng, count), strict=True)]
        for name in dict.fromkeys(names):
            service.make(collection, drawn_values(rng, collection, name=name))
    return service


def drawn_values(rng: np.random.Generator, collection: Collection, *, name: str) -> Item:
    """Draw what an item holds."""
    return {
        collection.name_field: name,
        collection.number_field: int(rng.integers(1, 1000)),
        collection.choice_field: pick(rng, collection.choices),
    }


def _two_words(rng: np.random.Generator, count: int) -> tuple[list[str], list[str]]:
    return pick_each(rng, _NAMES, count=count), pick_each(rng, _NAMES, count=count)


def _problem(collection: Collection, body: Mapping[str, object], *, required: tuple[str, ...]) -> Answer | None:
    """Return the refusal of a body, None where it is fine."""
    missing = [name for name in required if name not in body]
    unknown = [name[:40] for name in body if name not in collection.fields]
    if missing or unknown or not body:
        known = f"fields that can be set are {', '.join(collection.fields)}"
        return 422, {"error": known, "missing": missing, "unknown": unknown}
    for name, value in body.items():
        if name == collection.number_field and (not isinstance(value, int) or isinstance(value, bool)):
            return 422, {"error": f"{name} must be a whole number"}
        if name == collection.choice_field and value not in collection.choices:
            return 422, {"error": f"{name} must be one of {', '.join(collection.choices)}"}
        if name == collection.name_field and (not isinstance(value, str) or not 1 <= len(value) <= 100):
            return 422, {"error": f"{name} must be a text of 1 to 100 characters"}
    return None


def _not_allowed(method: str, *allowed: str) -> Answer:
    return 405, {"error": f"{method} is not allowed here", "allowed": list(allowed)}


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9
