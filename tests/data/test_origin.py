"""Rows may name files in place of images: only the dataset's own images are ever read, stored or published."""

import io
import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import tiny
from builders.quick_python import online_python
from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDatasetDict,
    List,
    load_dataset,
)

from madkd_hf import AspectTeacher, attach_aspects
from madkd_hf.data import origin
from madkd_hf.data.origin import Origin, RefusedFileError
from madkd_hf.data.sources import load
from madkd_hf.hub.dataset import write_parquet


SECRET = b"SECRET-OF-THE-VICTIM"
BANK = tiny.bank(2)
FEATURES = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})


def png(seed: int = 0) -> bytes:
    out = io.BytesIO()
    tiny.images(1, 20, seed)[0].save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def victim(tmp_path) -> Path:
    """What lies on a user's disk beside the dataset of a stranger."""
    (tmp_path / "secret.txt").write_bytes(SECRET)
    (tmp_path / "private.png").write_bytes(png(5))
    return tmp_path


@pytest.fixture
def folder(victim) -> Path:
    """The stranger's dataset: what it names is put into it by `poison`."""
    (victim / "theirs" / "data").mkdir(parents=True)
    (victim / "theirs" / "own.png").write_bytes(png(1))
    return victim / "theirs"


def stored(cells: list, features: Features = FEATURES) -> Dataset:
    """Rows whose image cells are as given."""
    raw = Features({**features, "image": Image(decode=False)})
    return Dataset.from_dict({"image": cells, "label": [i % 2 for i in range(len(cells))]}, raw).cast(features)


def poison(folder: Path, path: str, split: str = "test") -> None:
    good = stored([{"bytes": png(i), "path": None} for i in range(4)])
    bad = stored([{"bytes": png(9), "path": None}, {"bytes": None, "path": path}])
    for name, rows in {"train": good, "test": good, split: bad}.items():
        table = rows.data.table.replace_schema_metadata(rows.features.arrow_schema.metadata)
        pq.write_table(table, folder / "data" / f"{name}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def teacher() -> AspectTeacher:
    return AspectTeacher(tiny.internvl(), tiny.processor(), "full")


def everything_in(*folders: Path) -> bytes:
    return b"".join(path.read_bytes() for each in folders for path in each.rglob("*") if path.is_file())


def strange(victim: Path) -> dict[str, str]:
    """Names that a stranger may write into rows."""
    folder = victim / "theirs"
    (folder / "link.png").symlink_to(victim / "private.png")
    (folder / "linked").symlink_to(victim)
    os.mkfifo(folder / "fifo.png")
    return {
        "a secret": str(victim / "secret.txt"),
        "a private image": str(victim / "private.png"),
        "dots": str(folder / ".." / "private.png"),
        "a link": str(folder / "link.png"),
        "a linked folder": str(folder / "linked" / "private.png"),
        "a fifo": str(folder / "fifo.png"),
        "a folder": str(folder / "data"),
        "a device": "/dev/zero",
        "a process": "/proc/self/environ",
        "relative": os.path.relpath(victim / "private.png"),
        "an address": "http://127.0.0.1:9/x.png",
        "an address of FTP": "ftp://127.0.0.1/x.png",
        "a private repo": "hf://datasets/victim/private@main/x.png",
        "a bucket": "s3://victim/x.png",
        "a file address": f"file://{victim}/private.png",
        "a short file address": f"file:{victim}/private.png",
        "data": "data:image/png;base64,AAAA",
        "an archive elsewhere": f"zip://x.png::{victim}/private.zip",
        "an archive on the web": "zip://x.png::http://127.0.0.1:9/x.zip",
        "chained": "simplecache::http://127.0.0.1:9/x.png",
        "another machine": "\\\\server\\share\\x.png",
        "no name": "x\0.png",
    }


def test_only_files_of_the_dataset_s_own_folder_are_read(victim, folder):
    own = Origin.of_folder(folder)
    assert own.read(str(folder / "own.png")) == png(1)
    assert own.read(str(folder / "data" / ".." / "own.png")) == png(1)
    for name, path in strange(victim).items():
        with pytest.raises(RefusedFileError):
            print(name, own.read(path))
    with pytest.raises(FileNotFoundError):
        own.read(str(folder / "gone.png"))


def test_a_user_s_own_program_may_name_images_anywhere_but_nothing_else(victim, folder):
    names, anywhere = strange(victim), Origin()
    images = ("a private image", "dots", "a link", "a linked folder", "relative")
    for name, path in names.items():
        if name in images:
            assert anywhere.read(path) == png(5)
        else:
            with pytest.raises((RefusedFileError, FileNotFoundError, IsADirectoryError)):
                print(name, anywhere.read(path))


def test_files_of_a_hub_dataset_are_those_of_its_repo():
    own = Origin((), "owner/name")
    for path in (
        "hf://datasets/owner/name@abc/train/x.png",
        "hf://datasets/owner/name/x.png",
        "zip://a/b.png::hf://datasets/owner/name@abc/x.zip",
    ):
        assert own.refusal(path) is None
    for path in (
        "hf://datasets/owner/name-private@abc/x.png",
        "hf://datasets/owner/name@abc/../../other/x.png",
        "hf://owner/name/x.png",
        "hf://spaces/owner/name/x.png",
        "zip://a.png::zip://hf://datasets/owner/name@abc/x.zip",
        "zip://a.png::hf://datasets/other/name@abc/x.zip",
        "https://huggingface.co/datasets/owner/name/resolve/main/x.png",
        "/etc/hostname",
    ):
        assert own.refusal(path), path


NO_IMAGES = {
    "text": SECRET,
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "cut": png()[:80],
    "empty": b"",
    "marked": b"\x89PNG\r\n\x1a\n" + SECRET,
}


@pytest.mark.parametrize("content", NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_is_no_image_is_not_read_whatever_it_is_called(victim, content):
    (victim / "x.png").write_bytes(content)
    with pytest.raises(RefusedFileError, match="no image|other programs"):
        Origin().read(str(victim / "x.png"))


def test_a_file_of_any_size_is_not_read(victim, monkeypatch):
    monkeypatch.setattr(origin, "LARGEST", 100)
    with pytest.raises(RefusedFileError, match="bytes, more than 100"):
        Origin().read(str(victim / "private.png"))


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
@pytest.mark.parametrize("split", ["train", "test"], ids=["labelled", "not labelled"])
@pytest.mark.parametrize("what", ["secret.txt", "private.png"])
def test_what_lies_beside_a_stranger_s_dataset_is_neither_stored_nor_published(
    victim, folder, teacher, tmp_path, what, split, streaming
):
    poison(folder, str(victim / what), split)
    dataset = load_dataset(str(folder), streaming=streaming, cache_dir=str(tmp_path / "cache"))
    options = {"splits": ["train"], "files_from": folder}
    with pytest.raises(ValueError, match=f"row 1 of split '{split}'.*{what}.*it lies outside the dataset"):
        attach_aspects(dataset, BANK, teacher, work_dir=tmp_path / "a", **options)
    labelled = attach_aspects(dataset, BANK, teacher, work_dir=tmp_path / "b", on_error="skip", **options)
    found = list(labelled[split])
    assert found[1]["image"] is None and found[0]["image"] is not None
    if not streaming:
        DatasetDict(labelled).save_to_disk(tmp_path / "saved")
    for name, rows in labelled.items():
        write_parquet(rows, name, tmp_path / "published", rows.features)
    assert (tmp_path / what).read_bytes() not in everything_in(*(tmp_path / each for each in ("a", "b", "published")))
    assert (tmp_path / what).read_bytes() not in everything_in(*tmp_path.glob("saved"))


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
def test_a_user_s_own_rows_are_stored_and_what_is_no_image_is_not(victim, teacher, tmp_path, streaming):
    cells = [{"bytes": None, "path": str(victim / name)} for name in ("private.png", "secret.txt")]
    parts = {"train": stored(cells[:1]), "test": stored(cells)}
    dataset = DatasetDict(parts)
    if streaming:
        dataset = IterableDatasetDict({name: rows.to_iterable_dataset() for name, rows in parts.items()})
    with pytest.raises(ValueError, match="row 1 of split 'test'.*secret.txt.*no image that can be decoded"):
        attach_aspects(dataset, BANK, teacher, splits=["train"], work_dir=tmp_path / "a")
    labelled = attach_aspects(dataset, BANK, teacher, splits=["train"], work_dir=tmp_path / "b", on_error="skip")
    assert [row["image"] is None for row in labelled["test"]] == [False, True]
    assert [row["image"] is None for row in labelled["train"]] == [False]


def test_a_labelled_row_that_is_skipped_takes_no_file_along(victim, teacher, tmp_path):
    cells = [{"bytes": None, "path": str(victim / name)} for name in ("private.png", "secret.txt")]
    labelled = attach_aspects(stored(cells), BANK, teacher, work_dir=tmp_path / "work", on_error="skip")
    labelled.save_to_disk(tmp_path / "saved")
    assert SECRET not in everything_in(tmp_path / "work", tmp_path / "saved")
    assert labelled[1]["image"] is None and labelled[1]["aspect_bank"] == BANK.fingerprint


NESTED = {
    "another image": (Image(), lambda path: {"bytes": None, "path": path}),
    "a list": (List(Image()), lambda path: [{"bytes": None, "path": path}]),
    "a struct": ({"crop": Image()}, lambda path: {"crop": {"bytes": None, "path": path}}),
    "a list of structs": (List({"crop": Image()}), lambda path: [{"crop": {"bytes": None, "path": path}}]),
    "a sound": (Audio(decode=False), lambda path: {"bytes": None, "path": path}),
}  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True], ids=["rows", "stream"])
@pytest.mark.parametrize("kind", NESTED)
def test_other_columns_take_no_files_along_either(victim, teacher, tmp_path, kind, streaming):
    feature, cell = NESTED[kind]
    features = Features({**FEATURES, "other": feature})
    good = stored([{"bytes": png(i), "path": None} for i in range(2)])
    other = pa.array([cell(str(victim / "secret.txt")), None], features.arrow_schema.field("other").type)
    dataset = Dataset(good.data.table.append_column("other", other).cast(features.arrow_schema))
    source = dataset.to_iterable_dataset() if streaming else dataset
    with pytest.raises(ValueError, match="'other' in row 0 of split 'train' names the file .*secret.txt.*no image"):
        attach_aspects(source, BANK, teacher, work_dir=tmp_path / "a")
    labelled = attach_aspects(source, BANK, teacher, work_dir=tmp_path / "b", on_error="skip")
    if not streaming:
        labelled.save_to_disk(tmp_path / "saved")
    write_parquet(labelled, "train", tmp_path / "published", labelled.features)
    assert SECRET not in everything_in(tmp_path / "b", tmp_path / "published", *tmp_path.glob("saved"))
    assert all(row["aspect_logits"] is not None for row in labelled)  # the images themselves are good


def test_publishing_reads_no_strange_file_either(victim, tmp_path):
    rows = stored([{"bytes": None, "path": str(victim / "secret.txt")}])
    with pytest.raises(ValueError, match="row 0 of split 'train' names the file .*secret.txt.*no image"):
        write_parquet(rows, "train", tmp_path / "published", rows.features)
    rows = stored([{"bytes": None, "path": "http://127.0.0.1:9/x.png"}])
    with pytest.raises(ValueError, match="an address outside the dataset is not read"):
        write_parquet(rows, "train", tmp_path / "published", rows.features)
    rows = stored([{"bytes": None, "path": str(victim / "private.png")}])
    write_parquet(rows, "train", tmp_path / "good", rows.features)
    (row,) = load_dataset("parquet", data_files=str(tmp_path / "good/*"), cache_dir=str(tmp_path / "c"))[
        "train"
    ].cast_column("image", Image(decode=False))
    assert row["image"] == {"bytes": png(5), "path": "private.png"}  # no folder of the user's machine


# The commands, and a Hub


@pytest.fixture
def strangers_repo(hub, victim, folder) -> Path:
    """A dataset on the Hub whose rows name a file, a private repo and an address of whoever labels it."""
    (folder / "own.png").unlink()  # images beside Parquet files are refused by another rule
    (victim / "private").mkdir()
    (victim / "private" / "x.png").write_bytes(png(7))
    hub.add_repo("you/private", victim / "private", "dataset", private=True)
    names = [str(victim / "secret.txt"), str(victim / "private.png"), "hf://datasets/you/private@main/x.png"]
    names.append(f"{hub.url}/datasets/you/private/resolve/main/x.png")
    poison(folder, names[0])
    cells = [{"bytes": png(9), "path": None}, *({"bytes": None, "path": name} for name in names)]
    rows = stored(cells)
    table = rows.data.table.replace_schema_metadata(rows.features.arrow_schema.metadata)
    pq.write_table(table, folder / "data" / "test-00000-of-00001.parquet")
    hub.add_repo("stranger/birds", folder, "dataset")
    tiny.internvl().save_pretrained(victim / "teacher")
    tiny.processor().save_pretrained(victim / "teacher")
    BANK.save(victim / "aspects.json")
    return folder


def attach(hub, tmp_path: Path, dataset: str, *words: str) -> subprocess.CompletedProcess:
    recipe = Path(__file__).parents[2] / "recipes/attach_aspects.py"
    named = ["--dataset", dataset, "--teacher", "teacher", "--bank", "aspects.json", "--output_dir", "out"]
    command = [online_python(hub), str(recipe), *named, "--push_to_hub", "--hub_dataset_id", "you/labelled", *words]
    return subprocess.run(command, env=hub.environment(hub.home), cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.parametrize("streaming", ["false", "true"])
@pytest.mark.parametrize("place", ["hub", "folder"])
def test_a_stranger_s_dataset_publishes_nothing_of_the_victim(hub, strangers_repo, victim, place, streaming):
    dataset = "stranger/birds" if place == "hub" else str(strangers_repo)
    done = attach(hub, victim, dataset, "--streaming", streaming)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "row 1 of split 'test'" in last and "secret.txt" in last
    received = len(hub.received)
    done = attach(hub, victim, dataset, "--streaming", streaming, "--on_error", "skip", "--output_dir", "out2")
    assert done.returncode == 0, done.stderr
    sent = hub.received[received:]
    made = everything_in(victim / "out", victim / "out2", hub.home)
    for content in (SECRET, png(5), png(7)):
        assert content not in sent and content not in made
    published = pq.read_table(io.BytesIO(hub.files("you/labelled", "dataset")["data/test-00000-of-00001.parquet"]))
    assert [cell is None for cell in published["image"].to_pylist()] == [False, True, True, True, True]
    asked = [request for request in hub.requests if "you/private" in request.path]
    assert not asked


@pytest.mark.parametrize("recipe", ["train_student", "select_questions"])
def test_other_commands_read_no_strange_file_either(hub, strangers_repo, victim, recipe):
    command = [
        online_python(hub),
        str(Path(__file__).parents[2] / f"recipes/{recipe}.py"),
        "--dataset",
        str(strangers_repo),
    ]
    done = subprocess.run(
        [*command, "--output_dir", "out", *(["--backbone", "none"] if recipe == "train_student" else [])],
        env=hub.environment(hub.home), cwd=victim, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "row 1 of split 'test'" in done.stderr.strip().splitlines()[-1]


def test_rows_kept_in_memory_and_streams_made_of_them_are_still_a_stranger_s(tmp_path):
    private = tmp_path / "private.png"
    private.write_bytes(png(5))
    (tmp_path / "theirs" / "data").mkdir(parents=True)
    poison(tmp_path / "theirs", str(private))
    file = str(tmp_path / "theirs" / "data" / "test-00000-of-00001.parquet")
    rows = Dataset.from_parquet(file)
    for theirs in (
        rows,
        Dataset.from_parquet(file, keep_in_memory=True),
        rows.to_iterable_dataset(),
        rows.shuffle(seed=0).to_iterable_dataset(num_shards=2),
    ):
        assert Origin.of(theirs).refusal(str(private)) == "it lies outside the dataset"
    own = Dataset.from_dict({"image": [str(private)]}, features=Features({"image": Image()}))
    assert Origin.of(own).refusal(str(private)) is None
    assert Origin.of(own.to_iterable_dataset()).refusal(str(private)) is None


def test_a_stream_of_links_that_the_user_has_put_into_a_folder_is_read(tmp_path):
    (tmp_path / "links" / "a").mkdir(parents=True)
    (tmp_path / "photo.png").write_bytes(png(5))
    (tmp_path / "links" / "a" / "0.png").symlink_to(tmp_path / "photo.png")
    for streaming in (False, True):
        rows = load(str(tmp_path / "links"), streaming=streaming).splits["train"]
        assert Origin.of(rows, tmp_path / "links").refusal(str(tmp_path / "photo.png")) is None
