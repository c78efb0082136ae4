"""What is ours on a disk and what is not: small trees of a user's own files, which are the same bytes afterwards."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from builders.files import tree

from madkd_hf import files
from madkd_hf.text import chain_of_causes


@pytest.fixture
def mine(tmp_path):
    """A user's folder: a photo, a note in a folder below it, and a hidden file."""
    folder = tmp_path / "mine"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "photo.jpg").write_bytes(b"\xff\xd8photo")
    (folder / "a" / "b" / "notes.txt").write_text("mine")
    (folder / ".hidden").write_text("mine, too")
    return folder


# Whole files


def test_a_file_is_written_whole_and_leaves_nothing_beside_it(tmp_path):
    path = files.write_whole(tmp_path / "deep" / "a.json", "ä")
    assert path.read_bytes() == "ä".encode() and os.listdir(path.parent) == ["a.json"]
    files.write_whole(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    files.write_whole(tmp_path / ("ü" * 120), "names of 240 bytes have room for an ending")


def test_a_failure_while_writing_leaves_what_was_there(tmp_path):
    path = files.write_whole(tmp_path / "a.txt", "before")
    with pytest.raises(RuntimeError), files.whole_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert tree(tmp_path) == {"a.txt": b"before"}


def test_a_full_disk_is_a_sentence_and_leaves_what_was_there(tmp_path, monkeypatch):
    path = files.write_whole(tmp_path / "a.txt", "before")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"a\.txt \(No space left on device\).* whole; make room") as raised:
        files.write_whole(path, "after")
    assert files.disk_is_full(raised.value) and "Errno" not in str(raised.value)
    assert tree(tmp_path) == {"a.txt": b"before"}


def test_a_full_disk_is_known_whichever_library_met_it():
    told = [OSError(errno.ENOSPC, "x"), OSError(errno.EDQUOT, "x"), OSError(errno.EFBIG, "x")]
    told += [RuntimeError("I/O error: No space left on device (os error 28)")]
    told += [RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")]
    for error in told:
        try:
            raise KeyError("of a library") from error
        except KeyError as raised:
            assert files.disk_is_full(error) and files.disk_is_full(raised)
    for error in (None, OSError(errno.EACCES, "x"), ValueError("the disk"), FileNotFoundError(2, "x")):
        assert not files.disk_is_full(error)


def test_an_error_that_is_its_own_cause_has_an_end():
    first, second = ValueError("one"), ValueError("another")
    first.__cause__, second.__cause__ = second, first
    assert not files.disk_is_full(first)
    second.__context__ = OSError(errno.ENOSPC, "full")
    assert list(chain_of_causes(first)) == [first, second]


@pytest.mark.parametrize("target", ["mine/photo.jpg", "nowhere"])
def test_a_link_at_a_name_that_is_written_is_neither_followed_nor_replaced(tmp_path, mine, target):
    before = tree(mine)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "aspects.json").symlink_to(tmp_path / target)
    with pytest.raises(ValueError, match="aspects.json is a link to .*remove the link"):
        files.write_whole(tmp_path / "out" / "aspects.json", "{}")
    assert (tmp_path / "out" / "aspects.json").is_symlink() and tree(mine) == before
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_at_a_name_that_is_written_stays(mine):
    before = tree(mine)
    with pytest.raises(ValueError, match="is a folder where a file is to be written"):
        files.write_whole(mine / "a", "{}")
    assert tree(mine) == before


def test_temporary_files_of_the_dead_go_and_those_of_others_and_of_users_stay(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = os.uname().nodename
    dead = [f".a.json@{host}-{gone.pid}-{'0' * 12}.partial", f".train@{host}-{gone.pid}-{'0' * 12}.old"]
    kept = [f".a.json@{host}-{os.getpid()}-{'0' * 12}.partial", f".a@elsewhere-{gone.pid}-{'0' * 12}.partial"]
    kept += [".film.mp4.partial", ".a@b.partial", f"a.json@{host}-{gone.pid}-{'0' * 12}.partial"]
    (tmp_path / dead[1]).mkdir()
    for name in (dead[0], *kept):
        (tmp_path / name).write_text("x")
    os.utime(tmp_path / ".film.mp4.partial", (0, 0))
    files.remove_stale(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


# What is read


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "damaged"),
        (b"\xff\xfe\x00", "damaged"),
        (b"", "damaged"),
        (b"[1]", "holds a list"),
        (b"null", "holds a NoneType"),
        (b"[" * 100_000 + b"]" * 100_000, "damaged"),
        (b"9" * 10_000, "damaged"),
    ],
)
def test_json_that_is_none_names_the_file_and_the_remedy(tmp_path, content, told):
    (tmp_path / "cell.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"cell\.json .*{told}.*: delete it\.$"):
        files.read_json(tmp_path / "cell.json", "the result of a student", "delete it")


def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch):
    files.write_whole(tmp_path / "a.json", "{}")

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(OSError, match=r"a\.json, a thing, .*Permission denied.*: make it readable, or delete it"):
        files.read_json(tmp_path / "a.json", "a thing", "delete it")


def test_a_record_with_any_text_is_read_back(tmp_path):
    """Names of files that are no UTF-8 have lone surrogates."""
    content = {"path": "caf\udce9", "name": "ä"}
    files.write_record(tmp_path / "a.json", content)
    assert files.read_record(tmp_path / "a.json", "a thing", "delete it") == content


def test_json_is_read_with_the_mark_that_windows_puts_before_it(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(tmp_path / "a.json", "a thing", "delete it") == {"a": 1}
    with pytest.raises(ValueError, match=r"c\.json, a thing, cannot be read .*delete it"):
        files.read_json(tmp_path / "c.json", "a thing", "delete it")


# Folders


def make(folder: Path, kind: str = "split", **content: str) -> Path:
    with files.new_folder(folder, kind) as new:
        for name, text in content.items():
            (new / name.replace("_", "/")).parent.mkdir(exist_ok=True)
            (new / name.replace("_", "/")).write_text(text)
    return folder


def test_a_folder_of_ours_is_replaced_and_removed_whole(tmp_path):
    out = make(tmp_path / "train", a="1", sub_b="2")
    assert tree(out) == {"a": b"1", "sub/b": b"2"}
    mark = json.loads((out / ".madkd.json").read_text())
    assert mark == {"made_by": "madkd_hf", "kind": "split", "files": ["a", "sub/b"]}
    assert tree(make(out, c="3")) == {"c": b"3"}
    files.remove_folder(out, "split")
    assert os.listdir(tmp_path) == []
    files.remove_folder(out, "split")  # which is nothing to say


def test_a_folder_without_our_mark_is_neither_replaced_nor_removed(tmp_path, mine):
    before = tree(tmp_path)
    for name in (".hidden", "a/b/notes.txt", "photo.jpg"):  # whichever alone is left of it
        for act in (files.remove_folder, files.own_folder, lambda path, kind: make(path, kind, a="1")):
            with pytest.raises(ValueError, match=f"{mine}/.* was not written by this command.*pass another"):
                act(mine, "split")
            assert tree(tmp_path) == before
        (mine / name).unlink()
        before = tree(tmp_path)
        if not before:
            break
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        make(tmp_path / "file", a="1")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / "train").mkdir()
    assert tree(make(tmp_path / "train", a="1")) == {"a": b"1"}
    (tmp_path / "cell").mkdir()
    assert files.own_folder(tmp_path / "cell", "student") == tmp_path / "cell"


@pytest.mark.parametrize("name", ["notes.txt", "sub/notes.txt", ".hidden", "new/notes.txt"])
def test_a_users_file_in_a_folder_of_ours_is_named_and_nothing_is_removed(tmp_path, name):
    out = make(tmp_path / "train", a="1", sub_b="2")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    before = tree(out)
    for act in (files.remove_folder, lambda path, kind: make(path, kind, a="3")):
        with pytest.raises(ValueError, match=f"{name.split('/')[0]}.*was not written by this command"):
            act(out, "split")
    assert tree(out) == before and os.listdir(tmp_path) == ["train"]


def test_what_datasets_keeps_beside_rows_of_ours_goes_with_them_and_beside_a_users_stays(tmp_path):
    name = "cache-287befde189facdb.arrow"
    out = make(tmp_path / "train", a="1")
    (out / name).write_text("x")
    (out / name.replace(".", "_00000_of_00002.")).write_text("x")
    assert tree(make(out, b="2")) == {"b": b"2"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("x")
    with pytest.raises(ValueError, match="was not written by this command"):
        files.remove_folder(tmp_path / "mine", "split")


def test_links_in_a_folder_of_ours_are_a_users(tmp_path, mine):
    out, before = make(tmp_path / "train", a="1"), tree(mine)
    (out / "a").unlink()
    (out / "a").symlink_to(mine / "photo.jpg")
    with pytest.raises(ValueError, match="train/a was not written"):
        files.remove_folder(out, "split")
    (out / "a").unlink()
    (out / "a").symlink_to(mine)
    with pytest.raises(ValueError, match="train/a was not written"):
        make(out, b="2")
    assert tree(mine) == before


def test_a_link_to_a_folder_is_not_followed_even_to_one_of_ours(tmp_path):
    ours = make(tmp_path / "ours", a="1")
    (tmp_path / "train").symlink_to(ours)
    for act in (files.remove_folder, lambda path, kind: make(path, kind, b="2")):
        with pytest.raises(ValueError, match="train is a link to .*/ours, which we do not follow"):
            act(tmp_path / "train", "split")
    assert tree(ours) == {"a": b"1"} and (tmp_path / "train").is_symlink()


def test_another_kind_and_a_forged_mark_are_refused(tmp_path, mine):
    out = make(tmp_path / "train", a="1")
    with pytest.raises(ValueError, match="holds a split, and a student is to be written there: pass another folder"):
        make(out, "student", b="2")
    before = tree(mine)
    for text in ("{}", "[]", "{", '{"made_by": "x", "kind": "split", "files": []}', '{"made_by": "madkd_hf"}'):
        (mine / ".madkd.json").write_text(text)
        with pytest.raises(ValueError, match=r"\.madkd\.json .*pass another folder, or delete this one yourself"):
            make(mine, b="2")
    (mine / ".madkd.json").unlink()
    (mine / ".madkd.json").symlink_to(out / ".madkd.json")
    with pytest.raises(ValueError, match="is a link"):
        make(mine, b="2")
    (mine / ".madkd.json").unlink()
    assert tree(mine) == before and tree(out) == {"a": b"1"}


def test_what_fails_while_a_folder_is_made_leaves_the_old_one(tmp_path):
    out = make(tmp_path / "train", a="1")
    with pytest.raises(OSError, match="Cannot write to .*No space left.*was there before is whole"):
        with files.new_folder(out, "split") as new:
            (new / "b").write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert tree(out) == {"a": b"1"} and os.listdir(tmp_path) == ["train"]


def test_in_a_shared_folder_only_names_that_are_ours_are_written(tmp_path, mine):
    before = tree(mine)
    names = ["report.json", "figures/*.png", "checkpoint-*"]
    files.own_folder(mine, "comparison", names)  # nothing of that name is there
    files.write_whole(mine / "report.json", "{}")
    (mine / "checkpoint-5").mkdir()
    (mine / "checkpoint-5" / "a").write_text("1")
    files.own_folder(mine, "comparison", names)  # again: they are ours
    assert {name: text for name, text in tree(mine).items() if name in before} == before
    with pytest.raises(ValueError, match="photo.jpg was not written"):
        files.own_folder(mine, "comparison", [*names, "photo.jpg"])
    files.own_folder(mine, "student", ["config.json"])  # beside it: they are in nobody's way
    files.own_folder(mine, "comparison", names)
    for other in (["report.json"], ["figures/*.png", "checkpoint-5"]):
        with pytest.raises(ValueError, match="was not written by this command, and a student"):
            files.own_folder(mine, "student", other)
    with pytest.raises(ValueError, match="holds a comparison"):
        files.remove_folder(mine, "student")


@pytest.mark.parametrize("name", ["report.json", "figures/a.png", "figures", "checkpoint-5", "checkpoint-5/a"])
@pytest.mark.parametrize("link", [False, True])
def test_a_users_file_or_link_at_a_name_that_would_be_written_is_refused_by_name(tmp_path, name, link):
    out, names = tmp_path / "out", ["report.json", "figures/*.png", "checkpoint-*"]
    (out / name).parent.mkdir(parents=True)
    if link:
        (out / name).symlink_to(tmp_path / "nowhere")
    else:
        (out / name).write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=name.split("/")[0]):
        files.check_folder(out, "comparison", names)
    with pytest.raises(ValueError, match=name.split("/")[0]):
        files.own_folder(out, "comparison", names)
    assert tree(tmp_path) == before and not (out / ".madkd.json").exists()


def test_a_killed_replacement_leaves_a_whole_folder_or_none(tmp_path):
    """10 processes that replace a folder all the time, each killed at another moment."""
    code = (
        "import sys, itertools; sys.path.insert(0, sys.argv[2]); import files\n"  # without all of the package
        "print('go', flush=True)\n"
        "for i in itertools.count():\n"
        "    with files.new_folder(sys.argv[1], 'split') as new:\n"
        "        for name in 'abcdef': (new / name).write_text(str(i))\n"
    )
    out = tmp_path / "train"
    for kill in range(10):
        job = subprocess.Popen(
            [sys.executable, "-c", code, str(out), str(Path(files.__file__).parents[1])], stdout=subprocess.PIPE
        )
        job.stdout.readline()
        threading.Event().wait(0.003 + 0.0007 * kill)
        job.send_signal(signal.SIGKILL)
        job.wait()
        found = tree(out)
        assert not out.exists() or (sorted(found) == list("abcdef") and len(set(found.values())) == 1)
        files.remove_stale(tmp_path)
        assert os.listdir(tmp_path) in ([], ["train"])


# Names


@pytest.mark.parametrize("name", ["train", "train.v2", "red_1", "Käfer", "鳥", "a b", "x" * 200, "50%", "[a]", "a,b"])
def test_names_that_may_be_files(name):
    assert files.check_name(name, "split") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc",
        "a\\b",
        "..\\x",
        "C:x",
        "a\0b",
        "a\nb",
        "\x1b[2J",
        "a\x85b",
        ".hidden",
        " a",
    ]
    + [" a", "a.", "a ", "a*", "a?", 'a"b', "<a>", "a|b", "é" * 101, "\ud800", "a\u202eb", "a\u2028b", None, 7, "..."],
)
def test_names_that_may_not(name):
    with pytest.raises(ValueError, match="The split .*(rename it|shorten it)"):
        files.check_name(name, "split")


# Places


def test_an_output_folder_that_overlaps_with_a_source_is_refused(tmp_path, mine, monkeypatch):
    (tmp_path / "linked").symlink_to(mine)
    (tmp_path / "up").symlink_to(tmp_path)
    before = tree(tmp_path)
    monkeypatch.chdir(mine / "a")
    for source in (mine, mine / "a" / "..", tmp_path / "linked", tmp_path / "up" / "mine", ".."):
        for out in (mine, mine / "new", mine / "a" / "b", tmp_path, tmp_path / "linked" / "new", "new", "../..", "."):
            with pytest.raises(ValueError, match="pass an output folder elsewhere"):
                files.check_output(out, None, "", "user/of-the-hub", source)
        for out in (tmp_path / "out", tmp_path / "mine2", "../../out", tmp_path / "up" / "out"):
            assert files.check_output(out, source) == Path(out)
    assert tree(tmp_path) == before


def test_a_source_whose_files_belong_to_the_output_by_links_is_refused(tmp_path, mine):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "cat").symlink_to(mine / "a")
    with pytest.raises(ValueError, match="link"):
        files.check_output(mine, tmp_path / "source")
    (tmp_path / "source" / "cat").unlink()
    (tmp_path / "source" / "cat.jpg").symlink_to(mine / "photo.jpg")
    with pytest.raises(ValueError, match="link"):
        files.check_output(mine, tmp_path / "source")
    files.check_output(tmp_path / "out", tmp_path / "source")


def test_a_file_that_is_read_must_not_lie_in_the_output(tmp_path):
    bank = files.write_whole(tmp_path / "runs" / "aspects.json", "{}")
    files.check_output(tmp_path / "runs" / "labelled", bank)
    for out in (tmp_path / "runs", tmp_path):
        with pytest.raises(ValueError, match="contains .*aspects.json"):
            files.check_output(out, bank)


def test_an_output_folder_that_cannot_be_one_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere" / "else")
    for out, told in [("", "--output_dir"), (tmp_path / "a.json", "JSON"), (tmp_path / "file", "is a file")]:
        with pytest.raises(ValueError, match=told):
            files.check_output(out)
    with pytest.raises(ValueError, match="is a file"):
        files.check_output(tmp_path / "file" / "deeper")
    with pytest.raises(ValueError, match="cannot be written to"):
        files.check_output("/proc/no/such/place")
    assert sorted(tree(tmp_path)) == ["broken", "file"]


# Locks


def _hold(folder, ready, done):
    with files.locked(folder, "it trains"):
        ready.set()
        done.wait(60)


def test_a_second_job_on_a_folder_is_told_so_until_the_first_is_dead(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready, done = spawn.Event(), spawn.Event()
    job = spawn.Process(target=_hold, args=(tmp_path / "out", ready, done))
    job.start()
    assert ready.wait(60)
    for same in (tmp_path / "out", tmp_path / "link"):
        if same.name == "link":
            same.symlink_to(tmp_path / "out")
        with pytest.raises(ValueError, match=rf"Another run is at work in {same}: it trains; wait"):
            with files.locked(same, "it trains"):
                pass
    job.kill()
    job.join()
    with files.locked(tmp_path / "out"):
        with files.locked(tmp_path / "link", again=True):  # the same thread may enter again, another one may not
            told = []
            other = threading.Thread(target=lambda: told.append(_refused(tmp_path / "out")))
            other.start()
            other.join()
            assert told == [True]
    assert files.own_folder(tmp_path / "out", "student")  # a lock is no foreign file


def test_a_lock_is_waited_for_where_that_is_asked(tmp_path, caplog):
    def enter():
        with files.locked(tmp_path / "out", "it trains", wait=True):
            order.append("second")

    order, other = [], threading.Thread(target=enter)
    with files.locked(tmp_path / "out"):
        other.start()
        while "this one waits until it is over" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    other.join(60)
    assert order == ["first", "second"] and len(caplog.records) == 1


def _refused(folder):
    try:
        with files.locked(folder):
            return False
    except ValueError:
        return True


def test_a_lock_where_nothing_can_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="Cannot write to .*file"):
        with files.locked(tmp_path / "file"):
            pass
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / files.LOCK_FILE).symlink_to(tmp_path / "file")
    with pytest.raises(ValueError, match="is a link"):
        with files.locked(tmp_path / "out"):
            pass
    assert (tmp_path / "file").read_text() == "mine"
