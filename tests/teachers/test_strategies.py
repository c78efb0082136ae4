"""Every way of reading gives what the reference gives, and the self-check catches those that do not."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from builders import tiny
from builders.questions import QUESTIONS, bank, pictures
from builders.tiny_mllms import MLLMS, llava, mllm
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from madkd_hf import AspectTeacher
from madkd_hf.teachers import UnreadableImageError
from madkd_hf.teachers.mllm import cascade, layout, selfcheck, strategies
from madkd_hf.teachers.mllm.answers import answer_token_ids, log_odds_and_mass
from madkd_hf.teachers.mllm.prompt import chat_text


pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # PaliGemma's processor
]

PREFIX_LM = {"paligemma"}
STATEFUL = {"qwen3_5"}
CHUNKED = {"chunked_llava"}


def texts(processor: ProcessorMixin, questions: list[str] = QUESTIONS) -> list[str]:
    return [chat_text(processor, question) for question in questions]


def layout_of(model: PreTrainedModel, processor: ProcessorMixin, questions: list[str] = QUESTIONS) -> layout.Layout:
    return layout.Layout(processor, texts(processor, questions), layout.image_token_id(model, processor))


def reduce(processor: ProcessorMixin):
    yes, no = answer_token_ids(processor.tokenizer)
    return functools.partial(log_odds_and_mass, yes_ids=list(yes.values()), no_ids=list(no.values()))


def read(name: str, strategy: str, images: list[Image.Image] | None = None, size: int = 16) -> torch.Tensor:
    """Log-odds and mass [2, n, Q]."""
    model, processor = mllm(name)
    with torch.inference_mode():
        cut = layout_of(model, processor)
        return torch.stack(
            strategies.read(model, cut, pictures() if images is None else images, strategy, size, reduce(processor))
        )


@functools.cache
def reference(name: str) -> torch.Tensor:
    return read(name, "full")


@functools.cache
def prepared(name: str) -> AspectTeacher:
    """One that has chosen how to read, in float32."""
    teacher = AspectTeacher(*mllm(name))
    teacher.prepare(pictures(), bank())
    return teacher


def exact(name: str) -> list[str]:
    return [
        strategy
        for strategy in strategies.STRATEGIES
        if not (name in PREFIX_LM and strategy in ("prefix_cache", "packed", "cascade"))
        and not (name in STATEFUL | CHUNKED and strategy in ("packed", "cascade"))
    ]


# Equality


@pytest.mark.parametrize(
    ("name", "strategy"), [(name, strategy) for name in MLLMS for strategy in exact(name) if strategy != "full"]
)
def test_every_strategy_reads_what_the_reference_reads(name, strategy):
    expected = reference(name)
    assert expected[0].std(0).min() > 0.01 and expected[0].std(1).min() > 0.01  # or the test shows nothing
    tolerance = 5e-4 if name in STATEFUL else 2e-5
    torch.testing.assert_close(read(name, strategy), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", MLLMS)
def test_the_gate_keeps_what_is_exact_and_nothing_else(name):
    model, processor = mllm(name)
    assert selfcheck.allowed(model, layout_of(model, processor)) == exact(name)


@pytest.mark.parametrize("strategy", strategies.STRATEGIES)
@pytest.mark.parametrize("name", ["internvl", "qwen2_vl", "sliding_internvl"])
def test_the_order_of_images_and_the_size_of_batches_do_not_matter(name, strategy):
    expected = reference(name)
    for size in (1, 2, 7, 100):
        backwards = read(name, strategy, pictures()[::-1], size).flip(1)
        torch.testing.assert_close(backwards, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(read(name, strategy, pictures()[:1]), expected[:, :1], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", MLLMS)
def test_prefix_and_suffix_are_the_tokens_of_the_full_prompt(name):
    model, processor = mllm(name)
    cut = layout_of(model, processor)
    for image in pictures()[:3]:
        prefix = cut.prefix(layout.encode(processor, image, cut.texts[0]))["input_ids"][0].tolist()
        for suffix, text in zip(cut.suffixes, cut.texts):
            assert prefix + suffix == layout.encode(processor, image, text)["input_ids"][0].tolist()
    assert min(map(len, cut.suffixes)) >= 1


@pytest.mark.parametrize("strategy", ["shared_vision", "prefix_cache", "packed", "cascade"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_any_attention_implementation_reads_the_same_and_is_left_as_it_was(strategy, implementation):
    model, processor = mllm("internvl")
    model.set_attn_implementation(implementation)
    with torch.inference_mode():
        found = strategies.read(model, layout_of(model, processor), pictures(), strategy, 16, reduce(processor))
    torch.testing.assert_close(torch.stack(found), reference("internvl"), atol=2e-5, rtol=0)
    assert model.config.get_text_config()._attn_implementation == implementation


# The parts


def test_a_tree_holds_common_beginnings_once():
    tree = layout.Tree([[1, 2, 3], [1, 2], [1, 4], [5]], torch.device("cpu"))
    assert tree.tokens.tolist() == [1, 2, 3, 4, 5] and tree.depth.tolist() == [0, 1, 2, 1, 0]
    assert tree.answers.tolist() == [2, 1, 3, 4] and tree.home.tolist() == [0, 1, 2, 7, 9]
    seen = {row: set(tree.ancestors[row].nonzero().flatten().tolist()) for row in range(5)}
    assert seen == {0: {0}, 1: {0, 1}, 2: {0, 1, 2}, 3: {0, 3}, 4: {4}}


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_blocks_and_buckets_hold_every_question_once(size):
    cut = layout_of(*mllm("internvl"))
    for blocks in (cut.blocks(size), cut.buckets(size)):
        assert sorted(question for block in blocks for question in block) == list(range(len(QUESTIONS)))
        assert max(map(len, blocks)) <= size
    assert len(cut.buckets(100)) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", ["nothing", "the future", "all but a few"])
def test_attention_and_its_logsumexp(hidden, dtype):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 8, generator=generator).to(dtype) for _ in range(3))
    visible = None if hidden != "all but a few" else torch.eye(5, dtype=torch.bool)
    out, total = cascade.attend(query, key, value, 0.3, visible, causal=hidden == "the future")
    scores = (query.float() @ key.float().transpose(-1, -2)) * 0.3
    mask = {"nothing": torch.ones(5, 5), "the future": torch.ones(5, 5).tril(), "all but a few": torch.eye(5)}[hidden]
    scores = scores.masked_fill(mask == 0, -torch.inf)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.float(), scores.softmax(-1) @ value.float(), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(total.float(), scores.logsumexp(-1), atol=tolerance, rtol=tolerance)


def test_a_query_that_sees_nothing_gets_zeros_and_no_weight():
    states = torch.randn(1, 1, 2, 4)
    out, total = cascade.attend(states, states, states, visible=torch.tensor([[False, False], [True, False]]))
    assert out[0, 0, 0].tolist() == [0] * 4 and total[0, 0, 0] == -torch.inf
    assert torch.isfinite(out).all()


# The choice


@pytest.mark.parametrize("name", MLLMS)
def test_auto_takes_the_exact_strategy_with_the_least_work(name):
    teacher = prepared(name)
    plan = teacher.plan
    if name in PREFIX_LM:
        assert plan["strategy"] == "shared_vision"
    else:
        assert plan["strategy"] == ("prefix_cache" if name in STATEFUL | CHUNKED else "cascade")
    assert set(plan["errors"]) == set(exact(name)) and max(plan["errors"].values()) < selfcheck.TOLERANCE
    assert teacher.provenance["strategy"] == plan["strategy"]


def test_the_work_of_each_strategy_is_counted_as_told():
    """By hand: 16 patches, a prefix of 10 tokens, suffixes of 1, 2 and 4 of which the last two share their first."""
    model, processor = mllm("internvl")
    cut = layout_of(model, processor, QUESTIONS[:3])
    cut.suffixes = [[1], [2, 3], [2, 4, 5, 6]]
    assert selfcheck.patches(layout.encode(processor, pictures()[0], cut.texts[0]), model) == 16
    text = model.config.get_text_config()
    words = text.vocab_size * 16
    weights = sum(parameter.numel() for parameter in model.get_decoder().parameters()) - words
    vision = sum(parameter.numel() for parameter in model.base_model.parameters()) - weights - words
    by_hand = {  # images encoded, tokens read, pairs of query and key
        "full": (3, 11 + 12 + 14, 11**2 + 12**2 + 14**2),
        "shared_vision": (1, 11 + 12 + 14, 11**2 + 12**2 + 14**2),
        "prefix_cache": (1, 10 + 1 + 2 + 4, 10**2 + 1 * 11 + 2 * 12 + 4 * 14),
        "packed": (1, 10 + 6, 10**2 + 6 * 16),
        "cascade": (1, 10 + 6, 10**2 + 6 * 10 + 3 * 4**2),
    }
    for name, (encoded, tokens, pairs) in by_hand.items():
        assert selfcheck.work(name, cut, 10) == (encoded, tokens, pairs)
        expected = 2 * weights * tokens + 4 * 2 * 16 * pairs + 2 * words * 3 + 2 * vision * 16 * encoded
        assert selfcheck.flops(name, cut, 10, model, 16) == expected


def no_mask(model, tree, length):
    return torch.zeros(1, 1, len(tree.tokens), length + len(tree.tokens))


def not_restarted(original):
    def tree(*args):
        made = original(*args)
        made.depth = torch.arange(len(made.tokens))
        return made

    return tree


def shifted(original):
    def read_prefix(*args):
        cache, start = original(*args)
        return cache, start + 1

    return read_prefix


def cut_short(original):
    def prefix(self, inputs):
        return {k: v[:, :-1] if k == "input_ids" else v for k, v in original(self, inputs).items()}

    return prefix


def no_merge(query, key, value, *rest, causal=False, **options):
    out, total = cascade_attend(query, key, value, *rest, causal=causal, **options)
    return out, torch.zeros_like(total)


cascade_attend = cascade.attend
BROKEN = {
    "no block mask": (strategies, "_tree_masks", lambda _: no_mask, {"packed"}),
    "positions not restarted": (layout, "Tree", not_restarted, {"packed", "cascade"}),
    "prefix shifted by one": (strategies, "_read_prefix", shifted, {"prefix_cache", "packed", "cascade"}),
    "prefix cut by one": (layout.Layout, "prefix", cut_short, {"shared_vision", "prefix_cache", "packed", "cascade"}),
    "sums ignored": (cascade, "attend", lambda _: no_merge, {"cascade"}),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("internvl", torch.float32),
        ("qwen2_vl", torch.float32),
        pytest.param("gemma3", torch.float32, marks=pytest.mark.slow),
        ("internvl", torch.bfloat16),
        pytest.param("qwen2_vl", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("gemma3", torch.bfloat16, marks=pytest.mark.slow),  # processors without bfloat16 emulate it
    ],
)
def test_a_broken_strategy_is_caught_and_another_taken(fault, name, dtype, monkeypatch):
    owner, attribute, breaking, broken = BROKEN[fault]
    model, processor = mllm(name)
    model = lower(model, dtype)
    monkeypatch.setattr(owner, attribute, breaking(getattr(owner, attribute)))
    plan = AspectTeacher(model, processor).prepare(pictures(), bank())
    found = {strategy for strategy, error in plan["errors"].items() if error is None or error > selfcheck.TOLERANCE}
    assert broken <= found and plan["strategy"] not in broken
    for strategy in broken:
        with pytest.raises(ValueError, match=f"is misread by strategy='{strategy}'.*use strategy='auto'"):
            AspectTeacher(model, processor, strategy).read(pictures(), bank())


def lower(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model in another dtype, as loading it would give it."""
    if dtype == torch.float32:
        return model
    lowered = type(model)._from_config(model.config, dtype=dtype).eval()
    lowered.load_state_dict(model.state_dict())
    return lowered


OF_EACH_KIND = {"internvl", "qwen2_vl", "sliding_llava", "gemma3", *PREFIX_LM, *STATEFUL, *CHUNKED}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OF_EACH_KIND else pytest.mark.slow) for name in MLLMS]
)
def test_the_choice_in_bfloat16_is_that_in_float32(name):
    model, processor = mllm(name)
    teacher = AspectTeacher(lower(model, torch.bfloat16), processor)
    assert teacher.model.dtype == torch.bfloat16
    plan = teacher.prepare(pictures(), bank())
    assert plan["strategy"] == prepared(name).plan["strategy"]


def test_forcing_a_strategy_that_misreads_names_the_error_measured():
    with pytest.raises(
        ValueError, match=r"PaliGemma\S* is misread by strategy='cascade'.*off by [1-9]\.?\d* standard"
    ):
        AspectTeacher(*mllm("paligemma"), strategy="cascade").read(pictures(), bank())


SHORT = ["is there a red shape ?", "is there a big blue shape ?", "a shape ?"]
LONG = [f"is there {' or '.join(['a big red shape in the image'] * 4)} ?", "is there a red shape ?", "a blue shape ?"]


@pytest.mark.parametrize("strategy", ["auto", "shared_vision", "prefix_cache", "packed", "cascade"])
@pytest.mark.parametrize(
    "text",
    [
        {
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
            "max_position_embeddings": 40,
        },
        {"model_type": "phimoe", "sliding_window": 40, "num_local_experts": 2},
        {"model_type": "qwen2", "sliding_window": 40, "use_sliding_window": True, "max_window_layers": 1},
        {"model_type": "llama4_text", "attention_chunk_size": 40},
    ],
    ids=["dynamic rope", "window in the mask only", "window", "chunks"],
)
def test_prompts_longer_than_those_of_the_check_are_read_right(text, strategy):
    """Up to 40 tokens nothing shows: what begins there has to be known from the configuration."""
    torch.manual_seed(0)
    chunks = text.get("model_type") == "llama4_text"
    if chunks:
        model, processor = mllm("chunked_llava")
        model.config.text_config.attention_chunk_size = 40
    else:
        model, files = llava(**text)
        processor = files.load()
        tiny.widen(model)
    model.eval()
    assert max(map(len, rows(model, processor, SHORT))) < 40 < max(map(len, rows(model, processor, LONG)))
    teacher = AspectTeacher(model, processor, strategy)
    if chunks and strategy in ("packed", "cascade"):
        with pytest.raises(ValueError, match=f"is misread by strategy='{strategy}' .on longer prompts"):
            teacher.read(pictures(), bank(SHORT))
        return
    teacher.read(pictures(), bank(SHORT))
    expected = AspectTeacher(model, processor, "full").read(pictures(), bank(LONG))
    torch.testing.assert_close(teacher.read(pictures(), bank(LONG)).logits, expected.logits, atol=5e-5, rtol=0)


def rows(model: PreTrainedModel, processor: ProcessorMixin, questions: list[str]) -> list[list[int]]:
    cut = layout_of(model, processor, questions)
    prefix = cut.prefix(layout.encode(processor, pictures()[0], cut.texts[0]))["input_ids"][0].tolist()
    return [prefix + suffix for suffix in cut.suffixes]


def test_a_single_question_whose_answers_hardly_differ_is_measured_by_their_size():
    model, processor = mllm("paligemma")
    with torch.no_grad():
        model.lm_head.weight *= 1e-4
    with pytest.raises(ValueError, match="is misread by strategy='cascade'"):
        AspectTeacher(model, processor, "cascade").read(pictures()[:1], bank(SHORT[:1]))
    plan = AspectTeacher(*mllm("internvl")).prepare(
        pictures(), bank(["zebra ?", "gnu ?"])
    )  # unknown words: one prompt
    assert plan["strategy"] == "cascade"


def test_teachers_in_two_threads_do_not_mix():
    teachers = [AspectTeacher(*mllm(name), "cascade") for name in ("internvl", "qwen2_vl")]
    expected = [teacher.read(pictures(), bank()).logits for teacher in teachers]

    def read_often(teacher):
        return [teacher.read(pictures(), bank()).logits for _ in range(10)]

    with ThreadPoolExecutor(2) as pool:
        for found, right in zip(pool.map(read_often, teachers), expected):
            for logits in found:
                torch.testing.assert_close(logits, right, atol=2e-5, rtol=0)


def test_a_model_put_back_into_training_is_read_without_dropout():
    model, processor = mllm("internvl")
    teacher = AspectTeacher(model, processor)
    expected = teacher.read(pictures(), bank()).logits
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    model.train()
    torch.testing.assert_close(teacher.read(pictures(), bank()).logits, expected)


def test_inputs_are_in_the_model_s_dtype():
    model, processor = mllm("internvl")
    inputs = layout.encode(processor, pictures()[0], texts(processor)[0], lower(model, torch.bfloat16))
    assert inputs["pixel_values"].dtype == torch.bfloat16 and inputs["input_ids"].dtype == torch.int64


def test_what_merely_has_the_shape_of_the_tokens_is_not_cut():
    """A mask over patches, as many as one of the prompts has tokens."""
    model, processor = mllm("internvl")
    count = layout.encode(processor, pictures()[0], texts(processor)[0])["input_ids"].shape[1]

    class WithPatchMask(type(processor)):
        def __call__(self, *args, **kwargs):
            inputs = super().__call__(*args, **kwargs)
            inputs["patch_mask"] = torch.ones(1, count, dtype=torch.long)
            return inputs

    processor.__class__ = WithPatchMask
    cut = layout_of(model, processor)
    inputs = layout.encode(processor, pictures()[0], cut.texts[0])
    assert layout.per_token(inputs) == ["input_ids", "attention_mask", "patch_mask"]
    assert cut.prefix(inputs)["patch_mask"].shape[1] == count > cut.prefix(inputs)["input_ids"].shape[1]


def test_a_question_with_a_special_token_is_named():
    with pytest.raises(ValueError, match=r"The prompt '.*is there <image> \?.*' cannot be put to this model"):
        AspectTeacher(*mllm("idefics3")).read(pictures(), bank(["is there <image> ?", "is there a shape ?"]))


def test_a_plan_that_is_given_is_kept():
    teacher = AspectTeacher(*mllm("internvl"))
    teacher.plan = {"strategy": "packed", "batch_size": 3, "errors": {}}
    teacher.read(pictures(), bank())
    assert teacher.plan == {"strategy": "packed", "batch_size": 3, "errors": {}}


# Memory


@pytest.mark.parametrize("strategy", ["prefix_cache", "packed", "cascade", "shared_vision"])
def test_a_batch_that_does_not_fit_is_halved_and_the_size_is_kept(strategy, monkeypatch):
    model, processor = mllm("internvl")
    teacher = AspectTeacher(model, processor, strategy, batch_size=64)
    expected = teacher.read(pictures(), bank()).logits
    largest = []

    def small_memory(logits):
        largest.append(logits.shape[0] * logits.shape[1])
        if largest[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return reduce(processor)(logits)

    monkeypatch.setattr(teacher, "reduce", small_memory)
    torch.testing.assert_close(teacher.read(pictures(), bank()).logits, expected, atol=2e-5, rtol=0)
    assert max(largest[-5:]) <= 4
    tries = len(largest)
    teacher.read(pictures(), bank())
    assert max(largest[tries:]) <= 4


def test_the_check_fits_into_memory_and_lack_of_it_is_no_wrong_reading(monkeypatch):
    model, processor = mllm("internvl")
    expected = AspectTeacher(model, processor).prepare(pictures(), bank())
    teacher, original = AspectTeacher(model, processor, batch_size=64), reduce(processor)

    def small_memory(logits):
        if logits.shape[0] * logits.shape[1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(logits)

    monkeypatch.setattr(teacher, "reduce", small_memory)
    plan = teacher.prepare(pictures(), bank())
    assert plan["strategy"] == expected["strategy"] and plan["batch_size"] <= 16


@pytest.mark.parametrize("batch_size", [1, 14, 1000])
def test_only_a_few_images_are_held_as_pixels(batch_size, monkeypatch):
    model, processor = mllm("internvl")
    held = []
    original = layout.encode

    def counted(*args):
        held.append(1)
        return original(*args)

    cut, images = layout_of(model, processor), [image for image in pictures() for _ in range(8)]
    monkeypatch.setattr(layout, "encode", counted)
    size = max(1, batch_size // len(cut))
    next(iter(layout.batches(images, cut, size, model)))
    assert len(held) == min(len(images), 1 if size == 1 else 4 * size)


def test_a_batch_has_no_more_tokens_than_allowed(monkeypatch):
    model, processor = mllm("internvl")
    cut = layout_of(model, processor)
    length = len(rows(model, processor, QUESTIONS)[0]) - len(cut.suffixes[0])
    monkeypatch.setattr(layout, "PREFIX_TOKENS", 2 * length)
    sizes = [len(batch) for _, batch in layout.batches(pictures()[:1] * 7, cut, 100, model)]
    assert sizes == [2, 2, 2, 1]


def test_large_photographs_are_not_processed_again_for_each_question_of_the_check(monkeypatch):
    model, processor = mllm("internvl")
    sizes, original = [], layout.encode

    def noting(processor, image, text, model=None):
        sizes.append(max(image.size))
        return original(processor, image, text, model)

    for module in (layout, selfcheck, strategies):
        monkeypatch.setattr(module, "encode", noting)
    teacher = AspectTeacher(model, processor)
    teacher.prepare([Image.new("RGB", (3000, 2000)), Image.new("RGB", (2000, 3000))], bank())
    assert len(teacher.plan["errors"]) == 5 and len(sizes) > 40
    assert sum(size == 3000 for size in sizes) <= 3 and sizes.count(selfcheck.SIDE) > 30


def test_what_does_not_fit_even_alone_is_told_in_one_sentence(monkeypatch):
    teacher = AspectTeacher(*mllm("internvl"))
    teacher.prepare(pictures(), bank())

    def no_memory(logits):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(teacher, "reduce", no_memory)
    with pytest.raises(ValueError, match="out of memory with one question about one image.*smaller dtype"):
        teacher.read(pictures(), bank())


def test_another_error_is_no_lack_of_memory(monkeypatch):
    teacher = AspectTeacher(*mllm("internvl"))
    teacher.prepare(pictures(), bank())

    def broken(logits):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(teacher, "reduce", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        teacher.read(pictures(), bank())


def test_an_image_that_the_processor_refuses_is_named_by_its_place():
    teacher = AspectTeacher(*mllm("qwen2_vl"))
    images = [*pictures(), Image.new("RGB", (1, 4000))]
    with pytest.raises(UnreadableImageError, match="image 5 of this batch is refused.*aspect ratio") as refused:
        teacher.read(images, bank())
    assert refused.value.index == 5
