"""Jobs on the service: what is asked, the requests that do it, and the data that they leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from agentenv.envs.api_explorer.service import PAGE_SIZE, Collection, Item, Service, drawn_values
from agentenv.envs.drawing import pick
from agentenv.envs.question import PlannedCall


@dataclass(frozen=True, kw_only=True)
class Job:
    """One thing to do.

    Attributes:
        text: what is asked.
        calls: requests of somebody who explores without detours.
        done: the service afterwards.
    """

    text: str
    calls: tuple[PlannedCall, ...]
    done: Service


@dataclass(kw_only=True)
class _Plan:
    """Requests so far, and the service as they leave it."""

    service: Service
    calls: list[PlannedCall] = field(default_factory=list)

    def request(self, method: str, path: str, *, body: Mapping[str, object] | None = None) -> None:
        token = self.service.layout.token if len(self.calls) > 1 and self.service.layout.login else ""
        arguments: dict[str, object] = {"method": method, "path": path}
        arguments |= {"body": dict(body)} if body is not None else {}
        arguments |= {"token": token} if token else {}
        self.calls.append(PlannedCall(name="request", arguments=arguments))


def make_job(rng: np.random.Generator, service: Service, *, difficulty: int) -> Job:
    """Draw a job.

    Args:
        rng: source of all chance.
        service: on which it is done; stays as it is.
        difficulty: 1: change a field; 2: make an item; 3: remove some items; 4: bring an item to its last state; 5:
            make an item and bring it to its last state.
    """
    plan = _Plan(service=service.copy())
    plan.request("GET", "/")
    layout = service.layout
    if layout.login:
        plan.request("POST", layout.prefix + layout.login, body={"key": layout.key})
    collection = layout.collections[pick(rng, tuple(layout.collections))]
    text = _JOBS[difficulty - 1](rng, plan, collection)
    return Job(text=text, calls=tuple(plan.calls), done=plan.service)


def _change(rng: np.random.Generator, plan: _Plan, collection: Collection) -> str:
    item = _found(rng, plan, collection)
    others = [choice for choice in collection.choices if choice != item[collection.choice_field]]
    value = pick(rng, others)
    path = _path(plan, collection, item)
    plan.request("GET", path)
    plan.request(plan.service.layout.update_method, path, body={collection.choice_field: value})
    name = item[collection.name_field]
    item[collection.choice_field] = value
    return f"Set the {collection.choice_field} of the item {name!r} in {collection.name} to {value!r}."


def _create(rng: np.random.Generator, plan: _Plan, collection: Collection) -> str:
    values = drawn_values(rng, collection, name=f"order {int(rng.integers(1000, 10_000))}")
    _post(plan, collection, values)
    return f"Make a new item in {collection.name}: {_told(values)}."


def _remove(rng: np.random.Generator, plan: _Plan, collection: Collection) -> str:
    value = pick(rng, [str(item[collection.choice_field]) for item in plan.service.items[collection.name].values()])
    _page_through(plan, collection, last=len(plan.service.items[collection.name]) - 1)
    for item in list(plan.service.items[collection.name].values()):
        plan.request("GET", _path(plan, collection, item))
        if item[collection.choice_field] == value:
            plan.request("DELETE", _path(plan, collection, item))
            del plan.service.items[collection.name][int(str(item["id"]))]
    return f"Remove every item in {collection.name} whose {collection.choice_field} is {value!r}."


def _finish(rng: np.random.Generator, plan: _Plan, collection: Collection) -> str:
    item = _found(rng, plan, collection)
    last = _advance_to_the_end(plan, collection, item)
    return (
        f"Bring the item {item[collection.name_field]!r} in {collection.name} to the {collection.state_field} {last!r}."
    )


def _create_and_finish(rng: np.random.Generator, plan: _Plan, collection: Collection) -> str:
    values = drawn_values(rng, collection, name=f"order {int(rng.integers(1000, 10_000))}")
    item = _post(plan, collection, values)
    last = _advance_to_the_end(plan, collection, item)
    told = _told(values)
    return f"Make a new item in {collection.name}: {told}. Then bring it to the {collection.state_field} {last!r}."


_JOBS = (_change, _create, _remove, _finish, _create_and_finish)


def _found(rng: np.random.Generator, plan: _Plan, collection: Collection) -> Item:
    """Draw an item and plan the pages until it is seen."""
    items = list(plan.service.items[collection.name].values())
    index = int(rng.integers(len(items)))
    _page_through(plan, collection, last=index)
    return items[index]


def _page_through(plan: _Plan, collection: Collection, *, last: int) -> None:
    path = plan.service.layout.path(collection.name)
    for page in range(1, last // PAGE_SIZE + 2):
        plan.request("GET", path if page == 1 else f"{path}?page={page}")


def _post(plan: _Plan, collection: Collection, values: Item) -> Item:
    path = plan.service.layout.path(collection.name)
    plan.request("POST", path, body={})
    plan.request("POST", path, body=values)
    return plan.service.make(collection, values)


def _advance_to_the_end(plan: _Plan, collection: Collection, item: Item) -> str:
    path = _path(plan, collection, item)
    for state, action in plan.service.layout.workflow:
        if action and state == item[collection.state_field]:
            plan.request("GET", path)
            plan.request("POST", f"{path}/{action}")
            plan.service.advance(collection, item)
    return str(item[collection.state_field])


def _path(plan: _Plan, collection: Collection, item: Item) -> str:
    return f"{plan.service.layout.path(collection.name)}/{item['id']}"


def _told(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in values.items())
