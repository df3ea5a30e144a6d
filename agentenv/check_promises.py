"""What an environment promises, one function per promise: it returns what it measured, or raises `CheckFailed`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.utils.env_checker import data_equivalence

from agentenv.check_leaks import leaves_nothing
from agentenv.check_policies import Episode, PolicyName, garbage_actions, play, play_on
from agentenv.check_readme import readme_describes
from agentenv.check_replay import same_among_many, same_in_other_processes
from agentenv.check_subject import EASIEST, Skipped, Subject
from agentenv.env import AgentEnv, ToolEnv
from agentenv.errors import CheckFailed, EpisodeError, UsageError, describe
from agentenv.trajectory import StopReason

_RESERVED_INFO = frozenset({"episode", "final_obs", "final_info"})
_MIN_SECRET_CHARS = 3
_ON_PURPOSE = "raised on purpose by check_env"
_SCHEMA_SEEDS = 20


def _gymnasium(subject: Subject) -> str:
    if subject.spec is None:
        env: Any = subject.make()
    else:
        env = gymnasium.make(subject.spec, disable_env_checker=True).unwrapped
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gymnasium_check_env(env, skip_render_check=subject.spec is None)
    ours = [str(w.message) for w in caught if not issubclass(w.category, (ResourceWarning, DeprecationWarning))]
    if ours:
        raise CheckFailed("; ".join(ours))
    return "" if subject.spec else "render modes were left out, because the class is not registered"


def _oracle_solves(subject: Subject) -> str:
    needed = subject.env_class.oracle_threshold
    means = _means(subject, "oracle")
    for split, mean in means.items():
        if mean < needed:
            raise CheckFailed(f"mean return of the oracle{split} is {mean:.3g}; {needed:g} is promised")
    return f"mean return {_listed(means)}, at least {needed:g}"


def _random_fails(subject: Subject) -> str:
    allowed = subject.env_class.random_threshold
    means = _means(subject, "random")
    for split, mean in means.items():
        if mean > allowed:
            raise CheckFailed(f"mean return of the random policy{split} is {mean:.3g}; at most {allowed:g} is promised")
    return f"mean return {_listed(means)}, at most {allowed:g}"


def _means(subject: Subject, policy: PolicyName) -> dict[str, float]:
    """Return mean returns by split, under the words that name it in a sentence."""
    means = {"": subject.played(policy).mean_return}
    if subject.splits and "split" not in subject.env_kwargs:
        means[" on the test split"] = subject.played(policy, split="test").mean_return
    return means


def _listed(means: Mapping[str, float]) -> str:
    return ", ".join(f"{mean:.3g}{split}" for split, mean in means.items())


def _cheating_earns_nothing(subject: Subject) -> str:
    played = subject.played("cheat")
    paid = {seed: sum(step.reward for step in episode) for seed, episode in enumerate(played.episodes)}
    wrong = {seed: value for seed, value in paid.items() if value != 0.0}
    if wrong:
        seed, value = next(iter(wrong.items()))
        raise CheckFailed(f"{len(wrong)} of {len(paid)} cheating episodes are paid; seed {seed} earns {value:.3g}")
    return f"{len(paid)} seeds"


def _same_seed_same_episode(subject: Subject) -> str:
    if not subject.is_deterministic:
        raise Skipped("registered as nondeterministic")
    for policy in subject.policies:
        used = subject.episodes(policy)
        for seed in range(min(len(used), 5)):
            fresh, other = subject.make(), subject.make()
            first, second = play(fresh, policy, seed=seed), play(other, policy, seed=seed)
            _require_same(first, second, f"two fresh environments, {policy} policy, seed {seed}")
            _require_same(first, used[seed], f"a fresh and a used environment, {policy} policy, seed {seed}")
            # an unseeded reset continues the seed's own sequence
            first, second = play(fresh, policy, seed=None), play(other, policy, seed=None)
            _require_same(first, second, f"an unseeded reset after seed {seed}, {policy} policy")
            fresh.close()
            other.close()
    return f"policies: {', '.join(subject.policies)}"


def _require_same(first: Episode, second: Episode, where: str) -> None:
    if len(first) != len(second):
        raise CheckFailed(f"{where}: episodes of {len(first) - 1} and {len(second) - 1} steps")
    for index, (one, two) in enumerate(zip(first, second, strict=True)):
        if not data_equivalence(one, two, exact=True):
            names = ("observation", "reward", "terminated", "truncated", "info")
            parts = [n for n, a, b in zip(names, one, two, strict=True) if not data_equivalence(a, b, exact=True)]
            raise CheckFailed(f"{where}: {' and '.join(parts)} differ at {'reset' if index == 0 else f'step {index}'}")


def _survives_garbage(subject: Subject) -> str:
    env = subject.make()
    actions = garbage_actions(env)
    for index, action in enumerate(actions):
        env.reset(seed=index)
        try:
            is_over = env.step(action)[2:4] != (False, False)
            if not is_over:
                play_on(env, "garbage", seed=index)
        except Exception as error:  # anything that is raised here breaks the promise
            raise CheckFailed(f"action {str(action)[:60]!r} raised {describe(error)}") from error
    env.close()
    return f"{len(actions)} actions, each followed by a garbage episode"


def _rewards_are_finite_floats(subject: Subject) -> str:
    count = 0
    for policy in subject.policies:
        for step in (step for episode in subject.episodes(policy) for step in episode[1:]):
            value, components = step.reward, step.info["reward_components"]
            if type(value) is not float or not abs(value) < float("inf"):
                raise CheckFailed(
                    f"{policy} policy: reward {value!r} ({type(value).__name__}); a finite float is needed"
                )
            if abs(value - sum(components.values())) > 1e-9:
                raise CheckFailed(f"{policy} policy: reward {value!r} is not the sum of {components}")
            count += 1
    return f"{count} steps"


def _info_has_one_shape(subject: Subject) -> str:
    shapes: dict[str, str] = {}
    space = subject.make().observation_space
    for policy in subject.policies:
        for step in (step for episode in subject.episodes(policy) for step in episode):
            taken = [key for key in step.info if key in _RESERVED_INFO or key.startswith("_")]
            if taken:
                raise CheckFailed(f"info has the keys {taken}, which Gymnasium reserves")
            shapes.setdefault(_shape(step.info), policy)
            if len(shapes) > 1:
                raise CheckFailed(f"info changes its shape: {' / '.join(shapes)}")
            if not space.contains(step.observation):
                raise CheckFailed(f"an observation is not within {space}: {str(step.observation)[:80]!r}")
    return next(iter(shapes))


def _shape(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shape(item)}" for key, item in value.items()) + "}"
    return type(value).__name__


def _says_when_it_is_over(subject: Subject) -> str:
    env = subject.make()
    _require_usage_error(lambda: env.step("1"), "step before the first reset")
    play(env, "random", seed=0)
    _require_usage_error(lambda: env.step("1"), "step after the end")
    _require_usage_error(lambda: env.truncate(), "truncate after the end")
    env.close()
    _require_usage_error(lambda: env.step("1"), "step after close")
    _require_usage_error(lambda: env.reset(seed=0), "reset after close")
    return ""


def _require_usage_error(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except UsageError:
        return
    raise CheckFailed(f"{what} raised no UsageError")


def _teardown_runs_once(subject: Subject) -> str:
    for path, (run, expected) in _ENDINGS.items():
        env = subject.make()
        counted = _count_teardowns(env)
        run(env)
        env.close()
        env.close()
        if counted != ["teardown"] * expected:
            raise CheckFailed(f"{path}: teardown ran {len(counted)} times; expected {expected}")
    return ", ".join(_ENDINGS)


def _count_teardowns(env: AgentEnv) -> list[str]:
    calls: list[str] = []
    teardown = env.teardown

    def counting() -> object:
        calls.append("teardown")
        return teardown()

    env.teardown = counting  # type: ignore[method-assign,assignment]
    return calls


def _end_in_failing_setup(env: AgentEnv) -> None:
    setup = env.setup

    async def failing_later(opening: Awaitable[object]) -> None:
        await opening
        raise RuntimeError(_ON_PURPOSE)

    def failing(*args: Any) -> Any:
        opening = setup(*args)
        if isinstance(opening, Awaitable):
            return failing_later(opening)
        raise RuntimeError(_ON_PURPOSE)

    env.setup = failing  # type: ignore[method-assign]
    _expect_episode_error(lambda: env.reset(seed=0))


def _end_in_failing_step(env: AgentEnv) -> None:
    def failing(text: str) -> Any:
        raise RuntimeError(_ON_PURPOSE)

    env.reset(seed=0)
    env.respond = failing  # type: ignore[method-assign]
    if isinstance(env, ToolEnv):
        env.answer = failing  # type: ignore[method-assign]
    _expect_episode_error(lambda: env.step("text"))


def _expect_episode_error(call: Callable[[], object]) -> None:
    try:
        call()
    except EpisodeError:
        return
    raise CheckFailed("an exception in a hook did not become an EpisodeError")


def _end_by_truncation(env: AgentEnv) -> None:
    env.reset(seed=0)
    env.truncate(StopReason.MAX_TOKENS)


def _end_by_reset(env: AgentEnv) -> None:
    env.reset(seed=0)
    env.reset(seed=1)


_ENDINGS: Mapping[str, tuple[Callable[[AgentEnv], object], int]] = {
    "never reset": (lambda env: None, 0),
    "played to the end": (lambda env: play(env, "random", seed=0), 1),
    "left in the middle": (lambda env: env.reset(seed=0), 1),
    "truncated": (_end_by_truncation, 1),
    "reset twice": (_end_by_reset, 2),
    "setup raised": (_end_in_failing_setup, 1),
    "step raised": (_end_in_failing_step, 1),
}


def _splits_differ(subject: Subject) -> str:
    if not subject.splits:
        raise Skipped("an instance has one split; pass an id or the class")
    if "split" in subject.env_kwargs:
        raise Skipped("the split is one of the given options")
    found = [_compare_splits(subject, is_easiest=False)]
    if subject.has_difficulty and subject.env_class.split_by == "content":
        found.append(f"{_compare_splits(subject, is_easiest=True)} at difficulty {EASIEST}")
    return "; ".join(found)


def _compare_splits(subject: Subject, *, is_easiest: bool) -> str:
    policy: PolicyName = "oracle" if subject.has_oracle else "random"
    train, test = (subject.played(policy, split=split, is_easiest=is_easiest) for split in ("train", "test"))
    num_seeds = len(train.episodes)
    if data_equivalence(train.episodes, test.episodes, exact=True):
        raise CheckFailed(f"{num_seeds} seeds give the same episodes in train and test")
    if subject.env_class.split_by == "seed":
        return "in seeds alone, as the class says"
    shared = sorted(set(train.fingerprints) & set(test.fingerprints))
    if shared:
        raise CheckFailed(
            f"train and test share {len(shared)} tasks among {num_seeds} seeds, such as {shared[0][:200]!r}; draw "
            'tasks with agentenv.splits.draw_for, or say split_by = "seed" where too few exist'
        )
    kinds = (len(set(played.fingerprints)) for played in (train, test))
    return "{} tasks in train and {} in test, none in both".format(*kinds)


def _spec_survives_json(subject: Subject) -> str:
    if subject.spec is None:
        raise Skipped("not registered")
    read = EnvSpec.from_json(subject.spec.to_json())
    if read.kwargs != subject.spec.kwargs:
        raise CheckFailed(f"constructor arguments {subject.spec.kwargs} became {read.kwargs}")
    first, second = gymnasium.make(subject.spec), gymnasium.make(read)
    if subject.is_deterministic and not data_equivalence(first.reset(seed=0), second.reset(seed=0), exact=True):
        raise CheckFailed("the environment made from the spec's JSON opens differently")
    first.close()
    second.close()
    return ""


def _schema_hides_the_truth(subject: Subject) -> str:
    """A schema that is the same for all seeds can hold no secret of one; in others the truth is looked for."""
    schemas: list[str] = []
    secrets: list[set[str]] = []
    env = subject.make()
    for seed in range(min(subject.num_seeds, _SCHEMA_SEEDS)):
        env.reset(seed=seed)
        schemas.append(json.dumps(_without_choices(env.tool_specs), default=str, ensure_ascii=False))
        if subject.has_oracle:
            play_on(env, "oracle", seed=seed)
        secrets.append(_secrets(env))
    env.close()
    for seed, (schema, hidden) in enumerate(zip(schemas, secrets, strict=True)):
        leaked = [text for text in hidden if text in schema and not all(text in other for other in schemas)]
        if leaked:
            raise CheckFailed(f"seed {seed}: the tool schema holds {leaked[0]!r}, which solves the episode")
    return "same for all seeds" if len(set(schemas)) == 1 else "differ by seed, without the truth"


def _secrets(env: AgentEnv) -> set[str]:
    """Return the ground truth and what the last turn said to a tool."""
    turns = [message for message in env.conversation if message.role == "assistant"]
    values = [str(value) for turn in turns[-1:] for call in turn.tool_calls for value in call.arguments.values()]
    return {text.strip() for text in (env.task.answer, *values) if len(text.strip()) >= _MIN_SECRET_CHARS}


def _without_choices(schema: object) -> object:
    """Leave enumerations out: a list of choices holds the right one, as it must."""
    if isinstance(schema, Mapping):
        return {key: _without_choices(value) for key, value in schema.items() if key != "enum"}
    if isinstance(schema, (list, tuple)):
        return [_without_choices(item) for item in schema]
    return schema


def _leaves_nothing(subject: Subject) -> str:
    return leaves_nothing(subject, {name: run for name, (run, _) in _ENDINGS.items()})


PROMISES: Mapping[str, Callable[[Subject], str]] = {
    "passes Gymnasium's own check without a warning": _gymnasium,
    "the oracle solves it": _oracle_solves,
    "the random policy does not": _random_fails,
    "cheating earns nothing": _cheating_earns_nothing,
    "same seed, same episode": _same_seed_same_episode,
    "same seed, same episode in other processes": same_in_other_processes,
    "same seed, same episode among 64 at once": same_among_many,
    "garbage actions never raise": _survives_garbage,
    "rewards are finite floats": _rewards_are_finite_floats,
    "info has one shape": _info_has_one_shape,
    "a step outside an episode is a clear error": _says_when_it_is_over,
    "teardown runs once on every path": _teardown_runs_once,
    "closing leaves nothing behind": _leaves_nothing,
    "train and test share no task": _splits_differ,
    "the spec survives JSON": _spec_survives_json,
    "tool schemas hide the ground truth": _schema_hides_the_truth,
    "its README describes it": readme_describes,
}
"""Every promise by the sentence that states it."""
