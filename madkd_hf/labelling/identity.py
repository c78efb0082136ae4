"""What makes two streams the same: their files, their steps, and the functions in these.

A stream has no fingerprint. Its digest has to be the same in another process, and another one where a file, a setting
or the code of a function changed. (`datasets.fingerprint.Hasher` alone will not do for functions: it takes the
imported ones by their name, and a constant such as `{"cat", "dog"}` in the order that this process gave it.)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import stat
import types
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher
from datasets.utils.track import TrackedIterableFromGenerator


UNRELATED = {  # settings of a step that do not decide which rows come, or that other settings say as well
    "bool_strategy_func",
    "decoding_pool",
    "ex_iterable",
    "ex_iterables",
    "formatting",
    "generate_more_kwargs_fn",
    "max_num_running_async_map_functions_in_parallel",
    "token_per_repo_id",
}
UNRELATED_TO_CONFIG = {"data_dir", "data_files", "decode_num_threads", "description", "features", "gen_kwargs"}
SEED_BITS = 64  # numpy draws 128 bits where no seed is given


def steps(stream: IterableDataset) -> list[Any]:
    """The chain that makes the stream (take, filter, shuffle, ...), the last step first."""
    return list(_links(stream._ex_iterable))


def _links(link: Any) -> Iterator[Any]:
    yield link
    for before in [*getattr(link, "ex_iterables", []), getattr(link, "ex_iterable", None)]:
        if before is not None:
            yield from _links(before)


def digest_of_steps(stream: IterableDataset) -> str:
    """The same for two streams that are made in the same way from the same files.

    Raises:
        ValueError: the order was drawn without a seed, so that there is no such stream.
    """
    content, seen = [str(stream._distributed)], set()
    for link in steps(stream):
        settings = {name: value for name, value in vars(link).items() if name[0] != "_" and name not in UNRELATED}
        if isinstance(settings.get("generator"), np.random.Generator):
            _refuse_unseeded(settings["generator"])
        content += [type(link).__name__, _digest(settings, seen)]
    return _join(content)


def _refuse_unseeded(generator: np.random.Generator) -> None:
    entropy = getattr(getattr(generator.bit_generator, "seed_seq", None), "entropy", 0)
    if isinstance(entropy, int) and entropy.bit_length() > SEED_BITS:
        raise ValueError(
            "The stream is shuffled without a seed, so another process reads it in another order: "
            "pass shuffle(seed=...), and interleave_datasets(..., seed=...) likewise."
        )


def _digest(value: Any, seen: set[int]) -> str:
    """`seen` holds the functions that are being digested: they may call each other."""
    if isinstance(value, str):
        return _join(["str", str(value), _file(value)])
    if value is None or isinstance(value, (int, float, complex, bytes)):
        return _join([repr(value)])
    if isinstance(value, dict):
        return _join(["dict", *(_digest(part, seen) for item in value.items() for part in item)])
    if isinstance(value, (list, tuple)):
        return _join(["list", *(_digest(item, seen) for item in value)])
    if isinstance(value, (set, frozenset)):
        return _join(["set", *sorted(_digest(item, seen) for item in value)])
    if isinstance(value, Dataset):
        return value._fingerprint
    if isinstance(value, np.random.Generator):
        return _digest(value.bit_generator.state, seen)
    if isinstance(value, TrackedIterableFromGenerator):
        return _digest([part for part in value.args if not isinstance(part, datasets.DownloadConfig)], seen)
    if isinstance(value, functools.partial):
        return _digest([value.func, value.args, value.keywords], seen)
    if isinstance(value, types.MethodType):
        if isinstance(value.__self__, datasets.DatasetBuilder):  # a library's code, which it patches for streaming
            return _join([_builder(value.__self__, seen), value.__func__.__qualname__])
        return _join([_digest(value.__self__, seen), _digest(value.__func__, seen)])
    if isinstance(value, types.FunctionType):
        return _function(value, seen)
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
        return _join([getattr(value, "__module__", None) or "", getattr(value, "__qualname__", value.__name__)])
    try:
        return Hasher.hash(value)
    except Exception:  # what cannot be pickled has no content to compare
        return type(value).__qualname__


def _join(parts: list[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(content) + content)
    return digest.hexdigest()


def _file(path: str) -> str:
    """Size and time of change of the file that a string names, if it names one; in zip://a.png::b.zip, of b.zip."""
    with suppress(OSError, ValueError):
        found = os.stat(path.rpartition("::")[2])
        if stat.S_ISREG(found.st_mode):
            return f"{found.st_size} {found.st_mtime_ns}"
    return ""


def _builder(builder: datasets.DatasetBuilder, seen: set[int]) -> str:
    """How it reads its files, and what is known of the versions of those on the web."""
    config = builder.config
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    content = {name: value for name, value in fields.items() if name not in UNRELATED_TO_CONFIG}
    files = [list(zip(each, getattr(each, "origin_metadata", []))) for each in (config.data_files or {}).values()]
    remote = [[str(path), *map(str, version)] for each in files for path, version in each if "://" in path]
    return _digest([type(builder).__name__.rstrip("0123456789"), content, remote], seen)


def _function(function: types.FunctionType, seen: set[int]) -> str:
    """Its code and what it uses: defaults, closure, and globals; functions of other modules by their name."""
    name = f"{function.__module__}.{function.__qualname__}"
    if id(function) in seen:
        return name
    seen.add(id(function))
    cells = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not filled yet
            cells.append(cell.cell_contents)
    used = {each: function.__globals__[each] for each in _names(function.__code__) if each in function.__globals__}
    content = [_code(function.__code__), _digest([function.__defaults__, function.__kwdefaults__, cells], seen)]
    for each, value in used.items():
        elsewhere = isinstance(value, types.FunctionType) and value.__module__ != function.__module__
        content += [each, f"{value.__module__}.{value.__qualname__}" if elsewhere else _digest(value, seen)]
    seen.discard(id(function))
    return _join(content)


def _names(code: types.CodeType) -> list[str]:
    inner = [name for each in code.co_consts if isinstance(each, types.CodeType) for name in _names(each)]
    return sorted({*code.co_names, *inner})


def _code(code: types.CodeType) -> str:
    constants = [_code(each) if isinstance(each, types.CodeType) else _digest(each, set()) for each in code.co_consts]
    return _join([code.co_code.hex(), *code.co_names, *code.co_varnames, *constants])
