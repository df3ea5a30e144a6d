"""The `agentenv` command. Every command imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import atexit
import importlib
import json
import os
import sys
from typing import Annotated, Any, Literal, Optional

import typer

from agentenv import __version__
from agentenv.errors import AgentEnvError

app = typer.Typer(
    help="Train language-model agents in Gymnasium environments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
check_app = typer.Typer(
    help="Check that an environment, an engine or a sandbox keeps its promises.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
engines_app = typer.Typer(
    help="Environments of their own for large engines.", no_args_is_help=True, rich_markup_mode=None
)
prepare_app = typer.Typer(help="Turn data sets into task files.", no_args_is_help=True, rich_markup_mode=None)
new_app = typer.Typer(help="Begin something of your own.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(check_app, name="check")
app.add_typer(prepare_app, name="prepare")
app.add_typer(engines_app, name="engines")
app.add_typer(new_app, name="new")

Policy = Literal["human", "oracle", "demonstrate", "random", "engine"]
EngineName = Literal["vllm", "sglang"]
EnvId = Annotated[str, typer.Argument(help="Registered id, e.g. agentenv/GuessNumber-v0, or module:Class.")]
Overrides = Annotated[Optional[list[str]], typer.Argument(help="Dotted overrides: section.key=value.")]  # noqa: UP045
EnvOptions = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--env", help="Constructor argument of the environment, key=value; repeatable."),
]
ModelPath = Annotated[Optional[str], typer.Option(help="Model folder or Hub id, for --policy engine.")]  # noqa: UP045


def main() -> None:
    """Run the command; a user's mistake ends with one line and exit code 2."""
    code: int | str | None = 1
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        atexit.register(lambda: _leave(code))
    # `module:Class` may name a module of the folder in which the command runs
    sys.path.append(os.getcwd())
    try:
        app()
    except AgentEnvError as error:
        typer.echo(f"agentenv: {error}", err=True)
        code = 2
        sys.exit(2)
    except SystemExit as ended:
        code = ended.code
        raise


def _leave(code: int | str | None) -> None:
    """End a rank before the interpreter is taken down, as the last thing that runs at exit.

    torch keeps threads of its process groups after `destroy_process_group` (the caches of FSDP and DCP hold them). One
    that then asks for the interpreter's lock aborts the process, and torchrun calls a finished run failed.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"agentenv {__version__}")
        raise typer.Exit


@app.command()
def play(
    env_id: EnvId,
    policy: Annotated[Policy, typer.Option(help="Who plays.")] = "human",
    seed: Annotated[int, typer.Option(help="Seed of the environment.")] = 0,
    model: ModelPath = None,
    env: EnvOptions = None,
) -> None:
    """Play one episode in the terminal."""
    _call("agentenv.play:play_in_terminal", env_id, policy=policy, seed=seed, model=model, env_kwargs=_pairs(env))


@app.command("eval")
def evaluate(
    env_id: EnvId,
    policy: Annotated[Policy, typer.Option(help="Who plays.")] = "oracle",
    player: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--player",
            help="oracle, demonstrate, random, model:FOLDER, openai:URL#MODEL, vllm:URL#FOLDER or sglang:URL#FOLDER; "
            "repeat it to compare on the same seeds. Replaces --policy and --model.",
        ),
    ] = None,
    num_episodes: Annotated[int, typer.Option("-n", "--num-episodes", help="Episodes to play.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the evaluation.")] = 0,
    temperature: Annotated[float, typer.Option(help="Of models and endpoints; 0 is greedy.")] = 1.0,
    success_reward: Annotated[float, typer.Option(help="Return from which an episode counts as solved.")] = 1.0,
    model: ModelPath = None,
    agent: Annotated[str, typer.Option(help="How models of --player play: chat, react, or module:Class.")] = "chat",
    api_key_env: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Environment variable that holds the key of openai: players."),
    ] = None,
    max_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Tokens of one turn of openai: players."),
    ] = None,
    env: EnvOptions = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a policy, or compare players: success, reward, turns, tokens, format, and how episodes ended."""
    if player:
        _compare(
            env_id,
            players=player,
            options={
                "temperature": temperature,
                "agent": agent,
                "api_key_env": api_key_env,
                "max_tokens": max_tokens,
            },
            num_episodes=num_episodes,
            seed=seed,
            success_reward=success_reward,
            env_kwargs=_pairs(env),
            as_json=as_json,
        )
        return
    summary = _call(
        "agentenv.play:evaluate_policy",
        env_id,
        policy=policy,
        num_episodes=num_episodes,
        seed=seed,
        temperature=temperature,
        success_reward=success_reward,
        model=model,
        env_kwargs=_pairs(env),
    )
    if as_json:
        typer.echo(json.dumps(summary.as_dict()))
    else:
        _call("agentenv.play:show_summary", summary)


def _compare(env_id: str, *, options: dict[str, Any], as_json: bool, **arguments: Any) -> None:
    made = _call("agentenv.player:PlayerOptions", **options)
    result = _call("agentenv.play:compare_players", env_id, options=made, **arguments)
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
    else:
        _call("agentenv.play:show_comparison", result)


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="YAML file of the run.")],
    overrides: Overrides = None,
    name: Annotated[Optional[str], typer.Option(help="Name of the run's folder.")] = None,  # noqa: UP045
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
) -> None:
    """Train: demonstrations, warm start, reinforcement learning, evaluation, report."""
    _call("agentenv.trainers.command:train", config, _named(overrides, name), resume=resume, dry_run=dry_run)


@app.command()
def quickstart(
    overrides: Overrides = None,
    name: Annotated[Optional[str], typer.Option(help="Name of the run's folder.")] = None,  # noqa: UP045
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
) -> None:
    """Train a small tool-using agent from nothing, in about three minutes on a laptop."""
    _call("agentenv.trainers.command:quickstart", _named(overrides, name), resume=resume, dry_run=dry_run)


@app.command()
def replay(
    run: Annotated[str, typer.Argument(help="Run folder whose stored trajectories are trained on again.")],
    overrides: Overrides = None,
    name: Annotated[Optional[str], typer.Option(help="Name of the new run's folder.")] = None,  # noqa: UP045
) -> None:
    """Train again from stored trajectories, with the same or another algorithm."""
    _call("agentenv.trainers.command:replay", run, _named(overrides, name))


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Folder of a run.")],
    to: Annotated[str, typer.Option(help="Folder that is written; new, or empty.")],
    checkpoint: Annotated[Optional[str], typer.Option(help="Name of a checkpoint; the newest by default.")] = None,  # noqa: UP045
) -> None:
    """Write the model of a checkpoint as a Hugging Face folder, with an adapter merged."""
    _call("agentenv.trainers.command:export", run, to=to, checkpoint=checkpoint)


@app.command("list")
def list_envs(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """List the registered environments by family, with difficulty and the returns of oracle and random policy."""
    _call("agentenv.listing:show_catalogue", as_json=as_json)


@new_app.command("env")
def new_env(
    name: Annotated[str, typer.Argument(help="Name of the class, e.g. CountVowels.")],
    to: Annotated[str, typer.Option(help="Folder in which the new one is made.")] = ".",
) -> None:
    """Write a folder with a small environment that keeps every promise, to be changed into another."""
    typer.echo(_call("agentenv.new_env:told_new_env", name, to=to))


@app.command()
def doctor() -> None:
    """Say what is installed, what works, and what to do about the rest."""
    _call("agentenv.play:show_diagnosis")


@app.command("config")
def show_config(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a run file.")] = False,
    reference: Annotated[bool, typer.Option("--reference", help="Print all keys as a Markdown table.")] = False,
) -> None:
    """Describe the keys of a run file."""
    if schema:
        typer.echo(json.dumps(_call("agentenv.trainers.command:config_schema"), indent=2))
    elif reference:
        typer.echo(_call("agentenv.trainers.command:config_reference"))
    else:
        _call("agentenv.trainers.command:show_keys")


@check_app.command("env")
def check_env(
    env_id: EnvId,
    num_seeds: Annotated[int, typer.Option(help="Episodes per policy.")] = 20,
    env: EnvOptions = None,
) -> None:
    """Run Gymnasium's checks and ours on an environment."""
    if not _call("agentenv.play:show_env_check", env_id, num_seeds=num_seeds, env_kwargs=_pairs(env)):
        raise typer.Exit(1)


@check_app.command("engine")
def check_engine(
    name: Annotated[Literal["hf", "vllm", "sglang"], typer.Option(help="Which engine.")],
    model: Annotated[str, typer.Option(help="Model folder that it serves, or shall serve.")],
    url: Annotated[Optional[str], typer.Option(help="A server that already runs; else one is started.")] = None,  # noqa: UP045
    in_process: Annotated[bool, typer.Option("--in-process", help="Inside this process.")] = False,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the engine's weights.")] = "float32",
    max_length: Annotated[int, typer.Option(min=64, help="Tokens of prompt and output, at most.")] = 512,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="Do not send it new weights, nor check how it takes them.")
    ] = False,
) -> None:
    """Check an engine against transformers and the protocol; nobody else may use it meanwhile."""
    is_ok = _call(
        "agentenv.engine_command:show_engine_check",
        name=name,
        model=model,
        url=url,
        in_process=in_process,
        dtype=dtype,
        max_length=max_length,
        updates_weights=not keep_weights,
    )
    if not is_ok:
        raise typer.Exit(1)


@check_app.command("sandbox")
def check_sandbox(
    backend: Annotated[
        str, typer.Option(help="Name of a back end; the strongest that works here by default.")
    ] = "auto",
    only: Annotated[Optional[list[str]], typer.Option(help="Class of attacks; repeatable.")] = None,  # noqa: UP045
    url: Annotated[Optional[str], typer.Option(help="Of a back end that needs one.")] = None,  # noqa: UP045
    reduced: Annotated[bool, typer.Option("--reduced", help="A back end of isolation `reduced` will do.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of the documentation.")] = False,
) -> None:
    """Attack the sandbox that is in use here, and say what held."""
    is_ok = _call(
        "agentenv.tools.sandbox.attacks.command:show_sandbox_check",
        backend=backend,
        only=only or (),
        url=url,
        is_reduced=reduced,
        as_markdown=markdown,
    )
    if not is_ok:
        raise typer.Exit(1)


@app.command()
def serve(
    engine: Annotated[EngineName, typer.Option(help="Which engine.")],
    model: Annotated[str, typer.Option(help="Model folder or Hub id.")],
    overrides: Overrides = None,
    replicas: Annotated[int, typer.Option(min=1, help="Servers to start.")] = 1,
    host: Annotated[str, typer.Option(help="Address to listen on; one that others reach demands a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the first server; 0 takes free ones.")] = 0,
) -> None:
    """Start engine servers and serve until interrupted; overrides are keys of `engine`, e.g. max_length=2048.

    The environment variable AGENTENV_API_KEY holds the key that clients must send.
    """
    given = [f"name={engine}", f"replicas={replicas}", *(overrides or [])]
    raise typer.Exit(_call("agentenv.engine_command:serve_engine", given, model=model, host=host, port=port))


@app.command("serve-env")
def serve_env(
    env_id: EnvId,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that others reach demands a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    token: Annotated[
        str, typer.Option(envvar="AGENTENV_ENV_TOKEN", help="What clients must show; they read the same variable.")
    ] = "",
    max_sessions: Annotated[int, typer.Option(min=1, help="Environments that live at once.")] = 512,
    idle_timeout_s: Annotated[float, typer.Option(help="Seconds after which a silent session is closed.")] = 900.0,
    request_timeout_s: Annotated[float, typer.Option(help="Seconds that one request may take.")] = 120.0,
    env: EnvOptions = None,
) -> None:
    """Serve an environment over HTTP; its URL is then an environment id for make, eval and train."""
    _call(
        "agentenv.env_server:serve_in_terminal",
        env_id,
        echo=typer.echo,
        host=host,
        port=port,
        token=token,
        max_sessions=max_sessions,
        idle_timeout_s=idle_timeout_s,
        request_timeout_s=request_timeout_s,
        env_kwargs=_pairs(env),
    )


@app.command("serve-sandbox")
def serve_sandbox(
    backend: Annotated[
        str, typer.Option(help="Name of a back end; the strongest that works here by default.")
    ] = "auto",
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that others reach demands a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")] = 8080,
    token: Annotated[
        str, typer.Option(envvar="AGENTENV_SANDBOX_TOKEN", help="What clients must send.", show_default=False)
    ] = "",
) -> None:
    """Run code for other machines in sandboxes of this one, by SandboxFusion's protocol."""
    _call("agentenv.tools.sandbox.server:serve", backend=backend, host=host, port=port, token=token, report=typer.echo)


@engines_app.command("install")
def install_engine(
    name: Annotated[EngineName, typer.Argument(help="Which engine.")],
    to: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Folder; by default one in the user's cache, which is found again."),
    ] = None,
    device: Annotated[Optional[Literal["cpu", "cuda"]], typer.Option(help="Detected by default.")] = None,  # noqa: UP045
    pip_arg: Annotated[Optional[list[str]], typer.Option(help="Argument of every `pip install`; repeatable.")] = None,  # noqa: UP045
) -> None:
    """Make an environment with an engine at pinned versions."""
    venv = _call(
        "agentenv.engine.install:install_engine",
        name,
        to=to,
        device=device,
        pip_args=pip_arg or [],
        report=typer.echo,
    )
    if to is not None:
        typer.echo(f"in a run file:  engine: {{name: {name}, python: {venv.python}}}")


@engines_app.command("list")
def list_engines() -> None:
    """List the environments that were made."""
    for venv in _call("agentenv.engine.engine_venv:installed_venvs"):
        note = "" if venv.is_current else "  (outdated: install it again)"
        typer.echo(f"{venv.name} {venv.version} {venv.device}  {venv.folder}{note}")


@prepare_app.command("gsm8k")
def prepare_gsm8k(
    source: Annotated[str, typer.Option(help="Folder with train.jsonl and test.jsonl, or a Hub id.")],
    out: Annotated[Optional[str], typer.Option(help="Where the parquet files go; the user's cache by default.")] = None,  # noqa: UP045
) -> None:
    """Write GSM8K as task files that agentenv/GSM8K-v0 finds."""
    for path in _call("agentenv.envs.gsm8k.prepare:prepare", source, out=out):
        typer.echo(f"wrote {path}")


def _call(target: str, *args: Any, **kwargs: Any) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)(*args, **kwargs)


def _pairs(items: list[str] | None) -> dict[str, object]:
    """Read `key=value` options; values are YAML scalars."""
    import yaml

    out: dict[str, object] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"--env {item!r}: write key=value")
        out[key] = yaml.safe_load(value)
    return out


def _named(overrides: list[str] | None, name: str | None) -> list[str]:
    return [*(overrides or []), *([f"name={json.dumps(name)}"] if name else [])]
