"""The teacher: which tokens answer, what is asked, and that every strategy reads the same numbers."""

import json

import pytest
import torch
from builders import tiny
from builders.tiny_mllms import mllm
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from madkd_hf import Aspect, AspectBank, AspectTeacher
from madkd_hf.data.images import to_rgb
from madkd_hf.teachers.mllm.answers import answer_token_ids, log_odds_and_mass
from madkd_hf.teachers.mllm.layout import context_length, encode
from madkd_hf.teachers.mllm.prompt import chat_text
from madkd_hf.teachers.mllm.strategies import STRATEGIES


THETA = {"rope_theta": 1e4, "original_max_position_embeddings": 1000}


def different_images() -> list[Image.Image]:
    return [image.resize(size) for image, size in zip(tiny.images(3, 64), [(16, 16), (40, 20), (23, 60)])]


def teacher(**settings) -> AspectTeacher:
    return AspectTeacher(tiny.internvl(), tiny.processor(), **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("internvl")
    tiny.internvl().save_pretrained(path)
    tiny.processor().save_pretrained(path)
    return path


# Answers


def words(*tokens: str, metaspace: bool = False) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(["<unk>", *tokens])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace() if metaspace else pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize("space", [" ", "Ġ", "▁"])
def test_every_spelling_of_yes_and_no_counts_in_any_case_with_or_without_a_space(space):
    spellings = [f"{gap}{word}" for word in ("yes", "Yes", "YES", "no", "No", "NO") for gap in ("", space)]
    yes, no = answer_token_ids(words("maybe", *spellings, "nope", "yesterday"))
    assert sorted(yes.values()) == [2, 3, 4, 5, 6, 7]
    assert sorted(no.values()) == [8, 9, 10, 11, 12, 13]


def test_each_token_id_counts_once():
    """Where the tokenizer itself puts the space before a word, two spellings are one token."""
    yes, no = answer_token_ids(words("▁yes", "▁no", "no", metaspace=True))
    assert list(yes.values()) == [1]
    assert sorted(no.values()) == [2, 3]


def test_two_words_of_your_own_are_read_alone():
    tokenizer = words("yes", "Yes", "ĠYes", "no", "No")
    assert answer_token_ids(tokenizer, ("Yes", "No")) == ({"Yes": 2}, {"No": 5})


@pytest.mark.parametrize(
    ("tokens", "answers", "message"),
    [
        ("yes", None, "'no' is no single token for .*pass answer_tokens"),
        ("no", None, "'yes' is no single token for .*pass answer_tokens"),
        ("yes no", ("Yes", "no"), "'Yes' is no single token for .*pass answer_tokens"),
        ("yes no", ("yes",), r"takes two words.*received \('yes',\)"),
    ],
)
def test_answers_that_are_no_single_token_are_refused(tokens, answers, message):
    with pytest.raises(ValueError, match=message):
        answer_token_ids(words(*tokens.split()), answers)


def test_log_odds_and_mass_are_sums_of_probabilities():
    logits = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    log_odds, mass = log_odds_and_mass(logits, [1, 2], [5])
    probabilities = logits.double().softmax(-1)
    yes, no = probabilities[..., [1, 2]].sum(-1), probabilities[..., 5]
    torch.testing.assert_close(log_odds.double(), (yes / no).log(), atol=1e-5, rtol=0)
    torch.testing.assert_close(mass.double(), yes + no, atol=1e-6, rtol=0)
    assert log_odds.dtype == mass.dtype == torch.float32


# Prompt


def test_the_image_stands_before_the_question_in_the_models_own_template():
    text = chat_text(tiny.processor(), "is it {red} ?")
    assert text == "user : <image>Answer with yes or no. is it {red} ? assistant :"


def test_a_model_without_a_template_gets_the_image_and_the_text():
    processor = tiny.processor()
    processor.chat_template = None
    assert chat_text(processor, "is it red ?", "{question} yes or no ?") == "<image>is it red ? yes or no ?"


def test_a_template_that_writes_bos_gets_no_second_one():
    processor = tiny.processor()
    processor.tokenizer.bos_token = "<unk>"
    processor.tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", 1)]
    )
    processor.chat_template = "{{ bos_token }}" + processor.chat_template
    model, bank, images = tiny.internvl(), tiny.bank(), different_images()
    ids = encode(processor, images[0], chat_text(processor, "is it red ?"))["input_ids"][0].tolist()
    assert ids[:2] == [1, processor.tokenizer.convert_tokens_to_ids("user")]
    full, shared = (AspectTeacher(model, processor, strategy).read(images, bank) for strategy in ("full", "auto"))
    torch.testing.assert_close(shared.logits, full.logits, atol=1e-5, rtol=0)


# Reading


def test_a_reading_is_what_a_plain_loop_over_images_and_questions_gives():
    model, processor, bank, images = tiny.internvl(), tiny.processor(), tiny.bank(), different_images()
    tokens = processor.tokenizer.get_vocab()
    expected = torch.empty(len(images), len(bank), 2)
    for i, image in enumerate(images):
        for q, question in enumerate(bank.questions):
            text = f"user : <image>Answer with yes or no. {question} assistant :"
            with torch.no_grad():
                logits = model(**processor(images=image, text=text, return_tensors="pt")).logits[0, -1]
            yes, no = (logits[[tokens[word], tokens[word.title()]]].exp().sum() for word in ("yes", "no"))
            expected[i, q] = torch.stack([(yes / no).log(), (yes + no) / logits.exp().sum()])
    for strategy in STRATEGIES:
        reading = AspectTeacher(model, processor, strategy).read(images, bank)
        torch.testing.assert_close(torch.stack([reading.logits, reading.mass], -1), expected, atol=1e-5, rtol=1e-5)
    assert expected[..., 0].std(0).min() > 0.1 and expected[..., 0].std(1).min() > 0.1  # or the test shows nothing


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_question_alone_reads_the_same(strategy):
    bank = tiny.bank()
    alone = [AspectBank([aspect]) for aspect in bank]
    images = different_images()
    together = teacher(strategy="full").read(images, bank).logits
    apart = torch.cat([teacher(strategy=strategy).read(images, one).logits for one in alone], dim=1)
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=0)


def test_a_template_with_the_image_last_cannot_be_shared_and_is_read_in_full():
    processor = tiny.processor()
    processor.chat_template = (
        "{{ messages[0]['content'][1]['text'] }} {% for part in messages[0]['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %} assistant :"
    )
    reader = AspectTeacher(tiny.internvl(), processor)
    assert reader.read(different_images(), tiny.bank()).logits.shape == (3, 3)
    assert reader.provenance["strategy"] == "full"
    with pytest.raises(ValueError, match="InternVL.* puts the image behind the question.*use strategy='auto'"):
        AspectTeacher(tiny.internvl(), processor, "shared_vision").read(different_images(), tiny.bank())


def test_the_papers_own_target_is_the_softmax_over_yes_and_no():
    model, processor, image = tiny.internvl(), tiny.processor(), tiny.images(1)[0]
    reading = AspectTeacher(model, processor, answer_tokens=("Yes", "No")).read([image], tiny.bank(1))
    text = chat_text(processor, tiny.bank(1).questions[0])
    with torch.no_grad():
        logits = model(**processor(images=image, text=text, return_tensors="pt")).logits[0, -1]
    pair = logits[processor.tokenizer.convert_tokens_to_ids(["Yes", "No"])]
    torch.testing.assert_close(reading.logits[0, 0].sigmoid(), pair.softmax(0)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "CMYK", "LA", "I;16"])
def test_images_of_any_mode_are_read_as_rgb(mode):
    image = tiny.images(1)[0].convert("L" if mode in ("LA", "I;16") else "RGB").convert(mode)
    reader = teacher()
    expected = reader.read([to_rgb(image)], tiny.bank())
    assert torch.equal(reader.read([image], tiny.bank()).logits, expected.logits)


def test_no_images_give_an_empty_reading():
    reading = teacher().read([], tiny.bank())
    assert reading.logits.shape == reading.mass.shape == (0, 3)


def test_a_reading_has_one_float32_per_image_and_question_and_no_gradient():
    reader = AspectTeacher(tiny.internvl().to(torch.bfloat16), tiny.processor())
    reading = reader.read(tiny.images(2), tiny.bank())
    assert reading.logits.shape == reading.mass.shape == (2, 3)
    assert reading.logits.dtype == reading.mass.dtype == torch.float32
    assert not reading.logits.requires_grad and reading.logits.device.type == "cpu"
    assert (reading.mass > 0).all() and (reading.mass < 1).all()


@pytest.mark.parametrize("rows", [slice(None), slice(0, 1)], ids=["every logit", "a logit that answers nothing"])
def test_logits_that_are_not_finite_are_refused_with_the_place_and_the_remedy(rows):
    model = tiny.internvl()
    with torch.no_grad():
        model.lm_head.weight[rows] = torch.nan
    with pytest.raises(ValueError, match="image 0 .*question 'aspect-0' .*float32.*: load it with dtype"):
        AspectTeacher(model, tiny.processor()).read(tiny.images(2), tiny.bank())


# Construction


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "fast"}, r"Unknown strategy 'fast': expected one of \['full', .*'cascade', 'auto'\]"),
        ({"prompt": "yes or no?"}, r"'yes or no\?' has no place for the question: write {question}"),
        ({"answer_tokens": ("Yep", "No")}, "'Yep' is no single token"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        teacher(**settings)


def test_a_saved_teacher_reads_the_same(folder):
    images, bank = different_images(), tiny.bank()
    loaded = AspectTeacher.from_pretrained(folder, device="cpu")
    torch.testing.assert_close(loaded.read(images, bank).logits, teacher().read(images, bank).logits)
    assert not loaded.model.training


def test_the_default_dtype_is_that_of_the_weights(tmp_path):
    tiny.internvl().to(torch.bfloat16).save_pretrained(tmp_path)
    tiny.processor().save_pretrained(tmp_path)
    assert AspectTeacher.from_pretrained(tmp_path, device="cpu").model.dtype == torch.bfloat16
    assert AspectTeacher.from_pretrained(tmp_path, device="cpu", dtype=torch.float32).model.dtype == torch.float32


def test_a_model_that_takes_no_images_is_refused(tmp_path):
    tokenizer = tiny.tokenizer()
    config = Qwen2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, vocab_size=len(tokenizer)
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} takes no images.*expected an image-text-to-text model"):
        AspectTeacher.from_pretrained(tmp_path)


def with_one_long(words: int) -> AspectBank:
    return AspectBank([*tiny.bank(2), Aspect("endless", " ".join(["red"] * words) + " ?")])


def test_a_question_longer_than_the_model_reads_is_named_before_anything_is_read():
    reader = teacher()
    reader.model.config.text_config.max_position_embeddings = 100
    reader.check_prompts(with_one_long(80))
    with pytest.raises(ValueError, match="'endless' is too long .*: with its image it has 11[0-9] tokens.* 100: sho"):
        reader.check_prompts(with_one_long(100))
    with pytest.raises(ValueError, match="'endless'"):
        reader.read(tiny.images(1), with_one_long(100))
    assert reader.plan is None


def test_the_tokens_of_the_images_count():
    reader, bank = AspectTeacher(*mllm("qwen2_vl")), with_one_long(80)
    reader.processor.image_processor.size["longest_edge"] = 128 * 128
    limit = reader.model.config.text_config.max_position_embeddings = reader.layout(bank).lengths[-1] + 1
    reader.check_prompts(bank)
    bigger = tiny.images(1)[0].resize((200, 30))
    taken = encode(reader.processor, bigger, reader.layout(bank).texts[-1])["input_ids"].shape[1]
    assert taken > limit
    with pytest.raises(ValueError, match=f"'endless' .* {taken} tokens.* {limit}:"):
        reader.check_prompts(bank, [bigger])


def test_a_stretched_context_counts_in_full():
    config = Qwen2Config(max_position_embeddings=1000, rope_parameters={"rope_type": "yarn", "factor": 4.0, **THETA})
    assert context_length(config, None) == 4000
    assert context_length(Qwen2Config(max_position_embeddings=1000), None) == 1000


def test_an_encoder_decoder_is_refused():
    model = tiny.internvl()
    model.config.is_encoder_decoder = True
    with pytest.raises(ValueError, match="is an encoder-decoder: expected a decoder-only model"):
        AspectTeacher(model, tiny.processor())


# Provenance


def test_provenance_tells_how_the_numbers_came_about(folder):
    provenance = AspectTeacher.from_pretrained(folder, device="cpu", strategy="full").provenance
    assert json.loads(json.dumps(provenance)) == provenance
    tokens = tiny.tokenizer().get_vocab()
    assert provenance["model"] == str(folder)
    assert provenance["dtype"] == "float32"
    assert provenance["prompt"] == "Answer with yes or no. {question}"
    assert provenance["yes_tokens"] == {"yes": tokens["yes"], "Yes": tokens["Yes"]}
    assert provenance["no_tokens"] == {"no": tokens["no"], "No": tokens["No"]}
    assert provenance["strategy"] == "full"
    assert provenance["versions"]["torch"] == torch.__version__


def other_processor(**settings):
    processor = tiny.processor()
    for name, value in settings.items():
        setattr(processor if name == "chat_template" else processor.image_processor, name, value)
    return processor


def with_template_in_tokenizer():
    processor = other_processor(chat_template=None)
    processor.tokenizer.chat_template = f"yes {tiny.CHAT_TEMPLATE}"
    return processor


@pytest.mark.parametrize(
    "other",
    [
        lambda: AspectTeacher(tiny.internvl(), other_processor(image_mean=[0, 0, 0])),
        lambda: AspectTeacher(tiny.internvl(), other_processor(chat_template=f"yes {tiny.CHAT_TEMPLATE}")),
        lambda: AspectTeacher(tiny.internvl(seed=1), tiny.processor()),
        lambda: AspectTeacher(tiny.internvl().to(torch.bfloat16), tiny.processor()),
        lambda: AspectTeacher(tiny.internvl(), with_template_in_tokenizer()),
        lambda: teacher(prompt="{question} yes or no ?"),
        lambda: teacher(system="user is red ."),
        lambda: teacher(answer_tokens=("Yes", "No")),
        lambda: teacher(revision="v2"),
    ],
    ids=[
        "image processor",
        "chat template",
        "weights",
        "dtype",
        "tokenizer's template",
        "prompt",
        "system prompt",
        "answer tokens",
        "revision",
    ],
)
def test_identity_changes_with_what_decides_the_numbers(other):
    assert other().identity != teacher().identity


def test_identity_ignores_the_strategy():
    assert teacher(strategy="full").identity == teacher(strategy="shared_vision").identity == teacher().identity


def test_a_bank_can_carry_the_provenance(tmp_path):
    bank = AspectBank([Aspect("red", "Is it red?")], provenance=teacher().provenance)
    assert AspectBank.load(bank.save(tmp_path)).provenance == teacher().provenance
