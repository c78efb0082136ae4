"""What is known of a stream: its steps, their settings, and the files and datasets that it reads.

A stream has no fingerprint. It is known by what `datasets` says of it: which builder reads which files, and which
steps come after. What a function does (that of `from_generator`, `map` or `filter`) cannot be known; a name stands for
it, which whoever made the stream gives.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import types
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from datasets import Dataset, DatasetBuilder, IterableDataset


SEED_BITS = 64  # numpy draws 128 bits where no seed is given
INNER = ("ex_iterable", "ex_iterables")  # the steps before
UNRELATED = ("formatting", "bool_strategy_func", "generate_more_kwargs_fn", "token_per_repo_id")


def steps(stream: IterableDataset) -> list[Any]:
    """The chain that makes the stream (take, filter, shuffle, ...), the last step first."""
    return list(_chain(stream._ex_iterable))


def _chain(step: Any) -> Iterator[Any]:
    yield step
    for before in [*getattr(step, "ex_iterables", []), getattr(step, "ex_iterable", None)]:
        if before is not None:
            yield from _chain(before)


def digest(stream: IterableDataset, name: str | None = None) -> str:
    """The same for two streams that are made in the same way from the same files, in this process or in another.

    `name` stands for the functions that the stream is made by; without it, such a stream is refused.
    """
    info = stream.info
    content = [info.builder_name, info.dataset_name, str(stream.split), str(stream.features)]
    content.append(str(stream._distributed))
    for step in steps(stream):
        settings = {key: value for key, value in vars(step).items() if key[0] != "_" and key not in INNER + UNRELATED}
        content.append([type(step).__name__, _described(settings, name)])
    return hashlib.sha256(json.dumps(content).encode("utf-8", "surrogatepass")).hexdigest()


def _described(value: Any, name: str | None) -> Any:
    """What decides a setting of a step, as JSON can hold it."""
    if isinstance(value, str):
        return [str(value), *_file_state(value)]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, dict):
        return [[str(key), _described(item, name)] for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_described(item, name) for item in value]
    if isinstance(value, Dataset):
        return value._fingerprint
    if isinstance(value, np.random.Generator):
        _refuse_unseeded(value)
        return str(value.bit_generator.state)
    builder = getattr(value, "__self__", None)
    if isinstance(builder, DatasetBuilder) and builder.name != "generator":
        return [builder.name, builder.config_id, str(builder.hash)]
    if isinstance(value, functools.partial):
        return _described([value.func, value.args, value.keywords], name)
    if isinstance(value, types.FunctionType) and value.__module__.partition(".")[0] == "datasets":
        return value.__qualname__
    if callable(value):
        if name is None:
            raise ValueError(
                f"The stream is made by the function {getattr(value, '__qualname__', type(value).__name__)}, which "
                "another process cannot compare: pass stream_name, any name that you change whenever it changes."
            )
        return ["function", name]
    return [type(value).__name__, *(_described(item, name) for item in getattr(value, "args", ()))]  # a list of files


def _file_state(path: str) -> list[int]:
    """Size and time of change of the file that a string names, if it names one; in zip://a.png::b.zip, of b.zip."""
    with suppress(OSError, ValueError):
        if os.path.isfile(place := path.rpartition("::")[2]):
            facts = os.stat(place)
            return [facts.st_size, facts.st_mtime_ns]
    return []


def _refuse_unseeded(generator: np.random.Generator) -> None:
    entropy = getattr(getattr(generator.bit_generator, "seed_seq", None), "entropy", 0)
    if isinstance(entropy, int) and entropy.bit_length() > SEED_BITS:
        raise ValueError(
            "The stream is shuffled without a seed, so another process reads it in another order: "
            "pass shuffle(seed=...), and interleave_datasets(..., seed=...) likewise."
        )
