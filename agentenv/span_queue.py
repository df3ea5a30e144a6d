"""Hands finished spans to an exporter in the background: bounded, counted, and never in the way of an episode."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from agentenv.errors import describe
from agentenv.redaction import without_secrets

_log = logging.getLogger(__name__)

_EXPORTER_LOGGER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_SHOWN_CHARS = 300
_TROUBLED_S = 2.0


class SpanQueue(SpanProcessor):
    """A queue of finished spans and the one thread that exports them.

    The SDK's own batch processor logs every dropped span, counts none, and may keep a program for 30 s at its end.

    Args:
        exporter: shut down by `close`.
        where: of the back end, for warnings.
        max_spans: spans that wait at most; further ones are dropped.
        batch_size: spans of one export.
        interval_s: seconds after which an incomplete batch is exported.

    Attributes:
        num_exported: spans that the back end took.
        num_dropped: spans that found the queue full, or were left when it was closed.
        num_failed: spans whose export failed.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        *,
        where: str,
        max_spans: int = 8192,
        batch_size: int = 256,
        interval_s: float = 1.0,
    ) -> None:
        self.num_exported = 0
        self.num_dropped = 0
        self.num_failed = 0
        self._exporter = exporter
        self._where = where
        self._max_spans = max_spans
        self._batch_size = batch_size
        self._interval_s = interval_s
        self._waiting: deque[ReadableSpan] = deque()
        self._num_sending = 0
        self._wake = threading.Event()
        self._is_closing = False
        self._has_warned = False
        self._last_words = _LastWords()
        self._thread = threading.Thread(target=self._run, daemon=True, name="agentenv-spans")
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        """Take a finished span, or count it as dropped."""
        if len(self._waiting) >= self._max_spans or self._is_closing:
            self.num_dropped += 1
            return
        self._waiting.append(span)
        if len(self._waiting) >= self._batch_size:
            self._wake.set()

    def close(self, *, deadline_s: float) -> None:
        """Export what waits, for `deadline_s` seconds at most, then give up; idempotent.

        Once the exporter complains of the back end, two seconds are enough.
        """
        if self._is_closing:
            return
        self._is_closing = True
        self._wake.set()
        self._wait_for_exports(deadline_s)
        if self._thread.is_alive():
            # most exporters leave their retries when they are shut down; a foreign one may hang in that too
            threading.Thread(target=self._exporter.shutdown, daemon=True, name="agentenv-spans-shutdown").start()
            self._thread.join(0.5)
        left = len(self._waiting) + self._num_sending
        self._waiting.clear()
        self.num_dropped += left
        self._last_words.detach()
        lost = self.num_dropped + self.num_failed
        if lost:
            total = lost + self.num_exported
            _log.warning(
                "%d of %d spans did not reach %s: %d failed, %d dropped",
                *(lost, total, self._where, self.num_failed, self.num_dropped),
            )

    def _wait_for_exports(self, deadline_s: float) -> None:
        started = time.monotonic()
        while self._thread.is_alive():
            allowed_s = min(deadline_s, _TROUBLED_S) if self._last_words.text else deadline_s
            left_s = started + allowed_s - time.monotonic()
            if left_s <= 0:
                return
            self._thread.join(min(left_s, 0.1))

    def shutdown(self) -> None:
        """What the SDK calls; see `close`."""
        self.close(deadline_s=5.0)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Wait until nothing waits; False when the time ran out."""
        ends = time.monotonic() + timeout_millis / 1000
        while self._waiting or self._num_sending:
            if time.monotonic() > ends or not self._thread.is_alive():
                return False
            self._wake.set()
            time.sleep(0.005)
        return True

    def _run(self) -> None:
        while not self._is_closing:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            self._drain()
        self._drain()
        try:
            self._exporter.shutdown()
        except Exception as error:
            self._warn(describe(error))

    def _drain(self) -> None:
        while self._waiting:
            self._num_sending = min(self._batch_size, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(self._num_sending)]
            self._send(batch)
            self._num_sending = 0

    def _send(self, batch: Sequence[ReadableSpan]) -> None:
        self._last_words.text = ""
        try:
            is_taken = self._exporter.export(batch) is SpanExportResult.SUCCESS
            reason = self._last_words.text or "the exporter gave no reason"
        except Exception as error:
            is_taken, reason = False, describe(error)
        if is_taken:
            self.num_exported += len(batch)
        else:
            self.num_failed += len(batch)
            self._warn(reason)

    def _warn(self, reason: str) -> None:
        """Say once why spans are lost; a back end that is down would fill the log otherwise."""
        if not self._has_warned:
            self._has_warned = True
            shown = str(without_secrets(reason[:_SHOWN_CHARS])).rstrip(".")
            _log.warning("spans cannot be delivered to %s: %s. The run goes on without them", self._where, shown)


class _LastWords(logging.Handler):
    """Keeps the exporter's last complaint instead of letting it into the log once per batch."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.text = ""
        self._logger = logging.getLogger(_EXPORTER_LOGGER)
        self._propagated = self._logger.propagate
        self._logger.propagate = False
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()

    def detach(self) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagated
