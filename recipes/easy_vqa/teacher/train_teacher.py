"""Trains the tiny multimodal LLM that this recipe uses as its teacher, and writes its model card.

An InternVL of 0.5 M parameters learns from scratch, on images that no student ever sees, to answer the questions of
easy-VQA, in two stages. First the vision tower learns to name colour and shape in the language model's own word
embeddings; then, on its features, the language model learns to answer. In one stage it stays long at the majority
answer: nothing tells it to look. Stock transformers classes throughout, so it loads like any model from the Hub.
"""

import random
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import (
    CLIPImageProcessorPil,
    DynamicCache,
    HfArgumentParser,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    set_seed,
)


sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the repository root: `recipes` is not installed

from madkd_hf.students.base.fields import option  # noqa: E402
from madkd_hf.teachers.mllm.prompt import chat_text  # noqa: E402
from recipes.easy_vqa.data import COLORS, SHAPES, Question, facts, questions_of  # noqa: E402
from recipes.easy_vqa.teacher.evaluate_teacher import evaluate, table, write_card  # noqa: E402


OPEN_PROMPT = "Answer in one word. {question}"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
IMAGE_SIZE, PATCH_SIZE, TOKEN_SIZE = 64, 8, 16  # pixels; 2 x 2 patches become one image token


@dataclass
class TeacherTrainingArguments:
    output_dir: str = option(str(Path(__file__).parent), "Where the model, processor and card are written.")
    seed: int = option(0, "Seeds the weights and the order of images and questions.")
    vision_epochs: int = option(18, "Passes over the 2,400 images, to name what they show.")
    language_epochs: int = option(12, "Passes over their questions, to answer them.")
    plain_epochs: int = option(4, "The first of them leave out the negated questions (is there not a circle?).")
    questions_per_image: int = option(6, "Questions drawn per image and pass, of the about ten that easy-VQA has.")
    learning_rate: float = option(2e-3, "Peak of the one-cycle schedule of AdamW.")
    threads: int = option(2, "CPU threads; on a busy machine one can be faster than two.")


def is_negated(question: str) -> bool:
    return re.search(r"\b(no|not)\b", question) is not None


def build_processor(questions: list[Question]) -> LlavaProcessor:
    """A word-level tokenizer over the questions' and answers' words, and the image processor of 64 x 64 pixels."""
    texts = [f"{question} {answer}" for _, question, answer in questions]
    texts.append("user: assistant: answer with yes or no. answer in one word.")
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", "<image>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return LlavaProcessor(
        CLIPImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            do_center_crop=False,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            eos_token="<eos>",
            unk_token="<unk>",
            additional_special_tokens=["<image>"],
            padding_side="left",
            model_max_length=256,
        ),
        patch_size=TOKEN_SIZE,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> InternVLForConditionalGeneration:
    """Random weights, scaled by fan-in: with transformers' usual 0.02 so small a model hardly learns."""
    vision = InternVLVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        layer_scale_init_value=1.0,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(IMAGE_SIZE // TOKEN_SIZE) ** 2,
        downsample_ratio=PATCH_SIZE / TOKEN_SIZE,
        tie_word_embeddings=True,
    )
    model = InternVLForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            fan_in = parameter.shape[-1] if parameter.ndim == 3 else parameter[0].numel()  # position tables have three
            torch.nn.init.normal_(parameter, std=fan_in**-0.5)
    # Next to the image features and the attention's outputs, narrower words would drown in the residual stream.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    return model


@dataclass
class Row:
    """One question as tokens: those after the image, and the answer's."""

    question: str
    tokens: list[int]
    answer: int


def encode(processor: LlavaProcessor, questions: list[Question]) -> tuple[list[int], dict[Path, list[Row]]]:
    """The tokens up to and with the image, common to all questions, and the rows of each image."""
    image_id = processor.image_token_id
    blank = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE))
    encoded: dict[tuple[str, bool], list[int]] = {}
    rows = defaultdict(list)
    for path, question, answer in questions:
        key = question, answer in ("yes", "no")
        if key not in encoded:
            text = chat_text(processor, question) if key[1] else chat_text(processor, question, OPEN_PROMPT)
            encoded[key] = processor(images=blank, text=text)["input_ids"][0]
            split = len(encoded[key]) - encoded[key][::-1].index(image_id)
        answer_id = processor.tokenizer.convert_tokens_to_ids(answer)
        rows[path].append(Row(question, encoded[key][split:], answer_id))
    return encoded[key][:split], dict(rows)


def answer_logits(model, prefix: list[int], features: torch.Tensor, rows: list[list[Row]]) -> torch.Tensor:
    """The next-token logits after every question, [questions, vocabulary].

    The keys and values of the prefix, image features [images, tokens, width] included, are computed once an image and
    repeated for its questions.
    """
    language, embed = model.model.language_model, model.get_input_embeddings()
    prefixes = torch.tensor(prefix).expand(len(features), -1)
    is_image = (prefixes == model.config.image_token_id)[..., None]
    cache = DynamicCache(config=model.config.text_config)
    language(inputs_embeds=embed(prefixes).masked_scatter(is_image, features), past_key_values=cache, use_cache=True)
    cache.batch_select_indices(torch.tensor([i for i, group in enumerate(rows) for _ in group]))
    tokens = [torch.tensor(row.tokens) for group in rows for row in group]
    padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)  # on the right, where no earlier token looks
    hidden = language(input_ids=padded, past_key_values=cache, use_cache=True).last_hidden_state
    ends = torch.tensor([len(row) - 1 for row in tokens])
    return model.lm_head(hidden[torch.arange(len(tokens)), ends])


def image_features(model: InternVLForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    """[images, tokens, width], as they go into the language model."""
    return model.get_image_features(
        pixel_values=pixel_values,
        vision_feature_layer=model.config.vision_feature_layer,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        return_dict=True,
    ).pooler_output


def augment(images: torch.Tensor) -> torch.Tensor:
    """Mirrored or not, and moved by up to 6 pixels: what an image of one shape may look like as well."""
    images = images.flip(-1) if torch.rand(()) < 0.5 else images
    left, top = torch.randint(0, 13, (2,)).tolist()
    padded = F.pad(images, (6, 6, 6, 6), mode="replicate")
    return padded[..., top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]


class Training:
    """An optimizer with its schedule and its progress bar."""

    def __init__(self, name: str, parameters: list[torch.nn.Parameter], learning_rate: float, steps: int):
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, learning_rate, total_steps=steps, pct_start=0.1
        )
        self.progress = tqdm(total=steps, desc=name, unit=" steps")
        self.average: float | None = None

    def step(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.average = loss.item() if self.average is None else 0.98 * self.average + 0.02 * loss.item()
        self.progress.update()
        self.progress.set_postfix(loss=f"{self.average:.3f}")


def align_vision(args, model, tokenizer, images: torch.Tensor, questions: list[list[tuple[str, str]]]) -> None:
    """Stage one: the mean image token points at the embeddings of the colour and the shape, as far as answers tell."""
    shown = [{word for pair in asked for word, true in facts(*pair) if true} for asked in questions]
    known = [
        (words, torch.tensor([next((i for i, word in enumerate(words) if word in image), -100) for image in shown]))
        for words in (COLORS, SHAPES)
    ]
    embeddings = model.get_input_embeddings().weight.detach()
    parameters = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    batches = len(images) // 8
    training = Training("vision", parameters, args.learning_rate, args.vision_epochs * batches)
    for _ in range(args.vision_epochs):
        for batch in torch.randperm(len(images))[: batches * 8].split(8):
            pooled = image_features(model, augment(images[batch])).mean(1)
            losses = []
            for words, labels in known:
                logits = 0.5 * pooled @ embeddings[tokenizer.convert_tokens_to_ids(list(words))].T
                if (labels[batch] >= 0).any():
                    losses.append(F.cross_entropy(logits, labels[batch]))
            training.step(sum(losses))


def teach_language(args, model, prefix: list[int], images: torch.Tensor, rows: list[list[Row]]) -> None:
    """Stage two: next-token loss on the one-word answers, on features of the finished vision tower."""
    with torch.no_grad():
        both = torch.stack(
            [torch.cat([image_features(model, part) for part in x.split(64)]) for x in (images, images.flip(-1))]
        )
    draw = random.Random(args.seed)
    batches = len(images) // 16
    training = Training(
        "language", list(model.model.language_model.parameters()), args.learning_rate, args.language_epochs * batches
    )
    for epoch in range(args.language_epochs):
        for batch in torch.randperm(len(images))[: batches * 16].split(16):
            groups = [rows[i] for i in batch]
            if epoch < args.plain_epochs:
                groups = [[row for row in group if not is_negated(row.question)] for group in groups]
            groups = [draw.sample(group, min(args.questions_per_image, len(group))) for group in groups]
            features = both[torch.randint(0, 2, (len(batch),)), batch]
            answers = torch.tensor([row.answer for group in groups for row in group])
            training.step(F.cross_entropy(answer_logits(model, prefix, features, groups), answers))


def train(args: TeacherTrainingArguments) -> tuple[InternVLForConditionalGeneration, LlavaProcessor]:
    """Both stages, on the teacher's images and their own questions and answers."""
    set_seed(args.seed)
    questions = questions_of("teacher", yes_no_only=False)
    processor = build_processor(questions)
    model = build_model(processor.tokenizer).train()
    prefix, rows = encode(processor, questions)
    images = torch.cat(
        [processor.image_processor(Image.open(path), return_tensors="pt")["pixel_values"] for path in rows]
    )
    asked = defaultdict(list)
    for path, question, answer in questions:
        asked[path].append((question, answer))
    align_vision(args, model, processor.tokenizer, images, [asked[path] for path in rows])
    teach_language(args, model, prefix, images, list(rows.values()))
    return model.eval(), processor


def main() -> None:
    (args,) = HfArgumentParser(TeacherTrainingArguments, description=__doc__).parse_args_into_dataclasses()
    torch.set_num_threads(args.threads)
    model, processor = train(args)
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    validation = evaluate(args.output_dir, "validation")["teacher"]["all"]
    results = evaluate(args.output_dir, "all test")
    facts = {name: getattr(args, name) for name in ("vision_epochs", "language_epochs", "plain_epochs", "seed")}
    write_card(args.output_dir, results, validation=validation, words=len(processor.tokenizer), **facts)
    print(table(results))
    print(f"{results['questions']} questions; mean probability of yes + no: {results['mass']:.4f}")


if __name__ == "__main__":
    main()
