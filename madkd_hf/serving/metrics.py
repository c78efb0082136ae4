"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest


SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Of one application: two of them in a process count apart."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "madkd_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "madkd_request_seconds",
            "From the head of a request to its answer.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "madkd_batch_images", "Images that were read together.", buckets=SIZES, registry=registry
        )
        self.progress = Gauge("madkd_requests_in_progress", "Requests that have arrived.", registry=registry)
        self.held = Gauge("madkd_request_bytes", "Bytes of requests in memory.", registry=registry)
        ProcessCollector(registry=registry)

    def text(self) -> bytes:
        """The format that Prometheus reads."""
        return generate_latest(self.registry)
