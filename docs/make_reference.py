"""Writes `docs/config.md` from the configuration's own types, or checks that it is up to date.

python docs/make_reference.py            # write
python docs/make_reference.py --check    # exit 1 with a message if the page is stale
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without an installation

from agentenv.config import count_keys, reference_markdown
from agentenv.trainers.config import RunConfig

PAGE = Path(__file__).parent / "config.md"


def page_text() -> str:
    """Return the page as the configuration's types describe it."""
    return "\n".join(
        [
            "# Configuration",
            "",
            "<!-- Written by docs/make_reference.py. Change the docstrings of the configuration, not this page. -->",
            "",
            f"All {count_keys(RunConfig)} keys of a run file. A run file is YAML; every key may be overridden on the "
            "command line as `section.key=value`. An unknown key is an error that names the nearest known one.",
            "",
            "```bash",
            "agentenv train examples/runs/quickstart.yaml trainer.num_steps=20 --dry-run  # resolved, as YAML",
            "agentenv config --schema  # as JSON schema, for editors",
            "```",
            "",
            reference_markdown(RunConfig),
        ]
    )


def main(arguments: list[str], *, page: Path = PAGE) -> int:
    """Write or check the page; returns the exit code."""
    text = page_text()
    if arguments == ["--check"]:
        if page.is_file() and page.read_text(encoding="utf-8") == text:
            return 0
        print(f"{page} does not describe the configuration; run `python docs/make_reference.py`", file=sys.stderr)
        return 1
    if arguments:
        print(f"unknown arguments {' '.join(arguments)}; allowed is --check", file=sys.stderr)
        return 2
    page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
