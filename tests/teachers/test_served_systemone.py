"""What `systemone` sends and reads, against the code of `transformers serve` itself, without its web server."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from builders import tiny

from madkd_hf import AspectTeacher
from madkd_hf.teachers.served.dialects import Words
from madkd_hf.teachers.served.dialects.base import IMAGE
from madkd_hf.teachers.served.dialects.systemone import SystemOne
from madkd_hf.teachers.served.images import encode


def test_the_decision_pipeline_of_transformers_gives_the_numbers_of_the_local_teacher():
    pipelines = pytest.importorskip("transformers.pipelines")
    if not hasattr(pipelines, "DecisionPipeline"):
        pytest.skip("this version of transformers has no decisions")
    bank, images = tiny.bank(3), tiny.images(2, 16)
    prompt = "\n\n{question}\nAnswer Yes or No only."  # what the endpoint makes of a question
    local = AspectTeacher(tiny.internvl(), tiny.processor(), "full", prompt, answer_tokens=("Yes", "No"))
    truth = local.read(images, bank).logits.numpy()
    processor = tiny.processor()
    pipe = pipelines.DecisionPipeline(model=tiny.internvl(), tokenizer=processor.tokenizer, processor=processor)
    dialect = SystemOne("tiny", Words({}, {}))
    for image, expected in zip(images, truth):
        body = dialect.body(bank.questions)
        (asset,) = body["assets"].values()
        assert asset["data_base64"] == IMAGE
        asset["data_base64"] = encode(image).base64.decode()
        assert base64.b64decode(asset["data_base64"])[:4] == b"\x89PNG"
        request = {name: body[name] for name in ("state", "questions", "assets")}
        response = {"answers": pipe.postprocess(pipe.forward(pipe.preprocess(request)))}
        z = [dialect.log_odds(answer, None) for answer in dialect.answers(response, len(bank))]
        np.testing.assert_allclose(z, expected, atol=1e-4)
