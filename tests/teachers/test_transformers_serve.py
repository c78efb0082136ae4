"""`transformers serve` and the demo's own teacher: its decisions are the local teacher's answers."""

from __future__ import annotations

import pytest
from builders.labelling_jobs import EASY_VQA
from builders.real_servers import transformers_serve
from transformers.utils.import_utils import is_serve_available

from madkd_hf import AspectBank, AspectTeacher
from madkd_hf.teachers import load_teacher


TEACHER = EASY_VQA / "teacher"
IMAGES = 50

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="pip install 'transformers[serving]'"),
]


@pytest.fixture(scope="module")
def readings(tmp_path_factory):
    """What the teacher says here, and what it says behind the server."""
    from recipes.easy_vqa.data import load_easy_vqa

    bank = AspectBank.load(EASY_VQA / "aspects.json")
    images = [row["image"] for row in load_easy_vqa()["test"].select(range(IMAGES))]
    local = AspectTeacher.from_pretrained(str(TEACHER), device="cpu").read(images, bank)
    with transformers_serve(TEACHER, tmp_path_factory.mktemp("serve") / "log.txt") as url:
        teacher = load_teacher(url, model=str(TEACHER))
        return local, teacher.read(images, bank), teacher


def test_answers_are_the_local_teachers_within_the_softmax_of_float32(readings):
    local, served, teacher = readings
    z, dz = local.logits.double(), (local.logits.double() - served.logits.double()).abs()
    p, exact = z.sigmoid(), z < 8
    dp = (p - served.logits.double().sigmoid()).abs()
    print(f"\n{IMAGES} images, {z.numel()} answers by {teacher.dialect.name}; z has sd {z.std():.2f}")
    print(
        f"largest difference of p {dp.max():.1e}; of z {dz[exact].max():.1e} where z < 8 ({exact.double().mean():.0%})"
    )
    print(f"and {dz.max():.1e} anywhere; mass {teacher.provenance['mass']}, here at least {local.mass.min():.6f}")
    step = 2.0**-24  # of float32 just below 1; smaller numbers have smaller steps
    assert not served.missing.any() and served.mass is None
    assert (dz <= 1e-4 * z.std() + 2 * step / (1 - p)).all() and dp.max() < 1e-5
    assert exact.double().mean() > 0.5 and z.std() > 3  # there was something to be confused


def test_the_server_is_recognised(readings):
    *_, teacher = readings
    assert teacher.dialect.name == "systemone" and teacher.provenance["precision"] == "probabilities of float32"
