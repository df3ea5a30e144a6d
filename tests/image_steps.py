"""Runs what a Dockerfile copies and runs as its user, in an empty folder instead of an image; needs no Docker engine.

Root's steps (packages of the distribution, users) are left out; what comes after `USER` runs as it stands, with the
values that `ARG` and `ENV` give it. Usage: python -m tests.image_steps docker/cpu.Dockerfile
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEP_TIMEOUT_S = 1200


def instructions(text: str) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions as (keyword, rest), with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = (line.strip().split(None, 1) for line in joined.splitlines() if line.strip())
    return [(words[0].upper(), words[1] if len(words) > 1 else "") for words in found]


def user_steps(text: str) -> list[tuple[str, str]]:
    """Return the instructions after the last `USER`, which must not be root."""
    steps = instructions(text)
    last = max(index for index, (keyword, _) in enumerate(steps) if keyword == "USER")
    if steps[last][1] in ("root", "0"):
        raise SystemExit("the last USER is root")
    return steps[last + 1 :]


def run(dockerfile: Path, *, app: Path) -> None:
    """Run the steps with `app` in the place of the image's /app."""
    env = dict(os.environ)
    for keyword, rest in user_steps(dockerfile.read_text()):
        if keyword in ("ARG", "ENV"):
            name, _, value = rest.partition("=")
            value = "".join(shlex.split(value.replace("/app", str(app))))
            given = os.environ.get(name) if keyword == "ARG" else None
            env[name] = given or value.replace("$PATH", env["PATH"])
        elif keyword == "COPY":
            _copy(app)
        elif keyword == "RUN":
            # a layer must not keep pip's cache; here it is shared with the checkout's own environment
            command = rest.replace("--no-cache-dir", "").replace("/app", str(app))
            print(f"+ {command}", flush=True)
            subprocess.run(
                ["bash", "-o", "pipefail", "-c", command], cwd=app, env=env, check=True, timeout=STEP_TIMEOUT_S
            )
        elif keyword == "WORKDIR":
            break
    _try(app, env=env)


def _copy(app: Path) -> None:
    """Copy what git has of the checkout, links as links, as `COPY . .` does under .dockerignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    names = [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).exists()]
    archive = subprocess.run(
        ["tar", "-c", "--null", "-T", "-"], cwd=ROOT, input="\0".join(names).encode(), capture_output=True, check=True
    )
    subprocess.run(["tar", "-x"], cwd=app, input=archive.stdout, check=True)


def _try(app: Path, *, env: dict[str, str]) -> None:
    """Look whether what was installed works, far from the checkout."""
    for command in (
        ["agentenv", "--version"],
        ["agentenv", "eval", "agentenv/GuessNumber-v0", "--policy", "oracle", "-n", "5"],
    ):
        print(f"+ {' '.join(command)}", flush=True)
        subprocess.run(
            [str(app / ".venv" / "bin" / command[0]), *command[1:]], cwd=app.parent, env=env, check=True, timeout=120
        )


if __name__ == "__main__":
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="agentenv-image-") as folder:
        image = Path(folder) / "app"
        image.mkdir()
        run(Path(sys.argv[1]), app=image)
    print(f"{sys.argv[1]}: its steps ran in {time.monotonic() - started:.0f} s")
