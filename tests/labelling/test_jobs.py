"""A job: what it goes on with, what is another one, and several at once."""

import json
import multiprocessing
import re
import threading
import time
from contextlib import ExitStack
from datetime import datetime
from functools import partial

import datasets
import pytest
from builders import tiny
from builders.labelled_rows import BANK, assert_answers, expected, of_pictures, rows, splits
from builders.labelling import Asleep, Counting, shards, teacher
from datasets import (
    Dataset,
)
from tokenizers import normalizers

from madkd_hf import AspectBank, AspectTeacher, attach_aspects, files
from madkd_hf.files import LOCK_FILE, read_record, remove_stale
from madkd_hf.labelling import Workers
from madkd_hf.labelling.job import Job
from madkd_hf.labelling.labellers import AspectLabeller
from madkd_hf.labelling.shards import WorkDir
from madkd_hf.labelling.sources import sources_of


# What the model reads


def dated(day: int, monkeypatch: pytest.MonkeyPatch, who: type = AspectTeacher, **settings) -> AspectTeacher:
    """A teacher whose chat template writes something else on each day, on that day."""

    class Today(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, day, tzinfo=tz)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Today)
    processor = tiny.processor()
    words = "{{ ['red', 'blue', 'big'][strftime_now('%d') | int % 3] }} "
    processor.chat_template = words + processor.chat_template
    return who(tiny.internvl(), processor, **settings)


class Killed(Counting):
    """Is stopped after the first call."""

    def read(self, images, bank):
        if self.count:
            raise KeyboardInterrupt
        return super().read(images, bank)


@pytest.mark.parametrize("where", [None, "work"])
def test_a_job_killed_before_midnight_is_found_and_goes_on_after_it(cache, monkeypatch, where):
    monkeypatch.setattr("madkd_hf.labelling.job.READ_BATCH", 1)
    folder = where and cache / where
    with pytest.raises(KeyboardInterrupt):
        attach_aspects(rows(4), BANK, dated(1, monkeypatch, Killed, batch_size=3), work_dir=folder, shard_size=1)
    counting = dated(2, monkeypatch, Counting, batch_size=3)
    labelled = attach_aspects(rows(4), BANK, counting, work_dir=folder, shard_size=1)
    assert counting.count == 3
    assert_answers(labelled, expected(rows(4), dated(3, monkeypatch)))


def test_a_large_dataset_has_larger_shards_and_a_job_that_goes_on_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("madkd_hf.labelling.attach.SHARD_SIZE", 2)
    monkeypatch.setattr("madkd_hf.labelling.attach.MOST_SHARDS", 3)
    for count, work, made in (4, "small", 2), (8, "large", 3):
        attach_aspects(rows(count), BANK, teacher(), work_dir=tmp_path / work)
        assert len(shards(tmp_path / work)) == made
    next((tmp_path / "large").rglob("train-*")).unlink()
    monkeypatch.setattr("madkd_hf.labelling.attach.MOST_SHARDS", 100)
    attach_aspects(rows(8), BANK, teacher(), work_dir=tmp_path / "large")
    assert len(shards(tmp_path / "large")) == 3


def test_other_prompts_are_another_job(cache, monkeypatch):
    attach_aspects(rows(), BANK, dated(1, monkeypatch), work_dir=cache / "work")
    with pytest.raises(ValueError, match=r"its prompts are others \('blue user : .*here 'big user.*another --date"):
        attach_aspects(rows(), BANK, dated(1, monkeypatch, Asleep, date="2026-01-02"), work_dir=cache / "work")
    attach_aspects(rows(), BANK, dated(1, monkeypatch))
    counting = dated(1, monkeypatch, Counting, date="2026-01-02")
    labelled = attach_aspects(rows(), BANK, counting)
    assert counting.count == 5
    assert_answers(labelled, expected(rows(), counting))


def test_a_tokenizer_changed_in_the_same_folder_is_another_job(tmp_path):
    attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)
    for change in ("normalizer", "word"):
        processor = tiny.processor()
        if change == "normalizer":
            processor.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("red", "blue")
        else:
            processor.tokenizer.add_tokens(["blue ?"])
        with pytest.raises(ValueError, match="its teacher tokenizer is .*pass another work_dir"):
            attach_aspects(rows(), BANK, Asleep(tiny.internvl(), processor), work_dir=tmp_path)


# What is refused


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1}, 'its teacher weights is ".*", here ".*"; pass another work_dir'),
        ({"prompt": "{question} yes or no ?"}, "its teacher prompt is .*here .*yes or no"),
        ({"bank": AspectBank(reversed(list(BANK)))}, "its bank fingerprint is"),
        ({"source": rows(seed=2)}, "its rows of split 'train' fingerprint is"),
        ({"source": rows(4)}, r"its split 'train' has 5 rows, here 4 \(another --limit\?\)"),
        ({"image_column": "photo", "source": rows().rename_column("image", "photo")}, 'image_column is "image", here'),
    ],
    ids=["weights", "prompt", "bank", "images", "rows", "column"],
)
def test_another_job_in_the_same_work_dir_is_refused(tmp_path, other, message):
    settings = dict(other)
    bank, source, seed = settings.pop("bank", BANK), settings.pop("source", rows()), settings.pop("seed", 0)
    column = settings.pop("image_column", "image")
    attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)
    asleep = Asleep(tiny.internvl(seed), tiny.processor(), **settings)
    with pytest.raises(ValueError, match=f"{tmp_path} holds another labelling job: .*{message}"):
        attach_aspects(source, bank, asleep, column, work_dir=tmp_path)
    attach_aspects(rows(), BANK, Asleep(tiny.internvl(), tiny.processor()), work_dir=tmp_path)


def test_another_split_of_the_same_job_joins_it(tmp_path):
    attach_aspects(splits(), BANK, teacher(), splits="train", work_dir=tmp_path)
    counting = Counting(tiny.internvl(), tiny.processor(), "full")
    labelled = attach_aspects(splits(), BANK, counting, work_dir=tmp_path)
    assert counting.count == 3
    assert_answers(labelled["train"], expected(splits()["train"]))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"format_version": 2}', "\x00\x00", None])
def test_a_manifest_that_is_none_is_told_in_one_sentence(tmp_path, content):
    attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(
        ValueError, match=r"(no manifest of a labelling job|holds shards/\S+ and no) .*pass another work_dir"
    ):
        attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)


def test_a_manifest_of_a_later_version_is_refused(tmp_path):
    attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "format_version": 3, "checksum": "another kind"}))
    with pytest.raises(ValueError, match="has format 3, this version of madkd_hf reads 2"):
        attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)


def test_workers_that_read_other_rows_stop(tmp_path):
    job = Job([AspectLabeller(BANK, teacher())], "image", "raise", 2, False, Workers())
    (told,) = sources_of(rows(), None, "image")
    (other,) = sources_of(rows(seed=1), None, "image")
    manifest = {"splits": {"train": told.state}, "teacher": teacher().identity, "prompts": teacher().prompts(BANK)}
    job._compare(manifest, [told])
    with pytest.raises(
        ValueError,
        match="Worker 0 does not label what the main process labels: its rows of split 'train' .*shuffle a seed",
    ):
        job._compare(manifest, [other])
    job = Job([AspectLabeller(BANK, teacher(system="it is red ."))], "image", "raise", 2, False, Workers(1, 2))
    with pytest.raises(ValueError, match="Worker 1 .*: its teacher system is .*the same files"):
        job._compare(manifest, [told])
    manifest["prompts"] = {"tokens": "other", "example": "user : <image>C'est rouge ?"}
    job = Job([AspectLabeller(BANK, teacher())], "image", "raise", 2, False, Workers(1, 2))
    with pytest.raises(ValueError, match="Worker 1 .*its prompts are others .*packages and locale"):
        job._compare(manifest, [told])


def test_shards_that_are_not_done_are_gone_before_the_workers_look(tmp_path):
    attach_aspects(of_pictures(), BANK, teacher(), on_error="skip", work_dir=tmp_path, shard_size=2)
    (tmp_path / "shards" / "train-00000.arrow").write_bytes(b"")
    (source,) = sources_of(of_pictures(), None, "image")
    job = Job([AspectLabeller(BANK, teacher())], "image", "raise", 2, False, Workers())
    with ExitStack() as locks:
        _, done = job._begin(tmp_path, [source], locks)
    there = {path.name for path in (tmp_path / "shards").iterdir()}
    assert there == {f"train-{index:05d}.arrow" for index in done["train"]} and sorted(done["train"]) == [3, 4]


class Waiting(Counting):
    """Waits until another worker has read so many images, where there are as many."""

    def read(self, images, bank):
        while self.other.count < self.patience:
            time.sleep(0.01)
        return super().read(images, bank)


@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_whoever_is_free_takes_the_next_shard(tmp_path, stream):
    quick = Counting(tiny.internvl(), tiny.processor(), "full")
    slow = Waiting(tiny.internvl(), tiny.processor(), "full")
    slow.other, slow.patience = quick, 8  # of ten images, in five shards
    data = rows(10).to_iterable_dataset() if stream else rows(10)

    def fill(index: int, work: WorkDir, done: dict[int, int]) -> None:
        job = Job([AspectLabeller(BANK, [slow, quick][index])], "image", "raise", 2, stream, Workers(index, 2))
        (source,) = sources_of(data, None, "image")
        job._fill(work, source, done)
        assert sorted(done) == [0, 1, 2, 3, 4]

    main = Job([AspectLabeller(BANK, slow)], "image", "raise", 2, stream, Workers())
    (source,) = sources_of(data, None, "image")
    with ExitStack() as locks:
        manifest, done = main._begin(tmp_path, [source], locks)
        works = [WorkDir(tmp_path, manifest, stream) for _ in range(2)]
        first = threading.Thread(target=fill, args=(0, works[0], dict(done["train"])))
        first.start()
        while not list(tmp_path.glob("*/.train-00000.claimed")):
            time.sleep(0.01)
        fill(1, works[1], dict(done["train"]))
        first.join()
        asked = slow.count, quick.count
    fill(1, works[1], {})  # a worker that comes late finds nothing to do, and the claims are gone
    assert asked == (slow.count, quick.count) == (2, 8)
    assert works[0].claim("train", 5) and not works[1].claim("train", 5)


@pytest.mark.parametrize("stream", [False, True], ids=["rows", "stream"])
def test_swapped_and_foreign_shards_are_made_again(tmp_path, stream):
    source = lambda: rows(6).to_iterable_dataset() if stream else rows(6)  # noqa: E731
    kinds = {"shard_size": 2, "teacher": teacher()}
    values = [row["aspect_logits"] for row in attach_aspects(source(), BANK, work_dir=tmp_path / "a", **kinds)]
    attach_aspects(source(), tiny.bank(2), work_dir=tmp_path / "b", **kinds)
    first, second, third = sorted(path for path in tmp_path.glob("a/*/train-*"))
    first.rename(tmp_path / "swap")
    second.rename(first)
    (tmp_path / "swap").rename(second)
    third.write_bytes((tmp_path / "b" / third.relative_to(tmp_path / "a")).read_bytes())
    counting = Counting(tiny.internvl(), tiny.processor(), "full")
    again = attach_aspects(source(), BANK, counting, work_dir=tmp_path / "a")
    assert [row["aspect_logits"] for row in again] == values and counting.count == 6


@pytest.mark.parametrize("moment", ["before the manifest", "after it"])
def test_of_two_jobs_that_begin_at_once_one_is_refused(tmp_path, monkeypatch, moment):
    begin, others = remove_stale, iter([teacher()])

    def meanwhile(folder):
        begin(folder)
        for other in others:
            attach_aspects(rows(), BANK, other, work_dir=tmp_path)

    monkeypatch.setattr("madkd_hf.labelling.shards.remove_stale", meanwhile)
    late = Asleep(tiny.internvl(1 if moment == "before the manifest" else 0), tiny.processor())
    if moment == "after it":  # the same job: it takes what is there
        attach_aspects(rows(), BANK, late, work_dir=tmp_path)
    else:
        with pytest.raises(ValueError, match="holds another labelling job: its teacher weights"):
            attach_aspects(rows(), BANK, late, work_dir=tmp_path)


def test_what_two_jobs_settle_adds_up(tmp_path):
    attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)
    manifest = read_record(tmp_path / "manifest.json", "manifest", "")
    one, two = (WorkDir(tmp_path, {**manifest, "complete": {name: 1}}) for name in "ab")
    one.save()
    two.save()
    assert json.loads((tmp_path / "manifest.json").read_text())["complete"] == {"a": 1, "b": 1}


def test_a_manifest_that_is_a_folder_is_told_in_one_sentence(tmp_path):
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ValueError, match="manifest of a labelling job.*pass another work_dir"):
        attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)


# More than one at once


def at_once(calls: list) -> list[Dataset | Exception]:
    """What each call returns or raises, of threads that begin at the same moment."""
    barrier, results = threading.Barrier(len(calls)), [None] * len(calls)

    def run(place: int) -> None:
        barrier.wait(60)
        try:
            results[place] = calls[place]()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


@pytest.mark.parametrize("where", [None, "work"])
def test_a_finished_job_is_read_by_many_at_once(cache, where):
    work_dir, dataset = where and cache / where, rows()
    values = expected(dataset)
    attach_aspects(dataset, BANK, teacher(), work_dir=work_dir)
    asleep = [Asleep(tiny.internvl(), tiny.processor()) for _ in range(4)]
    for _ in range(4):
        for labelled in at_once([partial(attach_aspects, dataset, BANK, each, work_dir=work_dir) for each in asleep]):
            assert_answers(labelled, values)
    (lock,) = cache.rglob(LOCK_FILE)
    with files.locked(lock.parent):  # such as by a run that labels another split
        (labelled,) = at_once([lambda: attach_aspects(dataset, BANK, asleep[0], work_dir=work_dir)])
    assert_answers(labelled, values)


class Slow(Counting):
    """Takes long enough for others to come by."""

    def read(self, images, bank):
        if self.count == 0:
            time.sleep(1)
        return super().read(images, bank)


def test_of_several_on_one_job_in_the_cache_one_works_and_the_others_wait(cache, caplog):
    dataset = rows(6)
    slow = [Slow(tiny.internvl(), tiny.processor(), "full") for _ in range(3)]
    calls = [partial(attach_aspects, dataset, BANK, each, shard_size=2) for each in slow]
    for labelled in at_once(calls):
        assert_answers(labelled, expected(dataset))
    assert sorted(each.count for each in slow) == [0, 0, 6]
    assert caplog.text.count("this one waits until it is over") == 2


def _label(cache, begun):
    datasets.config.HF_DATASETS_CACHE = cache
    slow = Slow(tiny.internvl(), tiny.processor(), "full")
    begun.put(None)
    begun.put((attach_aspects(rows(), BANK, slow)["aspect_logits"][:], slow.count))


def test_of_two_processes_on_one_job_in_the_cache_one_waits_for_the_other(cache):
    fork = multiprocessing.get_context("fork")
    told = fork.Queue()
    jobs = [fork.Process(target=_label, args=(cache, told)) for _ in range(2)]
    for job in jobs:
        job.start()
    results = [result for result in (told.get(timeout=120) for _ in range(4)) if result]
    for job in jobs:
        job.join(60)
    assert sorted(count for _, count in results) == [0, 5] and results[0][0] == results[1][0]


def test_a_second_run_in_a_work_dir_is_refused_while_there_is_work_to_do(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    class Stopped(AspectTeacher):
        def read(self, images, bank):
            begun.set()
            assert go_on.wait(60)
            return super().read(images, bank)

    def second() -> Dataset:
        assert begun.wait(60)
        try:
            return attach_aspects(rows(), BANK, teacher(), work_dir=tmp_path)
        finally:
            go_on.set()

    stopped = Stopped(tiny.internvl(), tiny.processor(), "full")
    first, refused = at_once([lambda: attach_aspects(rows(), BANK, stopped, work_dir=tmp_path), second])
    assert_answers(first, expected(rows()))
    assert isinstance(refused, ValueError)
    assert re.search(f"Another run is at work in {tmp_path}: it labels.* pass another work_dir", str(refused))
    assert_answers(second(), expected(rows()))
