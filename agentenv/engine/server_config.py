"""The configuration of the large engines, vLLM and SGLang, and the command that starts one of their servers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field, JsonValue, SecretStr, model_validator

from agentenv.config import Config

ServerName = Literal["vllm", "sglang"]
API_KEY_VARIABLE = "AGENTENV_API_KEY"
WeightSync = Literal["auto", "shm", "tensor", "disk", "gloo", "nccl", "ipc"]


class ServerConfig(Config):
    """vLLM or SGLang: in this process, in processes of their own, or servers that already run."""

    startup_timeout_s: ClassVar[float] = 900.0
    """Seconds until a started engine must serve: large models load for minutes; one that dies is seen at once."""

    name: ServerName
    """Which engine."""
    url: str | tuple[str, ...] = ()
    """Servers that already run, e.g. http://10.0.0.5:8000; empty starts our own."""
    router: str | None = None
    """An sglang-router that runs before the servers of url: it chooses who samples, all else still goes to each."""
    place: Literal["process", "in_process"] = "process"
    """Where an engine of our own runs: a server process that we own, or inside this process (it must be importable)."""
    python: str | None = None
    """Interpreter that has the engine; None takes this one if it has it, else what `agentenv engines install` made."""
    replicas: int = Field(default=1, ge=1)
    """Servers that we start."""
    max_length: int = Field(default=4096, ge=2)
    """Tokens of prompt and output together, at most."""
    max_slots: int = Field(default=128, ge=1)
    """Requests that one replica runs at once; further ones wait."""
    cache_tokens: int = Field(default=65536, ge=1)
    """Tokens that the key-value cache of one replica holds."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and cache; auto keeps the model's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; auto is the GPU where there is one."""
    weight_sync: WeightSync = "auto"
    """How new weights travel: shm (shared memory, same host), tensor, disk, gloo, nccl, ipc; auto takes what fits."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Further arguments of the engine itself, by their own names, e.g. {enforce_eager: true}."""

    @model_validator(mode="after")
    def _one_place(self) -> ServerConfig:
        if self.url and self.place == "in_process":
            raise ValueError("url names servers elsewhere, place in_process none; give one of them")
        if self.router is not None and (self.name != "sglang" or not self.url):
            raise ValueError("router needs name sglang, and the servers behind it in url")
        return self

    @property
    def api_key(self) -> SecretStr | None:
        """What servers ask for, as a bearer token: the environment variable AGENTENV_API_KEY, never a run file."""
        key = os.environ.get(API_KEY_VARIABLE, "")
        return SecretStr(key) if key else None

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers that already run."""
        return (self.url,) if isinstance(self.url, str) else self.url


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCommand:
    """How to start a server.

    Attributes:
        argv: program and arguments.
        env: variables beside the inherited ones.
        alive_path: answers 200 once requests are served, e.g. `"/health"`.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    alive_path: str = "/health"
