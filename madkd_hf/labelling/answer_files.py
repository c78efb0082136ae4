"""Files of answers that were given elsewhere (a batch API, another lab, last year's run), read and checked."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from scipy.special import logit

from ..aspects import AspectBank
from ..text import excerpt


Kind = Literal["probability", "log_odds", "words"]
WORDS = {"yes": 1.0, "no": 0.0}
WORD_STEP = 0.05  # a word says no more than: nearer to 1 than to 0.95, where its log-odds become 3.66
EPS = 2.0**-24  # of probabilities of exactly 0 and 1 in float32, where no coarser grid is seen
OF_MAPPING = ("image", "answers")  # what we call key and value where a file maps images to answers
FORMATS = (".jsonl", ".json", ".csv", ".parquet")
AnyDataset = TypeVar("AnyDataset", Dataset, DatasetDict)


@dataclass(frozen=True)
class RecordedAnswers:
    """The answers of n records.

    Attributes:
        logits: [n, Q] finite log-odds, in the bank's order.
        keys: what names the image of each record; None where the records stand in the order of the rows.
        bank: Q questions.
        provenance: whose answers they are, from which file, and how precise.
    """

    logits: np.ndarray
    keys: list[str] | None
    bank: AspectBank
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """What can be said of the answers themselves, in a sentence or two."""
        about = self.provenance["recorded"]
        if about.get("hard"):
            yes, no = 1 - about["clipped_to"], about["clipped_to"]
            return f"Words are hard answers: their probabilities of yes are taken for {yes:.3f} and {no:.3f}."
        said = f"The answers have {about['distinct_values']:,} different values"
        if "decimals" in about:
            said += f", probabilities of {about['decimals']} decimals"
        if "log_odds_step" in about:
            said += f", on a grid of {about['log_odds_step']:g} in log-odds"
        if "clipped" in about:
            said += (
                f"; {about['clipped']:,} probabilities of exactly 0 or 1 get log-odds of {about['clipped_to']:g} or "
            )
            said += f"{-about['clipped_to']:g}"
        return f"{said}."


def read_answers_file(
    path: str | os.PathLike,
    bank: AspectBank | None = None,
    *,
    kind: Kind = "probability",
    field: str | None = None,
    key: str | None = None,
    model: str | None = None,
) -> RecordedAnswers:
    """Read a file of answers, one record an image.

    Args:
        path: JSONL, JSON, CSV or Parquet. In JSON, a list of records, or a mapping from what names an image to its
            answers; in JSONL, a record a line, or a mapping of one image.
        bank: the questions; by default they are named by ids alone, as in `AspectBank.of_ids`.
        kind: what the answers are: "probability" of yes, "log_odds" of yes against no, or "words" (yes or no), which
            are hard: their log-odds are those of 0.975 and 0.025.
        field: the records' field with the list of Q answers, in the bank's order. By default each question has a field
            of its own, named by its id.
        key: the field that names the image. By default records are in the order of the rows.
        model: who answered; cards show it.

    Raises:
        ValueError: a file that cannot be read, a field that is not there, a record with another number of answers,
            answers that are not what `kind` says, or two records that answer differently about one image.
    """
    path = Path(path)
    columns = _read_columns(path)
    if [*columns] == [*OF_MAPPING]:
        key, field = OF_MAPPING
    if not any(columns.values()):
        raise ValueError(f"{path} has no records: expected one for each image.")
    for name in (field, key):
        if name is not None and name not in columns:
            raise ValueError(f"The records of {path} have no field {name!r}: expected one of {_some(columns)}.")
    keys = None if key is None else [str(value) for value in columns[key]]
    name_of = _namer(path, keys)
    if field is None:
        ids = bank.ids if bank is not None else [name for name in columns if name != key]
        if missing := [name for name in ids if name not in columns]:
            raise ValueError(
                f"The records of {path} have no field {missing[0]!r}, the id of a question: they have "
                f"{_some(columns)}; name the field with the list of answers, or pass the bank "
                "that was asked."
            )
        rows = list(zip(*(columns[name] for name in ids)))
    else:
        rows = [_as_list(value) for value in columns[field]]
        ids = bank.ids if bank is not None else [f"q{q:02d}" for q in range(1, 1 + len(rows[0] or ()))]
    bank = bank if bank is not None else AspectBank.of_ids(ids)
    for number, row in enumerate(rows):
        if row is None or len(row) != len(bank):
            raise ValueError(
                f"{name_of(number)} has {0 if row is None else len(row)} answers: expected {len(bank)}, one for each "
                "question of the bank."
            )
    logits, precision = _log_odds(rows, kind, bank, name_of)
    first = _first_of_each(keys, logits, path)
    keys, logits = keys and [keys[number] for number in first], logits[first]
    provenance = {"model": model or "not stated"} | {
        "recorded": {
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "records": len(logits),
            "kind": kind,
            **precision,
            "mass": "unknown",
        }
    }
    return RecordedAnswers(logits, keys, bank, provenance)


def shown(value: Any) -> str:
    return excerpt(repr(value), 80)


def _some(names: Iterable[str]) -> str:
    return excerpt(", ".join(names), 200)


def _read_columns(path: Path) -> dict[str, list[Any]]:
    """Each field of the records, None where a record lacks it."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path} is no file of answers: expected a name that ends in one of {', '.join(FORMATS)}.")
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(path).to_pydict()
        if path.suffix.lower() == ".csv":
            from pyarrow import csv

            return csv.read_csv(path).to_pydict()
        text = path.read_text(encoding="utf-8-sig")
        records = json.loads(text) if path.suffix.lower() == ".json" else list(map(json.loads, text.splitlines()))
        records = _of_mapping(records)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise ValueError("expected a list of records, {...}")
        names = list(dict.fromkeys(name for record in records for name in record))
        return {name: [record.get(name) for record in records] for name in names}
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}: expected the answers, one record an image.") from None
    except (ValueError, pa.ArrowException, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} cannot be read as records ({shown(reason)}): expected one record an image."
        ) from error


def _of_mapping(content: Any) -> Any:
    """Records of a mapping from images to answers, or of many mappings of one image each."""
    if isinstance(content, dict):
        content = [{name: value} for name, value in content.items()]
    if isinstance(content, list) and all(isinstance(record, dict) and len(record) == 1 for record in content):
        pairs = [next(iter(record.items())) for record in content]
        names = {name for name, _ in pairs}
        if all(isinstance(value, list) for _, value in pairs) and (len(names) > 1 or len(pairs) == 1):
            return [dict(zip(OF_MAPPING, pair)) for pair in pairs]
    return content


def _as_list(value: Any) -> Sequence[Any] | None:
    """The answers of a record; in CSV, a list is written as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return [value]
    return value if isinstance(value, list) else None if value is None else [value]


def _namer(path: Path, keys: list[str] | None) -> Any:
    return lambda number: f"Record {number} of {path}" + (f" ({shown(keys[number])})" if keys else "")


def _first_of_each(keys: list[str] | None, logits: np.ndarray, path: Path) -> list[int]:
    """The numbers of the records without those that only repeat another one."""
    if keys is None:
        return list(range(len(logits)))
    first: dict[str, int] = {}
    for number, key in enumerate(keys):
        same = first.setdefault(key, number)
        if not np.array_equal(logits[same], logits[number]):
            raise ValueError(
                f"The records {same} and {number} of {path} answer differently about the same image {shown(key)}: "
                "expected one record for each image."
            )
    return list(first.values())


# From answers to log-odds


def _log_odds(
    rows: list[Sequence[Any]], kind: Kind, bank: AspectBank, name_of: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """[n, Q] log-odds, and what provenance says of their precision."""
    if kind == "words":
        values = [[WORDS.get(str(answer).strip().strip(".").lower()) for answer in row] for row in rows]
        expected = "the word yes or no"
    else:
        values = [[answer if _is_number(answer) else None for answer in row] for row in rows]
        expected = "a probability from 0 to 1" if kind == "probability" else "a finite number"
    for number, row in enumerate(values):
        for q, value in enumerate(row):
            if value is None or kind == "probability" and not 0 <= value <= 1:
                remedy = "; are these log-odds?" if value is not None else ""
                answer = shown(str(rows[number][q]))
                raise ValueError(
                    f"{name_of(number)} answers the question {shown(bank.ids[q])} with {answer}: expected "
                    f"{expected}{remedy}."
                )
    numbers = np.array(values, dtype=np.float64)
    if kind == "words":
        step = WORD_STEP
        return logit(numbers.clip(step / 2, 1 - step / 2)), {"hard": True, "clipped_to": step / 2}
    if kind == "log_odds":
        if numbers.min() >= 0 and numbers.max() <= 1:
            raise ValueError("All answers lie from 0 to 1, and log-odds would not: are these probabilities?")
        return numbers, {"distinct_values": len(np.unique(numbers)), **_grid(numbers.ravel())}
    return _from_probabilities(numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _from_probabilities(values: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Log-odds of probabilities; those of exactly 0 and 1 are taken for half a step of the grid that is seen."""
    distinct = np.unique(values)
    about: dict[str, Any] = {"distinct_values": len(distinct)}
    inside = logit(distinct[(distinct > 0) & (distinct < 1)])
    errors = {d: np.abs(distinct * 10**d - np.round(distinct * 10**d)).max() for d in range(1, 7)}
    decimals = next((d for d, error in errors.items() if error < 1e-4), None)
    if decimals is not None:
        about["decimals"] = decimals
        low = 0.5 * 10.0**-decimals
        lowest = float(logit(low))
    elif grid := _grid(inside):
        about |= grid
        lowest = -float(np.abs(inside).max() + grid["log_odds_step"] / 2)
    else:
        lowest = float(logit(EPS))
    clipped = int(np.count_nonzero((values == 0) | (values == 1)))
    if clipped:
        about |= {"clipped": clipped, "clipped_to": round(lowest, 4)}
    with np.errstate(divide="ignore"):
        return logit(values).clip(lowest, -lowest) if clipped else logit(values), about


def _grid(log_odds: np.ndarray) -> dict[str, float]:
    """The step of the log-odds, where they lie on a grid, as those of logits in few bits do; from 1 down to 1/1024."""
    reliable = np.unique(log_odds[np.abs(log_odds) < 8])  # a float32 probability near 1 says its log-odds badly
    if len(reliable) < 8:
        return {}
    for step in (2.0**-k for k in range(11)):
        if np.abs(reliable / step - np.round(reliable / step)).max() < 0.02:
            return {"log_odds_step": step}
    return {}
