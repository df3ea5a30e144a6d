"""`make faults`: prove every fault that a run must survive, and print what came of it."""

import sys
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass(kw_only=True)
class Row:
    """What is known of the tests that share a fault and what must work after it."""

    fault: str
    then: str
    metric: str
    seconds: float = 0.0
    num_passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        if self.failed:
            return f"{len(self.failed)} FAILED"
        return f"{self.num_passed} ok" if self.num_passed else "skipped"


class Table:
    """Collects results while pytest runs."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str], Row] = {}
        self._of_test: dict[str, list[Row]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for mark in item.iter_markers("fault"):
                key = (mark.args[0], mark.kwargs["then"], mark.kwargs["metric"])
                row = self.rows.setdefault(key, Row(fault=key[0], then=key[1], metric=key[2]))
                self._of_test.setdefault(item.nodeid, []).append(row)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for row in self._of_test.get(report.nodeid, ()):
            row.seconds += report.duration
            if report.failed:
                row.failed.append(report.nodeid)
            elif report.skipped:
                row.skipped.append(report.nodeid)
            elif report.when == "call":
                row.num_passed += 1

    def lines(self) -> list[str]:
        """Return the table, sorted by fault."""
        head = ("fault", "tests", "seconds", "what works next", "counted by")
        body = [
            (row.fault, row.verdict, f"{row.seconds:.1f}", "?" if row.failed else row.then, row.metric)
            for row in sorted(self.rows.values(), key=lambda row: (row.fault, row.then))
        ]
        widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *body)]


def main(arguments: list[str]) -> int:
    """Run the proofs; returns pytest's exit code."""
    table = Table()
    options: list[Any] = ["-m", "fault or faults", "-o", "timeout=300", *arguments]
    code = pytest.main(options, plugins=[table])
    print()
    print("\n".join(table.lines()))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
