"""Runs on a sandbox server: unpacks the episode's folder, runs one command in it, and packs the folder again.

The text of this file is sent to the server, so it needs the standard library only.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile

CALL = "agentenv-call.json"
FOLDER = "agentenv-work.tar"
ENDED = "agentenv-ended.json"


def run_command() -> None:
    """Run the command that the file of the call holds.

    A command that hangs is ended a moment before the server would end this program, so that its folder is kept.
    """
    with open(CALL, encoding="utf-8") as file:
        call = json.load(file)
    here = os.getcwd()
    work = tempfile.mkdtemp(prefix="work-", dir=here)
    with tarfile.open(FOLDER) as tar:
        tar.extractall(work, filter="data") if sys.version_info >= (3, 12) else tar.extractall(work)
    os.unlink(FOLDER)
    try:
        process = subprocess.Popen(call["command"], cwd=work, stdin=subprocess.PIPE, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"{call['command'][0]}: {error.strerror}\n")
        ended = {"ending": "exited", "code": 127}
    else:
        try:
            process.communicate(base64.b64decode(call["stdin"]), timeout=call["timeout_s"])
            ended = {"ending": "exited", "code": process.returncode}
        except subprocess.TimeoutExpired:
            ended = {"ending": "timeout", "code": 0}
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    with tarfile.open(os.path.join(here, FOLDER), "w") as tar:
        for name in sorted(os.listdir(work)):
            tar.add(os.path.join(work, name), arcname=name)
    with open(os.path.join(here, ENDED), "w", encoding="utf-8") as file:
        json.dump(ended, file)
