"""Images decoded once: the same batches, whatever happened to the store in between."""

import logging
import pickle
import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from accelerate.utils import concatenate
from accelerate.utils.operations import slice_tensors
from builders import tiny
from builders.classifier_training import PROCESSOR, arguments, rows, student
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from transformers import ConvNextImageProcessorPil, ViTImageProcessorPil

from madkd_hf import MadkdTrainer, MadkdTrainingArguments
from madkd_hf.students.classification import image_store, trainer
from madkd_hf.students.classification.data import AspectCollator
from madkd_hf.students.classification.image_batches import StoreCollator, StoredRows, store_collator
from madkd_hf.students.classification.image_store import ImageStore


CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test finds another's images."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "madkd_images"


def collator(augment: bool, image_processor=PROCESSOR, **settings) -> AspectCollator:
    return AspectCollator(image_processor, 4, augment=augment, num_aspects=3, **settings)


def stored(dataset: Dataset, augment: bool, choice: str = "disk", scale: float = 1.5, **settings):
    return store_collator(collator(augment, **settings), dataset, choice, CPU, scale=scale)


def batch_of(collator: StoreCollator, *indices: int) -> dict[str, torch.Tensor]:
    batch = collator(list(indices))
    collator.finish(batch)
    return batch


def of_size(count: int, *sizes: tuple[int, int]) -> Dataset:
    images = [image.resize(sizes[i % len(sizes)]) for i, image in enumerate(tiny.images(count, 40))]
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    return Dataset.from_dict({"image": images, "label": [i % 4 for i in range(count)]}, features=features)


# The same batches


def test_evaluation_batches_are_those_of_the_image_processor():
    data = rows(10, unlabelled=(2,))
    for processor in (PROCESSOR, ConvNextImageProcessorPil(size={"shortest_edge": 16}, crop_pct=0.875)):
        ours = batch_of(stored(data, False, image_processor=processor), 1, 2, 9)
        reference = collator(False, processor)([data[i] for i in (1, 2, 9)])
        assert set(ours) == set(reference)
        for name, values in reference.items():
            torch.testing.assert_close(ours[name], values, equal_nan=True, rtol=0, atol=1e-6)


def test_training_batches_are_the_reference_s_crops_where_nothing_is_resized_twice():
    """A 24-pixel image is stored as it is for a student that sees 16: what remains is rounding, by one of 255."""
    data = of_size(12, (24, 24))
    ours, reference = stored(data, True), collator(True)
    for epoch in range(3):
        ours.collator.set_epoch(epoch)
        reference.set_epoch(epoch)
        batch, expected = batch_of(ours, 0, 7, 3), reference([data[i] for i in (0, 7, 3)])
        assert torch.equal(batch["labels"], expected["labels"])
        assert (batch["pixel_values"] - expected["pixel_values"]).abs().max() < 1.01 * 2 / 255


def test_crops_of_any_shape_show_the_same_part_of_the_image():
    """On images without fine detail, stored squashed to a square: colours that run from side to side."""
    across, down = np.meshgrid(np.linspace(0, 255, 90), np.linspace(0, 255, 60))
    picture = np.stack([across, down, np.zeros_like(down)], axis=-1).astype(np.uint8)
    data = Dataset.from_dict({"image": [picture] * 3}, features=Features({"image": ImageFeature()}))
    wide = ViTImageProcessorPil(size={"height": 16, "width": 24})
    for processor in (PROCESSOR, wide):
        ours, reference = stored(data, True, image_processor=processor), collator(True, processor)
        for epoch in range(20):
            ours.collator.set_epoch(epoch)
            reference.set_epoch(epoch)
            difference = batch_of(ours, 0)["pixel_values"] - reference([data[0]])["pixel_values"]
            assert difference.abs().max() < 0.06  # of a range of 2: half a pixel of the store


def gradient_energy(batch: dict[str, torch.Tensor]) -> float:
    return batch["pixel_values"].diff(dim=-1).square().mean().item()


def test_a_larger_store_has_crops_nearer_to_the_reference_s_in_sharpness():
    """Of noisy pictures that are several times as large as the student's input, as photographs are."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 60, 90, 3), dtype=np.uint8)
    data = Dataset.from_dict({"image": list(noise)}, features=Features({"image": ImageFeature()}))
    reference, stores = collator(True), {scale: stored(data, True, scale=scale) for scale in (1, 2)}
    energies = {scale: [] for scale in ("plain", *stores)}
    for epoch in range(10):
        reference.set_epoch(epoch)
        energies["plain"].append(gradient_energy(reference(list(data))))
        for scale, ours in stores.items():
            ours.collator.set_epoch(epoch)
            energies[scale].append(gradient_energy(batch_of(ours, *range(8))))
    shares = {scale: np.mean(energies[scale]) / np.mean(energies["plain"]) for scale in stores}
    assert abs(shares[2] - 1) < abs(shares[1] - 1)
    assert MadkdTrainingArguments.image_store_scale == 2


def test_a_batch_does_not_depend_on_what_else_is_in_it():
    ours = stored(of_size(6, (30, 40), (24, 24)), True)
    assert torch.equal(batch_of(ours, 4, 1, 5)["pixel_values"][1:2], batch_of(ours, 1)["pixel_values"])


def test_threads_make_the_same_batch_and_leave_pytorch_s_setting_alone(two_threads):
    ours = stored(of_size(7, (30, 40), (24, 24)), True)
    in_threads = batch_of(ours, *range(7))["pixel_values"]
    with ThreadPoolExecutor(1) as another:
        assert torch.get_num_threads() == another.submit(torch.get_num_threads).result() == 2
    torch.set_num_threads(1)
    assert torch.equal(in_threads, batch_of(ours, *range(7))["pixel_values"])


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_crops_are_made_where_the_batch_is_finished_if_the_store_is_there():
    data = rows(6)
    later = stored(data, True)
    at_once = StoreCollator(later.collator, data, later.store, later.scale, later.bias, defer=False)
    assert "pixels" not in later([3, 0]) and "crops" not in at_once([3, 0])
    assert torch.equal(batch_of(later, 3, 0)["pixel_values"], batch_of(at_once, 3, 0)["pixel_values"])


def test_accelerate_may_join_and_divide_batches_whose_crops_are_still_to_be_made():
    ours = stored(rows(6), True)
    joined = concatenate([ours([3, 0]), ours([1, 5])])
    part = slice_tensors(joined, slice(1, 3))
    ours.finish(part)
    assert torch.equal(part["pixel_values"], batch_of(ours, 0, 1)["pixel_values"])


def test_a_worker_that_is_no_fork_maps_the_same_file():
    ours = stored(rows(6), True)
    again = pickle.loads(pickle.dumps(ours))
    assert len(pickle.dumps(ours.store)) < 400
    assert torch.equal(batch_of(again, 5, 2)["pixel_values"], batch_of(ours, 5, 2)["pixel_values"])


def losses(folder, **settings) -> list[float]:
    settings = {"num_train_epochs": 3, "eval_strategy": "epoch", "seed": 5, "image_store_scale": 1.5, **settings}
    made = MadkdTrainer(
        student(), arguments(folder, **settings), train_dataset=TRAIN, eval_dataset=rows(8), processing_class=PROCESSOR
    )
    made.train()
    return [entry[name] for entry in made.state.log_history for name in ("loss", "eval_loss") if name in entry]


TRAIN = of_size(12, (24, 24))


def test_training_follows_the_reference_s_curve(tmp_path, cache):
    reference = losses(tmp_path / "none", image_store="none")
    assert not cache.exists()
    assert losses(tmp_path / "auto") == pytest.approx(reference, rel=0.02)
    assert len(list(cache.iterdir())) == 2  # training and evaluation


def test_training_is_the_same_wherever_batches_are_made(tmp_path, monkeypatch, two_threads):
    """In threads, in workers, which are forks without them, or at once in the data loader."""
    expected = losses(tmp_path / "here", num_train_epochs=2)
    workers = losses(tmp_path / "workers", num_train_epochs=2, dataloader_num_workers=2)
    assert workers == pytest.approx(expected, rel=1e-6)
    open_store = trainer.store_collator

    def at_once(*args, **kwargs):
        made = open_store(*args, **kwargs)
        made.defer = False
        return made

    monkeypatch.setattr(trainer, "store_collator", at_once)
    assert losses(tmp_path / "loader", num_train_epochs=2) == pytest.approx(expected, rel=1e-6)


def test_images_that_are_evaluated_in_crops_are_not_taken_for_those_trained_on(tmp_path):
    curves = []
    for eval_strategy in ("no", "epoch"):
        made = MadkdTrainer(
            student(),
            arguments(tmp_path, num_train_epochs=2, eval_strategy=eval_strategy, logging_steps=1, seed=5),
            train_dataset=TRAIN,
            eval_dataset=rows(4),
            data_collator=collator(True),
        )
        made.train()
        curves.append([entry["loss"] for entry in made.state.log_history if "loss" in entry])
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)


@pytest.mark.gpu
def test_a_store_on_the_accelerator_makes_the_crops_of_the_disk():
    data = of_size(32, (90, 60), (40, 40))
    make = collator(True)
    there = store_collator(make, data, "device", torch.device("cuda"))
    assert there.store.pixels.is_cuda and there.defer
    expected = batch_of(store_collator(make, data, "disk", CPU), 0, 5, 31)["pixel_values"]
    assert (batch_of(there, 0, 5, 31)["pixel_values"].cpu() - expected).abs().max() < 1.01 * 2 / 255


# What a store survives


def rendering(dataset: Dataset, broken_at: int | None = None):
    """Opens a store of an identity rendering; returns it and how many images were rendered."""
    count = 0

    def render(image):
        nonlocal count
        count += 1
        if count == broken_at:
            raise KeyboardInterrupt
        return np.asarray(image.resize((24, 24)))

    try:
        return ImageStore.open(dataset, "image", render, (24, 24), "plain", disable_tqdm=True), count
    except KeyboardInterrupt:
        return None, count


@pytest.fixture
def slowly(monkeypatch):
    """One thread, and a place to go on from after every two images."""
    monkeypatch.setattr(image_store, "count_cores", lambda: 1)
    monkeypatch.setattr(image_store, "CHUNK", 2)


def test_an_interrupted_store_goes_on_where_it_stopped(slowly):
    data = of_size(8, (24, 24))
    assert rendering(data, broken_at=6)[0] is None
    finished, rendered = rendering(data)
    assert rendered == 4  # the chunk in which it stopped, and the rest
    assert np.array_equal(finished.pixels.numpy(), [np.asarray(image) for image in data["image"]])
    assert rendering(data)[1] == 0


@pytest.mark.parametrize("file", ["pixels.npy", "images.npy"])
@pytest.mark.parametrize("left", [0, 300])
def test_a_truncated_store_is_rebuilt(slowly, cache, file, left):
    data = of_size(8, (24, 24))
    rendering(data)
    (path,) = cache.glob(f"*/{file}")
    path.write_bytes(path.read_bytes()[:left])
    again, rendered = rendering(data)
    assert rendered == 8
    assert np.array_equal(again.pixels.numpy(), [np.asarray(image) for image in data["image"]])


def test_other_images_or_another_rendering_is_another_store(cache):
    data = rows(4)
    for make in (True, False):
        stored(data, make)
    stored(data.select([1, 0, 2, 3]), True)
    stored(data, True, image_processor=ViTImageProcessorPil(size={"height": 8, "width": 8}))
    assert len(list(cache.iterdir())) == 4
    stored(data, True, seed=3, crop_scale=0.5)  # draws other crops of the same images
    assert len(list(cache.iterdir())) == 4


def test_other_columns_are_the_same_store_and_other_rows_are_another(cache):
    data = rows(6)
    stored(data, True)
    answers = data.map(lambda row: {"aspect_logits": [0.0, 0.0, 0.0]})
    for same in (answers, data.remove_columns(["aspect_logits", "aspect_bank"]), data.rename_column("label", "kind")):
        stored(same, True)
    stored(data.filter(lambda row: True).with_format("numpy"), True)
    stored(data.cast_column("image", ImageFeature(decode=False)), True)
    assert len(list(cache.iterdir())) == 1
    for other in (data.shuffle(seed=1), data.select(range(5)), data.cast_column("image", ImageFeature(mode="L"))):
        stored(other, True)
    assert len(list(cache.iterdir())) == 4


def test_a_file_that_was_replaced_is_not_believed_to_be_the_same(tmp_path, cache):
    files = [tmp_path / f"{i}.png" for i in range(3)]

    def pixels(pictures: list) -> torch.Tensor:
        for file, picture in zip(files, pictures):
            picture.save(file)
        data = Dataset.from_dict({"image": [str(file) for file in files]}).cast_column("image", ImageFeature())
        return stored(data, False)([0, 1, 2])["pixels"].clone()

    first = pixels(tiny.images(3, 16))
    again = stored(Dataset.from_dict({"image": list(map(str, files))}).cast_column("image", ImageFeature()), False)
    assert torch.equal(again([0, 1, 2])["pixels"], first) and len(list(cache.iterdir())) == 1
    second = pixels(tiny.images(3, 16, seed=9))
    assert not torch.equal(first, second) and len(list(cache.iterdir())) == 2


def test_paths_that_are_no_files_here_are_told_apart_by_their_names():
    def digest(*paths: str | None) -> str:
        images = [path and {"bytes": None, "path": path} for path in paths]
        return image_store.images_digest(
            Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()})), "image"
        )

    known = [("hf://datasets/a/1.png",), ("hf://datasets/a/2.png",), ("zip://1.png::/a.zip",), (None,), (None, None)]
    assert len({digest(*paths) for paths in known}) == len(known) and digest(*known[0]) == digest(*known[0])


def test_an_image_that_cannot_be_read_is_named():
    data = of_size(3, (24, 24)).cast_column("image", ImageFeature(decode=False))
    broken = data.map(lambda row, i: {"image": row["image"] if i != 1 else {"bytes": b"none", "path": None}}, True)
    with pytest.raises(ValueError, match="image of row 1 cannot be read .*: repair it, or leave that row out"):
        stored(broken.cast_column("image", ImageFeature()), True)


def test_a_row_without_an_image_is_named():
    data = Dataset.from_dict({"image": [*tiny.images(2), None]}, features=Features({"image": ImageFeature()}))
    with pytest.raises(ValueError, match=r"^Row 2 has no image: leave it out\.$"):
        stored(data, True)


# Where there is no room, or no sense


def with_free(monkeypatch, free: int) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, free))


def test_a_store_that_does_not_fit_is_refused_before_it_is_built(monkeypatch, cache):
    with_free(monkeypatch, 8 * 24 * 24 * 3 - 1)
    with pytest.raises(ValueError, match=r"need 0.0 GB and .* has 0.0 GB free: set HF_DATASETS_CACHE .* none"):
        stored(of_size(8, (24, 24)), True)
    assert not list(cache.glob("*/*.npy"))


def test_auto_decodes_in_every_epoch_where_half_of_the_disk_would_go(monkeypatch, caplog):
    with_free(monkeypatch, 2 * 8 * 24 * 24 * 3 - 1)
    assert stored(of_size(8, (24, 24)), True, "auto") is None
    assert "Images are decoded in every epoch: they would take" in caplog.text
    with_free(monkeypatch, 2 * 8 * 24 * 24 * 3)
    assert stored(of_size(8, (24, 24)), True, "auto") is not None


def test_a_store_that_is_there_needs_no_room_again(monkeypatch, slowly, caplog):
    """Else a second run, or a second process, would decode in every epoch what the first has stored."""
    data, needed = of_size(8, (24, 24)), 8 * 24 * 24 * 3
    with_free(monkeypatch, 2 * needed)
    assert stored(data, True, "auto") is not None
    with_free(monkeypatch, 0)
    assert stored(data, True, "auto") is not None and not caplog.text


def test_a_store_that_was_begun_needs_no_room_again(monkeypatch, slowly):
    data = of_size(8, (24, 24))
    assert rendering(data, broken_at=6)[0] is None
    with_free(monkeypatch, 0)
    finished, rendered = rendering(data)
    assert finished is not None and rendered == 4


def test_a_truncated_store_is_removed_before_it_is_asked_what_is_free(monkeypatch, cache):
    data = of_size(8, (24, 24))
    rendering(data)
    (path,) = cache.glob("*/pixels.npy")
    path.write_bytes(path.read_bytes()[:-1])
    usage = namedtuple("usage", "total used free")
    needed = 8 * 24 * 24 * 3
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 0, 0 if path.exists() else needed))
    assert rendering(data)[1] == 8


def test_evaluation_images_that_cannot_be_stored_are_decoded(tmp_path, cache, caplog):
    """Found out at the first evaluation, perhaps after hours, so that it stops nothing."""
    made = MadkdTrainer(
        student(),
        arguments(tmp_path, image_store="disk", eval_strategy="epoch", num_train_epochs=1),
        train_dataset=TRAIN,
        eval_dataset=rows(8).with_transform(lambda batch: batch),
        processing_class=PROCESSOR,
    )
    with caplog.at_level(logging.WARNING):
        made.train()
    assert "eval_loss" in made.state.log_history[-2]
    assert "Images are decoded in every epoch: the dataset has a transform of its own" in caplog.text
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow"])
def test_a_format_of_datasets_is_no_other_image(kind):
    data = rows(6, unlabelled=(2,))
    expected = batch_of(stored(data, True), 1, 2, 5)
    found = batch_of(stored(data.with_format(kind), True), 1, 2, 5)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, equal_nan=True, rtol=0, atol=0)


class Equalising(ViTImageProcessorPil):
    """Does to pixels what no rescaling does."""

    def __call__(self, images, **settings):
        batch = super().__call__(images, **settings)
        batch["pixel_values"] = batch["pixel_values"] ** 2
        return batch


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda data: data.with_transform(lambda batch: batch),
            "the dataset has a transform of its own, which may change its images",
        ),
        (lambda data: data.rename_column("image", "photo"), "the column 'image' is not one of images"),
    ],
    ids=["transformed", "no images"],
)
def test_what_a_store_would_not_see_is_decoded_in_every_epoch(change, reason, caplog):
    with caplog.at_level(logging.WARNING):
        assert stored(change(rows(4)), True, "auto") is None
    assert reason in caplog.text
    with pytest.raises(ValueError, match=f"{reason}.* Pass --image_store none"):
        stored(change(rows(4)), True)


@pytest.mark.parametrize("augment", [False, True])
def test_an_image_processor_that_does_more_than_normalise_is_left_to_do_it(augment, caplog):
    strange = Equalising(size={"height": 16, "width": 16})
    assert stored(rows(4), augment, "auto", image_processor=strange) is None
    assert "the image processor does more to pixels than to rescale and normalise them" in caplog.text


def test_row_numbers_are_what_is_sampled():
    sampled = StoredRows(rows(4))
    assert len(sampled) == 4 and sampled[3] == 3
