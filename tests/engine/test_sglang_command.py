"""The command that starts an SGLang server, and what an interpreter without SGLang says."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from agentenv.engine.server_config import ServerConfig
from agentenv.engine.sglang import SGLangEngine
from agentenv.engine.sglang_command import CPU_MODULES, sglang_command
from agentenv.errors import UsageError


def command_of(tmp_path, *, model=None, **options):
    (tmp_path / "config.json").write_text(
        json.dumps({"dtype": "float32", "max_position_embeddings": 4096} | (model or {}))
    )
    config = ServerConfig(**{"name": "sglang", "device": "cpu", **options})
    return sglang_command(config, model=tmp_path, port=31007, python="/venv/bin/python")


def value_of(command, flag):
    return command.argv[command.argv.index(flag) + 1]


def test_a_server_listens_on_loopback_within_bounded_memory(tmp_path):
    command = command_of(tmp_path, max_length=1000, max_slots=7, cache_tokens=9000)
    assert command.argv[:3] == ("/venv/bin/python", "-m", "sglang.launch_server")
    values = {
        "--model-path": str(tmp_path),
        "--host": "127.0.0.1",
        "--port": "31007",
        "--max-total-tokens": "9000",
        "--max-running-requests": "7",
        "--context-length": "1006",
        "--weight-version": "0",
    }
    assert {flag: value_of(command, flag) for flag in values} == values
    assert "--skip-tokenizer-init" in command.argv
    assert command.alive_path == "/ping"


def test_a_cpu_gets_its_back_ends_and_its_two_modules_and_a_gpu_neither(tmp_path):
    cpu, gpu = command_of(tmp_path), command_of(tmp_path, device="cuda")
    assert value_of(cpu, "--attention-backend") == "torch_native"
    assert cpu.env["SGLANG_USE_CPU_ENGINE"] == "1"
    assert cpu.env["PYTHONPATH"].split(os.pathsep)[0] == str(CPU_MODULES)
    assert "--attention-backend" not in gpu.argv
    assert gpu.env == {}


def test_a_float32_model_stays_one_and_others_choose_for_themselves(tmp_path):
    assert value_of(command_of(tmp_path), "--dtype") == "float32"
    assert value_of(command_of(tmp_path, model={"dtype": "bfloat16"}), "--dtype") == "auto"
    assert value_of(command_of(tmp_path, dtype="float16"), "--dtype") == "float16"


def test_a_context_never_exceeds_the_positions_of_the_model(tmp_path):
    assert value_of(command_of(tmp_path, max_length=4094), "--context-length") == "4096"


def test_a_model_that_reads_images_keeps_its_tokenizer(tmp_path):
    assert "--skip-tokenizer-init" not in command_of(tmp_path, model={"vision_config": {}}).argv


def test_options_become_flags_and_win(tmp_path):
    options = {"tp_size": 2, "enable_metrics": True, "disable_radix_cache": False, "max_total_tokens": 77}
    argv = command_of(tmp_path, options={**options, "lora_target_modules": ["a", "b"]}).argv
    assert argv[argv.index("--tp-size") + 1] == "2"
    assert argv[argv.index("--max-total-tokens") + 1] == "77"
    assert "--enable-metrics" in argv
    assert "--disable-radix-cache" not in argv
    assert argv[argv.index("--lora-target-modules") + 1 :][:2] == ("a", "b")
    with pytest.raises(UsageError, match=r"port, which agentenv sets itself"):
        command_of(tmp_path, options={"port": 1})


async def test_an_interpreter_without_sglang_is_told_how_to_get_it(tmp_path):
    with pytest.raises(UsageError, match="agentenv engines install sglang"):
        await SGLangEngine.open(tmp_path, config=ServerConfig(name="sglang", place="in_process"))


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sgl_kernel; sgl_kernel.silu_and_mul(1)", "SGLang called its kernel silu_and_mul"),
        ("import torchvision", "No module named 'torchvision'"),
    ],
)
def test_the_cpu_modules_say_what_is_missing(program, said):
    env = {**os.environ, "PYTHONPATH": str(CPU_MODULES)}
    ran = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert said in ran.stderr


@pytest.mark.parametrize("name", ["sgl_kernel", "torchvision"])
def test_the_cpu_modules_give_way_to_real_ones(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("silu_and_mul = 'the real one'\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(CPU_MODULES), str(tmp_path)))}
    program = f"import {name}; print({name}.silu_and_mul)"
    ran = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "the real one", ran.stderr
