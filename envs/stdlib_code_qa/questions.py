"""Questions about a few modules, answered from their syntax trees; None where the modules give no such question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from agentenv.envs.drawing import pick
from agentenv.envs.question import PlannedCall, Question
from agentenv.envs.stdlib_code_qa.sources import Class, Function, Module

_MAX_VIEWED_LINES = 400
_COUNTS = tuple(map(str, range(1, 31)))


def num_parameters(rng: np.random.Generator, modules: Sequence[Module]) -> Question | None:
    """Ask for the number of parameters of a function in a named file."""
    found = [(module, function) for module, function in _functions(modules) if function.num_parameters >= 2]
    if not found:
        return None
    module, function = pick(rng, found)
    text = (
        f"In {module.file}, how many parameters does the function {function.name} take? Count *args and **kwargs, "
        "where it has them, as one each."
    )
    calls = _read_function(module, function)
    return Question(text=text, answer=str(function.num_parameters), calls=calls, candidates=_COUNTS)


def default_in_file(rng: np.random.Generator, modules: Sequence[Module]) -> Question | None:
    """Ask for the default value of a parameter of a function in a named file."""
    return _default(rng, modules, names_file=True)


def default_anywhere(rng: np.random.Generator, modules: Sequence[Module]) -> Question | None:
    """Ask for the default value of a parameter of a function that must be found."""
    return _default(rng, modules, names_file=False)


def num_methods(rng: np.random.Generator, modules: Sequence[Module]) -> Question | None:
    """Ask how many methods a class defines that must be found."""
    found = [(module, item) for module, item in _classes(modules) if len(item.methods) >= 3]
    if not found:
        return None
    module, item = pick(rng, found)
    text = (
        f"One of the files defines the class {item.name} at its top level. How many different methods does the body of "
        "this class define with def? Do not count nested functions or inherited methods."
    )
    return Question(text=text, answer=str(len(item.methods)), calls=_read_class(module, item), candidates=_COUNTS)


def base_of_owner(rng: np.random.Generator, modules: Sequence[Module]) -> Question | None:
    """Ask for the first base class of the only class that defines a method."""
    classes = _classes(modules)
    owners = Counter(method for _, item in classes for method in item.methods)
    found = [
        (module, item, method)
        for module, item in classes
        for method in item.methods
        if item.base and owners[method] == 1 and not method.startswith("__")
    ]
    if not found:
        return None
    module, item, method = pick(rng, found)
    text = (
        f"Among all classes at the top level of the files, exactly one defines the method {method}. What is the name "
        "of the first base class of that class?"
    )
    search = PlannedCall(name="search_files", arguments={"text": f"def {method}("})
    candidates = tuple(
        sorted({other.name for _, other in classes} | {item.base, "Exception", "object", "dict", "list"})
    )
    return Question(text=text, answer=item.base, calls=(search, *_read_class(module, item)), candidates=candidates)


QUESTIONS: Sequence[Callable[[np.random.Generator, Sequence[Module]], Question | None]] = (
    num_parameters,
    default_in_file,
    default_anywhere,
    num_methods,
    base_of_owner,
)
"""By difficulty."""


def _default(rng: np.random.Generator, modules: Sequence[Module], *, names_file: bool) -> Question | None:
    found = [(module, item, name) for module, item in _functions(modules) for name in item.defaults]
    if not found:
        return None
    # None and its like are so common that they could be guessed
    telling = [item for item in found if item[1].defaults[item[2]] not in ("None", "True", "False")]
    module, function, name = pick(rng, telling or found)
    where = f"In {module.file}, what" if names_file else "One of the files defines the function at its top level: what"
    values = {value for _, item in _functions(modules) for value in item.defaults.values()}
    candidates = tuple(sorted(values | {"None", "True", "False", "0", "1", "-1", "10", "100", "''"}))
    return Question(
        text=f"{where} is the default value of the parameter {name} of the function {function.name}?",
        answer=function.defaults[name],
        calls=_read_function(module, function),
        candidates=candidates,
    )


def _functions(modules: Sequence[Module]) -> list[tuple[Module, Function]]:
    """Return the functions whose name is that of one function or class only."""
    once = _names(modules)
    return [(module, item) for module in modules for item in module.functions if once[item.name] == 1]


def _classes(modules: Sequence[Module]) -> list[tuple[Module, Class]]:
    once = _names(modules)
    return [(module, item) for module in modules for item in module.classes if once[item.name] == 1]


def _names(modules: Sequence[Module]) -> Counter[str]:
    return Counter(item.name for module in modules for item in (*module.functions, *module.classes))


def _read_function(module: Module, function: Function) -> tuple[PlannedCall, ...]:
    return _search_and_view(module, f"def {function.name}(", function.line, function.last_line)


def _read_class(module: Module, item: Class) -> tuple[PlannedCall, ...]:
    return _search_and_view(module, f"class {item.name}", item.line, item.last_line)


def _search_and_view(module: Module, wanted: str, line: int, last_line: int) -> tuple[PlannedCall, ...]:
    last = min(last_line, line + _MAX_VIEWED_LINES)
    return (
        PlannedCall(name="search_files", arguments={"text": wanted}),
        PlannedCall(name="view_file", arguments={"path": module.file, "first_line": line, "last_line": last}),
    )
