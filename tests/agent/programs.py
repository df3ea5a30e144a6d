"""Programs that play episodes, as their authors would write them: nothing in them knows of this package."""

import sys
from pathlib import Path

CALLS = """
import json, os, sys, time, urllib.request, urllib.error
def post(path, body, **headers):
    headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], **headers}
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)
def ask(messages, **options):
    return post("/chat/completions", {"model": "any", "messages": messages, **options})["choices"][0]["message"]
task = json.loads(os.environ["AGENTENV_TASK"]) if "AGENTENV_TASK" in os.environ else {}
"""

LOOP = """
messages = task["messages"]
while True:
    turn = ask(messages, tools=task["tools"])
    messages.append(turn)
    for call in turn.get("tool_calls") or []:
        function = call["function"]
        given = json.loads(function["arguments"])
        result = post("/tools/" + function["name"], given, **{"X-Call-Id": call["id"]})
        messages.append(result["message"])
        if result["is_over"]:
            sys.exit()
    if not turn.get("tool_calls"):
        break
"""


def command(tmp_path: Path, body: str, *, name: str = "program.py") -> list[str]:
    """Write a program and return how it is run."""
    path = tmp_path / name
    path.write_text(CALLS + body, encoding="utf-8")
    return [sys.executable, str(path)]
