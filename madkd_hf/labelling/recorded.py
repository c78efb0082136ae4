"""Answers that were given elsewhere (a batch API, another lab, last year's run) become columns like any others."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Image
from scipy.special import logit

from ..aspects import AspectBank
from ..data.columns import ASPECT_COLUMNS, BANK, LOGITS, MASS, add_answers, aspect_features, null_answers, stored
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


def attach_recorded_answers(
    dataset: AnyDataset,
    answers: RecordedAnswers,
    *,
    key_column: str | None = None,
    splits: str | Iterable[str] | None = None,
    on_missing: Literal["raise", "null"] = "raise",
    on_unused: Literal["raise", "ignore"] = "raise",
) -> AnyDataset:
    """Store recorded answers as the columns that `attach_aspects` writes.

    `aspect_mass` is null in every row: what else the teacher might have said is not known.

    Args:
        dataset: rows, or a dict of splits.
        answers: from `read_answers_file`.
        key_column: the column whose values are the records' keys; for a column of images, the name of their files.
            By default, for answers with keys, the first column of images.
        splits: of a dict, those that were answered; all by default. The others carry nulls.
        on_missing: what to do about an image without a record: "raise", or leave its answers "null".
        on_unused: what to do about a record without an image: "raise", or "ignore".

    Returns:
        The same rows with the three columns added.

    Raises:
        ValueError: no such column or split, keys of rows that come twice, images without a record or records without
            an image, or another number of rows than of records where there are no keys.
    """
    parts = {str(dataset.split or "dataset"): dataset} if isinstance(dataset, Dataset) else dict(dataset)
    selected = list(parts) if splits is None else [splits] if isinstance(splits, str) else list(splits)
    if missing := [split for split in selected if split not in parts]:
        raise ValueError(f"There is no split {missing[0]!r}: the dataset has {list(parts)}.")
    for split, rows in parts.items():
        if present := [name for name in ASPECT_COLUMNS if name in rows.features]:
            raise ValueError(f"The split {split!r} is labelled already: drop {present} to attach other answers.")
    places = _places(parts, selected, answers, key_column, on_missing)
    if answers.keys is not None and on_unused == "raise":
        used = set().union(*(set(part) for part in places.values()))
        if unused := [i for i in range(len(answers.keys)) if i not in used]:
            raise ValueError(
                f"{len(unused)} of the {len(answers.keys)} records belong to no image, the first to "
                f"{_shown(answers.keys[unused[0]])}: check the keys, or pass on_unused='ignore'."
            )
    features = aspect_features(answers.bank)
    made = {}
    for split, rows in parts.items():
        if split in places:
            table = _columns(answers, places[split], features.arrow_schema)
        else:
            table = null_answers(features, len(rows))
        made[split] = add_answers(rows, Dataset(table))
    return made[next(iter(made))] if isinstance(dataset, Dataset) else DatasetDict(made)


def _shown(value: Any) -> str:
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
            f"{path} cannot be read as records ({_shown(reason)}): expected one record an image."
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
    return lambda number: f"Record {number} of {path}" + (f" ({_shown(keys[number])})" if keys else "")


def _first_of_each(keys: list[str] | None, logits: np.ndarray, path: Path) -> list[int]:
    """The numbers of the records without those that only repeat another one."""
    if keys is None:
        return list(range(len(logits)))
    first: dict[str, int] = {}
    for number, key in enumerate(keys):
        same = first.setdefault(key, number)
        if not np.array_equal(logits[same], logits[number]):
            raise ValueError(
                f"The records {same} and {number} of {path} answer differently about the same image {_shown(key)}: "
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
                answer = _shown(str(rows[number][q]))
                raise ValueError(
                    f"{name_of(number)} answers the question {_shown(bank.ids[q])} with {answer}: expected "
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


# From records to rows


def _places(
    parts: dict[str, Dataset],
    selected: list[str],
    answers: RecordedAnswers,
    key_column: str | None,
    on_missing: str,
) -> dict[str, list[int | None]]:
    """For each row of the selected splits, the number of its record."""
    if answers.keys is None:
        if len(selected) != 1:
            raise ValueError(
                f"Records in the order of the rows answer one split, and these are {selected}: name the split, or the "
                "field of the records and the column that name the image."
            )
        rows = parts[selected[0]]
        if len(rows) != len(answers.logits):
            raise ValueError(
                f"There are {len(answers.logits)} records for the {len(rows)} images of split {selected[0]!r}: "
                "expected one for each, in the same order; or name the field and the column that name the image."
            )
        return {selected[0]: list(range(len(rows)))}
    record_of = {key: number for number, key in enumerate(answers.keys)}
    of_file = _records_of_files(answers.keys)
    places: dict[str, list[int | None]] = {}
    seen: dict[str, str] = {}
    for split in selected:
        keys, are_files = _keys(parts[split], key_column)
        for number, key in enumerate(keys):
            if key in seen:
                raise ValueError(
                    f"The key {_shown(key)} stands in {seen[key]} and in row {number} of split {split!r}: expected "
                    "another one for each image; pass another key_column, or the splits that were answered."
                )
            seen[key] = f"row {number} of split {split!r}"
        places[split] = [(of_file if are_files else record_of).get(key) for key in keys]
        missing = [number for number, place in enumerate(places[split]) if place is None]
        if missing and on_missing == "raise":
            raise ValueError(
                f"{len(missing)} of the {len(keys)} images of split {split!r} have no record, the first is "
                f"{_shown(keys[missing[0]])}: check the keys, or pass on_missing='null' to leave their answers empty."
            )
    return places


def _records_of_files(keys: Sequence[str]) -> dict[str, int]:
    """File name -> record, whatever folders stand before it; without names that several records share."""
    names = [os.path.basename(key) for key in keys]
    counts = Counter(names)
    return {name: number for number, name in enumerate(names) if counts[name] == 1}


def _keys(rows: Dataset, column: str | None) -> tuple[list[str], bool]:
    """The key of each row, and whether keys are names of files."""
    name = column or next((name for name, feature in rows.features.items() if isinstance(feature, Image)), None)
    if name not in rows.features:
        raise ValueError(f"There is no column {name!r} with keys: the dataset has {rows.column_names}.")
    column_of_keys, are_files = stored(rows, name), isinstance(rows.features[name], Image)
    if are_files:  # the images themselves stay on the disk
        column_of_keys = pc.struct_field(column_of_keys, "path")
    values = column_of_keys.to_pylist()
    values = [value and os.path.basename(value) for value in values] if are_files else values
    if None in values:
        raise ValueError(
            f"Row {values.index(None)} has no key in the column {name!r}: pass as key_column one that names every "
            "image."
        )
    return list(map(str, values)), are_files


def _columns(answers: RecordedAnswers, places: list[int | None], schema: pa.Schema) -> pa.Table:
    logits = answers.logits.astype(np.float32)
    values = [None if place is None else logits[place] for place in places]
    return pa.table(
        {
            LOGITS: pa.array(values, schema.field(LOGITS).type),
            MASS: pa.nulls(len(values), schema.field(MASS).type),
            BANK: pa.array([None if place is None else answers.bank.fingerprint for place in places], pa.string()),
        },
        schema=schema,
    )
