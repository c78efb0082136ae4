"""The prompt: its exact text under the chat templates of the families, and where the answer begins."""

import random
from datetime import datetime

import pytest
import torch
from builders import tiny
from builders.tiny_mllms import bpe, llava, mllm
from transformers import (
    Blip2Processor,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    GitProcessor,
    Kosmos2Processor,
    LlavaProcessor,
    ProcessorMixin,
)

from madkd_hf import Aspect, AspectBank, AspectTeacher
from madkd_hf.teachers.mllm.prompt import chat_text


QUESTION = "Is it red?"

QWEN2_VL = """\
{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}\
<image>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

INTERNVL = """\
{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}\
{%- if message['content'] is string %}{{ message['content'] }}\
{%- else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<image>\\n' }}\
{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}\
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAVA = """\
{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}\
{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

GEMMA3 = """\
{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- if messages[0]['content'] is string -%}\
{%- set prefix = messages[0]['content'] + '\\n\\n' -%}{%- else -%}\
{%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}{%- endif -%}{%- set turns = messages[1:] -%}\
{%- else -%}{%- set prefix = '' -%}{%- set turns = messages -%}{%- endif -%}\
{%- for message in turns -%}{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}\
{{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else '') }}\
{%- if message['content'] is string -%}{{ message['content'] | trim }}\
{%- else -%}{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}{{ '<image>' }}\
{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{%- endif -%}\
{{ '<end_of_turn>\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

# One thinks when nobody forbids it, one always does and opens the block itself, one leaves opening it to the model.
QWEN3 = """\
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}{%- set ns = namespace(text='') %}\
{%- if message.content is string %}{%- set ns.text = message.content %}\
{%- else %}{%- for item in message.content %}\
{%- set ns.text = ns.text + ('<image>' if item.type == 'image' else item.text) %}{%- endfor %}{%- endif %}\
{%- if message.role == 'assistant' %}\
{{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' + ns.text }}\
{%- else %}{{- ns.text }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}GENERATION{%- endif %}"""
QWEN3_HYBRID = QWEN3.replace(
    "GENERATION",
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}",
)
QWEN3_THINKING = QWEN3.replace("GENERATION", "{{- '<think>\\n' }}")
QWEN3_BARE = QWEN3.replace("GENERATION", "")

GLM = """\
[gMASK]<sop>{% for message in messages %}{% if message.role == 'user' %}<|user|>
{% for item in message.content %}{% if item.type == 'image' %}<|begin_of_image|><image><|end_of_image|>\
{% else %}{{ item.text }}{% endif %}{% endfor %}\
{{ '/nothink' if enable_thinking is defined and not enable_thinking else '' }}\
{% elif message.role == 'system' %}<|system|>
{{ message.content if message.content is string else message.content[0].text }}{% else %}<|assistant|>
<think></think>
{{ message.content if message.content is string else message.content[0].text }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}<|assistant|>\
{{ '\\n<think></think>' if enable_thinking is defined and not enable_thinking else '' }}{% endif %}"""


def processor(template: str | None = None, tokenizer_template: str | None = None) -> ProcessorMixin:
    chat = tiny.processor()
    chat.chat_template = template
    chat.tokenizer.chat_template = tokenizer_template
    return chat


# The families


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            QWEN2_VL,
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            "<image>Answer with yes or no. Is it red?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            INTERNVL,
            "<|im_start|>user\n<image>\nAnswer with yes or no. Is it red?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (LLAVA, "USER: <image>\nAnswer with yes or no. Is it red? ASSISTANT:"),
        (
            GEMMA3,
            "<start_of_turn>user\n<image>Answer with yes or no. Is it red?<end_of_turn>\n<start_of_turn>model\n",
        ),
    ],
    ids=["Qwen2-VL", "InternVL", "LLaVA", "Gemma 3"],
)
def test_the_models_own_template_up_to_where_the_answer_begins(template, expected):
    assert chat_text(processor(template), QUESTION) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            QWEN2_VL,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
            "<image>Answer with yes or no. Is it red?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (LLAVA, "Be brief. USER: <image>\nAnswer with yes or no. Is it red? ASSISTANT:"),
        (
            GEMMA3,
            "<start_of_turn>user\nBe brief.\n\n<image>Answer with yes or no. Is it red?<end_of_turn>\n"
            "<start_of_turn>model\n",
        ),
    ],
    ids=["Qwen2-VL", "LLaVA", "Gemma 3"],
)
def test_a_system_prompt_stands_first(template, expected):
    assert chat_text(processor(template), QUESTION, system="Be brief.") == expected


# A template that writes content as it comes would print the list itself: as text it is right.
WRITES_CONTENT = (
    "{% for message in messages %}{% if message['role'] == 'system' %}[{{ message['content'] }}]{% else %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% endif %}{% endfor %}"
)


def test_a_system_prompt_is_given_as_text_where_the_template_wants_text():
    assert chat_text(processor(WRITES_CONTENT), QUESTION, system="Be brief.") == (
        "[Be brief.]<image>Answer with yes or no. Is it red?"
    )


USER_ONLY = (
    "{% for message in messages if message['role'] == 'user' %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
)
RAISES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


@pytest.mark.parametrize("template", [USER_ONLY, RAISES + USER_ONLY], ids=["drops it", "raises"])
def test_a_system_prompt_without_a_place_is_refused(template):
    assert chat_text(processor(template), QUESTION) == "<image>Answer with yes or no. Is it red?"
    for system in ("Be brief.", "Answer with yes or no."):  # the second stands in the user turn, and yet is dropped
        with pytest.raises(ValueError, match="no place for a system prompt: write its text in `prompt`"):
            chat_text(processor(template), QUESTION, system=system)


# Forms of content


def test_the_tokenizers_template_serves_when_the_processor_has_none():
    assert chat_text(processor(None, INTERNVL), QUESTION) == chat_text(processor(INTERNVL), QUESTION)


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEXT_PARTS = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% endfor %}"
)
PRINTS_THE_LIST = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "<|im_start|>user\n<image>\n{}<|im_end|>\n<|im_start|>assistant\n"),
        (TEXT_PARTS, "user: <image>\n{}"),
        (PRINTS_THE_LIST, "user: <image>\n{}"),
    ],
    ids=["raises on a list", "leaves out the image", "prints the list"],
)
def test_a_template_of_a_text_model_is_given_the_image_as_text(template, expected):
    expected = expected.format("Answer with yes or no. Is it red?")
    assert chat_text(processor(template), QUESTION) == expected
    assert chat_text(processor(None, template), QUESTION) == expected


def test_a_system_prompt_in_a_template_that_takes_strings():
    assert chat_text(processor(CHATML), QUESTION, system="Be brief.").startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\n"
    )


def test_a_template_may_spell_the_image_in_its_own_way():
    """Processors with several images count them; the placeholder is theirs to know."""
    template = WRITES_CONTENT.replace("'<image>'", "'<|image_1|>'")
    assert chat_text(processor(template), QUESTION) == "<|image_1|>Answer with yes or no. Is it red?"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['role'] }}", "LlavaProcessor does not show both the image and the question: expected"),
        ("{{ raise_exception('no chat today') }}", r"the question \(no chat today\): expected"),
    ],
)
def test_a_template_that_shows_nothing_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        chat_text(processor(template), QUESTION)


# Questions


@pytest.mark.parametrize(
    "question",
    [
        "Is {it} red?",
        "{question}",
        "{% if %}{{ 1 }}",
        "Is it\nred?\n",
        "  Is it red?  ",
        "Is it a 'type': 'image'?",
        "红?",
    ],
)
@pytest.mark.parametrize("template", [QWEN2_VL, INTERNVL, LLAVA], ids=["Qwen2-VL", "InternVL", "LLaVA"])
def test_a_question_is_shown_as_it_is_written(template, question):
    around = chat_text(processor(template), "@")
    assert chat_text(processor(template), question) == around.replace("@", question)


def test_a_template_may_strip_the_turn():
    text = chat_text(processor(GEMMA3), " Is it red?\n", "\n{question}\n")
    assert text == "<start_of_turn>user\n<image>Is it red?<end_of_turn>\n<start_of_turn>model\n"


def test_the_question_stands_wherever_the_prompt_names_it():
    text = chat_text(processor(LLAVA), QUESTION, "{question} Yes or no: {question}")
    assert text == "USER: <image>\nIs it red? Yes or no: Is it red? ASSISTANT:"


# Thinking


@pytest.mark.parametrize("template", [QWEN3_HYBRID, QWEN3_THINKING, QWEN3_BARE], ids=["hybrid", "always", "bare"])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_qwen3_answers_after_an_empty_thought(template, system):
    start = "<|im_start|>system\nBe brief.<|im_end|>\n" if system else ""
    assert chat_text(processor(template), QUESTION, system=system) == (
        f"{start}<|im_start|>user\n<image>Answer with yes or no. Is it red?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_glm_answers_on_the_line_after_its_empty_thought():
    """Its generation prompt ends before that newline; its turns tell that the answer stands after it."""
    assert chat_text(processor(GLM), QUESTION) == (
        "[gMASK]<sop><|user|>\n<|begin_of_image|><image><|end_of_image|>Answer with yes or no. Is it red?/nothink"
        "<|assistant|>\n<think></think>\n"
    )


@pytest.mark.parametrize(
    ("opened", "closed"),
    [
        ("<think>\n", "<think>\n\n</think>\n\n"),
        ("<think>", "<think></think>"),
        ("◁think▷", "◁think▷◁/think▷"),
        ("[THINK]", "[THINK][/THINK]"),
        ("<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n"),
        ("<|channel>thought\n<channel|>", "<|channel>thought\n<channel|>"),
        ("<|begin_of_thinking|>\n<|end_of_thinking|>", "<|begin_of_thinking|>\n<|end_of_thinking|>"),
    ],
)
@pytest.mark.parametrize("turns", [LLAVA, "{{ raise_exception('no turn of mine') if messages | length > 1 }}" + LLAVA])
def test_a_block_is_closed_also_where_the_templates_turns_do_not_say_how(turns, opened, closed):
    template = turns.replace("'ASSISTANT:'", f"'ASSISTANT:{opened}'".replace("\n", "\\n"))
    text = chat_text(processor(template), "Do you think it is red? <think>")
    assert text == f"USER: <image>\nAnswer with yes or no. Do you think it is red? <think> ASSISTANT:{closed}"


@pytest.mark.parametrize("opened", ["<|channel>thought\\n", "<|begin_of_thinking|>", "<reasoning>\\n"])
def test_thinking_that_cannot_be_closed_is_refused(opened):
    template = LLAVA.replace("'ASSISTANT:'", f"'ASSISTANT:{opened}'")
    with pytest.raises(ValueError, match="starts a thinking block that cannot be closed .*use a model that answers"):
        chat_text(processor(template), QUESTION)


def test_the_template_is_told_not_to_think_and_nobody_warns(caplog):
    template = INTERNVL + "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    for each in (template, INTERNVL):
        assert chat_text(processor(each), QUESTION) == chat_text(processor(INTERNVL), QUESTION)
    assert not caplog.records


# Clocks and dice

DATED = "{{ strftime_now('%d %B %Y') }} " + LLAVA


def on_another_day(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 17, 23, 59, tzinfo=tz)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)


def test_a_template_that_writes_today_s_date_writes_the_same_every_day(monkeypatch, caplog):
    today = chat_text(processor(DATED), QUESTION)
    assert today == f"01 January 2026 {chat_text(processor(LLAVA), QUESTION)}"
    on_another_day(monkeypatch)
    assert processor(DATED).apply_chat_template([{"role": "user", "content": []}]).startswith("17 May 2031")
    assert chat_text(processor(DATED), QUESTION) == today
    assert chat_text(processor(DATED), QUESTION, date="2027-02-03").startswith("03 February 2027")
    assert not caplog.records


@pytest.mark.parametrize("date", ["yesterday", "2026-02-30", "03.02.2027", ""])
def test_a_day_that_is_none_is_refused(date):
    with pytest.raises(ValueError, match=f"date='{date}' is no day: expected one such as 2026-01-01"):
        AspectTeacher(tiny.internvl(), tiny.processor(), date=date)


def test_a_template_that_draws_writes_the_same_every_time_and_leaves_the_dice_alone():
    template = "{{ range(10**4) | random }} " + LLAVA
    random.seed(1)
    texts = {chat_text(processor(template), QUESTION) for _ in range(5)}
    assert len(texts) == 1
    drawn = random.random()
    random.seed(1)
    assert random.random() == drawn


def test_a_processor_that_writes_another_prompt_each_time_is_refused():
    class Counting(LlavaProcessor):
        def apply_chat_template(self, *args, **kwargs):
            self.count = getattr(self, "count", 0) + 1
            return f"call {self.count} {super().apply_chat_template(*args, **kwargs)}"

    chat = tiny.processor()
    chat.__class__ = Counting
    with pytest.raises(ValueError, match=r"each time .*'call .*', then 'call .*'\): use a chat template"):
        AspectTeacher(tiny.internvl(), chat).layout(tiny.bank())


# No template


def test_image_then_system_prompt_then_question():
    assert chat_text(processor(), QUESTION) == "<image>Answer with yes or no. Is it red?"
    assert (
        chat_text(processor(), QUESTION, system="Be brief.") == "<image>Be brief.\nAnswer with yes or no. Is it red?"
    )


def test_a_prompt_may_say_where_the_image_goes():
    prompt = "USER: <image>\n{question} ASSISTANT:"
    assert chat_text(processor(), QUESTION, prompt) == "USER: <image>\nIs it red? ASSISTANT:"
    assert chat_text(processor(), QUESTION, prompt, "A chat.") == "A chat.\nUSER: <image>\nIs it red? ASSISTANT:"
    assert chat_text(processor(), "Is there an <image>?", "{question}") == "<image>Is there an <image>?"


def tokens_and_image(chat: ProcessorMixin, **settings) -> list[str]:
    text = chat_text(chat, "is it red ?", "{question}", **settings)
    ids = chat(images=[tiny.images(1)[0]], text=[text], return_tensors="pt")["input_ids"][0]
    return chat.tokenizer.convert_ids_to_tokens(ids.tolist())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_paligemma_puts_its_bos_between_image_and_text():
    chat = mllm("paligemma")[1]
    tokens = tokens_and_image(chat)
    assert tokens == ["<image>"] * 16 + ["<pad>", *chat.tokenizer.tokenize("is it red ?")]


def test_gemma3_without_a_template_gets_its_start_of_image():
    chat = mllm("gemma3")[1]
    chat.chat_template = chat.tokenizer.chat_template = None
    assert chat_text(chat, "is it red ?", "{question}") == "<boi>is it red ?"
    assert tokens_and_image(chat)[:6] == ["<boi>", *["<img>"] * 4, "<eoi>"]


SIZES = {"size": {"height": 16, "width": 16}, "crop_size": {"height": 16, "width": 16}}


def blip2() -> ProcessorMixin:
    return Blip2Processor(BlipImageProcessorPil(size=SIZES["size"]), tiny.tokenizer(), num_query_tokens=4)


def git() -> ProcessorMixin:
    return GitProcessor(CLIPImageProcessorPil(**SIZES), tiny.tokenizer())


def kosmos2() -> ProcessorMixin:
    words = tiny.tokenizer(special=("<image>", "</image>"))
    words.bos_token = "<pad>"
    return Kosmos2Processor(CLIPImageProcessorPil(**SIZES), words)


@pytest.mark.parametrize(("build", "before"), [(blip2, 4), (git, 0), (kosmos2, 1 + 66)])
def test_a_processor_that_puts_the_image_in_itself_gets_no_placeholder(build, before):
    chat = build()
    assert chat_text(chat, QUESTION, system="Be brief.") == "Be brief.\nAnswer with yes or no. Is it red?"
    assert tokens_and_image(chat)[before:] == chat.tokenizer.tokenize("is it red ?")


def test_the_placeholder_of_a_processor_that_names_none():
    """The tokenizer may name it, or know <image>; where nobody does, the image would be dropped."""
    chat = processor()
    del chat.image_token
    assert chat_text(chat, QUESTION).startswith("<image>Answer")
    chat.tokenizer = tiny.tokenizer(special=("<img>",), image_token="<img>")
    assert chat_text(chat, QUESTION).startswith("<img>Answer")
    chat.tokenizer = tiny.tokenizer(special=())
    with pytest.raises(ValueError, match="LlavaProcessor has no chat template and does not say what stands for"):
        chat_text(chat, QUESTION)


# Tokens


@pytest.mark.parametrize("template", [QWEN2_VL, INTERNVL, LLAVA, QWEN3_HYBRID, None])
def test_answers_agree_where_tokens_reach_over_the_boundary_before_the_question(template):
    words = bpe("<|im_start|>", "<|im_end|>")
    alone = [words.tokenize(part) for part in ("Answer: ", "Is it red?")]
    assert words.tokenize("Answer: Is it red?") != sum(alone, [])  # or the test shows nothing
    torch.manual_seed(0)
    model, files = llava(words)
    chat = files.load()
    tiny.widen(model)
    chat.chat_template = template
    questions = [QUESTION, "Is the big shape red in this image?", "Does it have a tail?"]
    bank = AspectBank([Aspect(f"aspect-{i}", question) for i, question in enumerate(questions)])
    full, fast = (
        AspectTeacher(model.eval(), chat, strategy, prompt="Answer: {question}\n").read(tiny.images(2), bank).logits
        for strategy in ("full", "auto")
    )
    torch.testing.assert_close(fast, full, atol=1e-5, rtol=0)
