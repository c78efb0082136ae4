"""Answers that are worth something."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value

from madkd_hf import Aspect, AspectBank


def bank(count: int) -> AspectBank:
    return AspectBank([Aspect(f"q{k}", f"Is it number {k}?", "group") for k in range(count)])


def labelled(n=40, q=3, label=None, none=(), skipped=(), mass=True, fixed=True, names=None):
    """Rows with a class and answers; `none` were not labelled, the images of `skipped` could not be read."""
    names, generator = names or bank(q), np.random.default_rng(0)
    classes = np.arange(n) % 4
    logits = generator.normal(size=(n, q)) + 6 * (classes[:, None] == np.arange(q)) - 3
    missing = {*none, *skipped}
    answers = [None if k in missing else row for k, row in enumerate(logits.tolist())]
    vector = List(Value("float32"), length=q if fixed else -1)
    features = {"aspect_logits": vector, "aspect_bank": Value("string")}
    columns = {"aspect_logits": answers}
    columns["aspect_bank"] = [None if k in none else names.fingerprint for k in range(n)]
    if mass:
        features["aspect_mass"], columns["aspect_mass"] = vector, [answer and [0.9] * q for answer in answers]
    if label is None:
        label = ClassLabel(names=list("abcd"))
    if label:
        texts = {"string": [f"class {c}" for c in classes]}
        features["label"], columns["label"] = label, texts.get(getattr(label, "dtype", ""), classes.tolist())
    return Dataset.from_dict(columns, features=Features(features))
