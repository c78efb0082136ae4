"""What detectors take and give."""

from types import SimpleNamespace

import torch
from builders.detectors import (
    CLASSES,
    N,
    Q,
)


def labels(level: str = "object", counts: tuple[int, ...] = (3, 0)) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        {
            "class_labels": torch.randint(len(CLASSES), (n,), generator=draw),
            "boxes": 0.3 + 0.2 * torch.rand(n, 4, generator=draw),
            "aspect_logits": 3 * torch.randn(*([n] if level == "object" else []), Q, generator=draw),
        }
        for n in counts
    ]


def same(first, second) -> bool:
    return torch.equal(first.logits, second.logits) and torch.equal(first.pred_boxes, second.pred_boxes)


def outputs(level: str) -> SimpleNamespace:
    """Two images; in the first, query 1 got object 2, 4 got 0 and 5 got 1; in the second, 0 got 0."""
    draw = torch.Generator().manual_seed(1)
    scores = torch.randn(*((2, N, Q) if level == "object" else (2, Q)), generator=draw).requires_grad_()
    pairs = [([1, 4, 5], [2, 0, 1]), ([0], [0])]
    return SimpleNamespace(
        aspect_logits=scores, matches=[tuple(torch.tensor(part) for part in pair) for pair in pairs]
    )
