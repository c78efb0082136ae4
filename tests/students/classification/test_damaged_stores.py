"""Image stores whose files are not what was written: checked when opened, made again, and said."""

import multiprocessing
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from builders import damage, tiny
from datasets import Dataset, Features, Image
from PIL.Image import Resampling
from tqdm import tqdm

from madkd_hf.students.classification import image_store
from madkd_hf.students.classification.image_store import ImageStore


IMAGES = tiny.images(10, 24)
SHAPE = (12, 12)
FILES = ("checksums.npy", "images.npy", "pixels.npy")


def dataset(images=IMAGES) -> Dataset:
    return Dataset.from_dict({"image": images}, features=Features({"image": Image()}))


DATA, OTHER = dataset(), dataset(IMAGES[::-1])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(image_store, "CHUNK", 2)
    monkeypatch.setattr(image_store, "count_cores", lambda: 1)


def opened(cache: Path, data: Dataset = DATA) -> tuple[ImageStore, int]:
    """The store, and how many images were rendered for it."""
    rendered = 0

    def render(image):
        nonlocal rendered
        rendered += 1
        return np.asarray(image.resize(SHAPE, Resampling.BILINEAR))

    return ImageStore.open(data, "image", render, SHAPE, "plain", cache, disable_tqdm=True), rendered


def content(store: ImageStore) -> tuple[bytes, bytes, bytes]:
    return store.pixels.numpy().tobytes(), store.sizes.tobytes(), store.keys.tobytes()


def fuzz(cache: Path, rounds: int, caplog) -> Counter:
    store, _ = opened(cache)
    other, _ = opened(cache, OTHER)
    expected = content(store)
    there, others = ([each.folder / name for name in FILES] for each in (store, other))
    rng, counts = np.random.default_rng(0), Counter(damaged=0, wrong=0, unsaid=0, harmless=0, images=0)
    del store, other
    while counts["damaged"] < rounds:
        kind = damage.KINDS[rng.integers(len(damage.KINDS))]
        damaged = kind(there, others, rng)
        caplog.clear()
        store, rendered = opened(cache)
        said = str(store.folder) in caplog.text and "stored again" in caplog.text
        counts["damaged"] += bool(damaged and said)
        counts["harmless"] += bool(damaged and not rendered)  # in the padding of a header
        counts["images"] += rendered
        counts["wrong"] += content(store) != expected
        counts["unsaid"] += said != bool(rendered)
        again, rendered = opened(cache)
        counts["wrong"] += content(again) != expected or rendered
    return counts


def test_a_few_damaged_stores(tmp_path, caplog):
    counts = fuzz(tmp_path, 40, caplog)
    assert (counts["wrong"], counts["unsaid"]) == (0, 0), counts


@pytest.mark.slow
def test_many_damaged_stores(tmp_path, caplog):
    counts = fuzz(tmp_path, 400, caplog)
    print(damage.told(counts, "image stores"))
    assert (counts["wrong"], counts["unsaid"]) == (0, 0), counts


def test_only_the_damaged_images_are_made_again_and_they_are_named(tmp_path, caplog):
    store, rendered = opened(tmp_path)
    expected, path = content(store), store.folder / "pixels.npy"
    assert rendered == 10
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    again, rendered = opened(tmp_path)
    assert rendered == 2 and content(again) == expected
    assert f"2 of 10 stored images, between rows 8 and 9 of {path}, do not match their checksums" in caplog.text


def test_chunks_in_each_other_s_place_are_made_again(tmp_path):
    """Pixels, facts and checksums together: each chunk is whole, and not where it belongs."""
    store, _ = opened(tmp_path)
    expected = content(store)
    for name, header in (("pixels.npy", 128), ("images.npy", 128), ("checksums.npy", 128)):
        path = store.folder / name
        whole = path.read_bytes()
        size = (len(whole) - header) // 5
        first, second = (whole[header + i * size : header + (i + 1) * size] for i in range(2))
        path.write_bytes(whole[:header] + second + first + whole[header + 2 * size :])
    again, rendered = opened(tmp_path)
    assert rendered == 4 and content(again) == expected


def test_a_store_in_another_s_folder_is_made_again(tmp_path, caplog):
    (store, _), (other, _) = opened(tmp_path), opened(tmp_path, OTHER)
    expected = content(store)
    for name in FILES:
        (store.folder / name).write_bytes((other.folder / name).read_bytes())
    again, rendered = opened(tmp_path)
    assert rendered == 10 and content(again) == expected and "stored again" in caplog.text


def test_a_store_of_an_earlier_version_is_made_again(tmp_path, caplog):
    store, _ = opened(tmp_path)
    (store.folder / "checksums.npy").unlink()
    assert opened(tmp_path)[1] == 10
    assert f"{store.folder} is damaged (there is no checksums.npy): all its images are stored again" in caplog.text


def _fill_slowly(cache: Path) -> None:
    tqdm.set_lock(threading.RLock())  # the lock that forks share stays locked when one is killed while it holds it

    def render(image):
        time.sleep(0.01)
        return np.asarray(image.resize(SHAPE, Resampling.BILINEAR))

    ImageStore.open(DATA, "image", render, SHAPE, "plain", cache, disable_tqdm=True)


def kill(cache: Path, kills: int) -> list[int]:
    """How many images were left to make after a kill at any moment, so many times."""
    expected, left = content(opened(cache / "whole")[0]), []
    rng, fork = np.random.default_rng(0), multiprocessing.get_context("fork")
    while len(left) < kills:
        process = fork.Process(target=_fill_slowly, args=(cache / "killed",))
        process.start()
        process.join(rng.uniform(0, 0.3))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL and rng.integers(2):
            store, rendered = opened(cache / "killed")
            assert content(store) == expected
            left.append(rendered)
            image_store.Chunks.remove(store.folder)
    return left


def test_a_store_goes_on_after_a_kill(tmp_path):
    kill(tmp_path, 3)


@pytest.mark.slow
def test_a_store_goes_on_after_a_kill_at_any_moment(tmp_path):
    left = kill(tmp_path, 50)
    print(f"image stores: {len(left)} kills, {sum(0 < rendered < 10 for rendered in left)} in the middle, 0 wrong")
    assert any(0 < rendered < 10 for rendered in left)
