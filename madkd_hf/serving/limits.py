"""What a server takes, and how it says no."""

from __future__ import annotations

from dataclasses import dataclass


class RefusedError(Exception):
    """A request that is not answered: the status of HTTP, one sentence, and whether to come again later.

    Labelling reads some of these sentences: of an image, they speak of the image and never of questions, and the
    other way round, so that `teachers.served` knows what to leave out.
    """

    def __init__(self, status: int, sentence: str, retry_after: int | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.retry_after = status, sentence, retry_after


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        body: bytes of one request.
        held: bytes of all requests that are in memory at once.
        pixels: of one image; and of all that are decoded at once, with about 20 bytes for each of them.
        seconds: for a request to arrive, and for its answer.
        head_seconds: for the first lines of a request, or of the first one after a pause.
        queue: requests that may be in progress; others are told to come again.
        connections: at once; others are cut off.
        batch: images that the student reads together at most.
        wait: seconds that an image waits for others to be read with it.
    """

    body: int = 20_000_000
    held: int = 100_000_000
    pixels: int = 25_000_000
    seconds: float = 30.0
    head_seconds: float = 10.0
    queue: int = 256
    connections: int = 800
    batch: int = 32
    wait: float = 0.003
