"""What a server counts, in Prometheus' text format 0.0.4."""

import bisect
from collections import Counter
from collections.abc import Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the buckets of latencies."""


class Histogram:
    """Latencies in buckets, by endpoint."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._sums: Counter[str] = Counter()

    def add(self, endpoint: str, seconds: float) -> None:
        counts = self._counts.setdefault(endpoint, [0] * (len(SECONDS) + 1))
        counts[bisect.bisect_left(SECONDS, seconds)] += 1
        self._sums[endpoint] += seconds  # type: ignore[assignment]

    def lines(self, name: str) -> Iterator[str]:
        for endpoint, counts in sorted(self._counts.items()):
            total = 0
            for bound, count in zip((*SECONDS, "+Inf"), counts, strict=True):
                total += count
                yield f'{name}_bucket{{endpoint="{endpoint}",le="{bound}"}} {total}'
            yield f'{name}_sum{{endpoint="{endpoint}"}} {self._sums[endpoint]:.6f}'
            yield f'{name}_count{{endpoint="{endpoint}"}} {total}'


class ServerMetrics:
    """Counts of one server. Used from the event loop's thread only."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        """(endpoint, status) -> requests."""
        self.latency, self.first_text = Histogram(), Histogram()
        self.prompt_tokens = self.new_tokens = 0

    def text(self, running: int, queued: int) -> str:
        """All metrics. running, queued: texts in batch slots, and waiting for one."""
        lines: list[str] = []

        def begin(name: str, kind: str, meaning: str) -> None:
            lines.extend([f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"])

        def single(name: str, kind: str, meaning: str, value: int) -> None:
            begin(name, kind, meaning)
            lines.append(f"{name} {value}")

        begin("paxlike_requests_total", "counter", "Answered requests.")
        for (endpoint, status), count in sorted(self.requests.items()):
            label = f'endpoint="{endpoint}",status="{status}"'
            lines.append(f"paxlike_requests_total{{{label}}} {count}")
        single("paxlike_prompt_tokens_total", "counter", "Tokens of prompts.", self.prompt_tokens)
        single("paxlike_generated_tokens_total", "counter", "Generated tokens.", self.new_tokens)
        single("paxlike_running_texts", "gauge", "Texts in batch slots.", running)
        single("paxlike_queued_texts", "gauge", "Texts that wait for a batch slot.", queued)
        for name, meaning, histogram in (
            ("paxlike_request_seconds", "Seconds until the end of the answer.", self.latency),
            ("paxlike_first_text_seconds", "Seconds until the first text.", self.first_text),
        ):
            begin(name, "histogram", meaning)
            lines.extend(histogram.lines(name))
        return "\n".join(lines) + "\n"
