"""Measures the recipe's teacher on easy-VQA's yes/no questions, and writes its model card from what it measured."""

from collections import Counter, defaultdict
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaProcessor

from madkd_hf.teachers.mllm.prompt import chat_text
from recipes.easy_vqa.data import SHAPES, WORD, Question, questions_of


KINDS = ("all", "colour", "shape")


@torch.no_grad()
def read_answers(model, processor: LlavaProcessor, questions: list[Question]) -> tuple[list[bool], float]:
    """Whether each yes/no question is answered right, and the mean probability of yes + no: read as users read it."""
    yes, no = processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    correct, mass = [], []
    for start in tqdm(range(0, len(questions), 64), desc="evaluating", unit="batch"):
        batch = questions[start : start + 64]
        images = [Image.open(path).convert("RGB") for path, _, _ in batch]
        texts = [chat_text(processor, question) for _, question, _ in batch]
        inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
        logits = model(**inputs, logits_to_keep=1).logits[:, -1]
        said_yes = logits[:, yes] > logits[:, no]
        correct += [said == (answer == "yes") for said, (_, _, answer) in zip(said_yes.tolist(), batch)]
        mass += logits.softmax(-1)[:, [yes, no]].sum(-1).tolist()
    return correct, sum(mass) / len(mass)


def majority_answers(questions: list[Question]) -> list[bool]:
    """Whether each phrasing's most frequent answer on the teacher's images is right: no look at the image needed."""

    def phrasing(question: str) -> str:
        return WORD.sub(lambda word: "<shape>" if word[0] in SHAPES else "<colour>", question)

    answers = defaultdict(Counter)
    for _, question, answer in questions_of("teacher"):
        answers[phrasing(question)][answer] += 1
    return [answers[phrasing(question)].most_common(1)[0][0] == answer for _, question, answer in questions]


def accuracies(questions: list[Question], correct: list[bool]) -> dict[str, float]:
    """The accuracy on all questions, on those about a colour, and on those about a shape."""
    kinds = ["shape" if WORD.search(question)[0] in SHAPES else "colour" for _, question, _ in questions]
    hits = {kind: [c for c, k in zip(correct, kinds) if kind in ("all", k)] for kind in KINDS}
    return {kind: sum(h) / len(h) for kind, h in hits.items()}


def evaluate(folder: str, part: str) -> dict[str, dict[str, float] | float | int]:
    """The saved model's accuracy on a part's yes/no questions, loaded as users load it, beside the baseline's."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    questions = questions_of(part)
    correct, mass = read_answers(model, processor, questions)
    return {
        "teacher": accuracies(questions, correct),
        "majority": accuracies(questions, majority_answers(questions)),
        "mass": mass,
        "questions": len(questions),
        "parameters": model.num_parameters(),
    }


def table(results: dict) -> str:
    lines = ["| yes/no questions | teacher | majority answer |", "|---|---|---|"]
    lines += [f"| {kind} | {results['teacher'][kind]:.2%} | {results['majority'][kind]:.2%} |" for kind in KINDS]
    return "\n".join(lines)


CARD = """# A tiny multimodal LLM for easy-VQA

An InternVL ({parameters:,} parameters: vision transformer, pixel shuffle, MLP projector, Qwen2) that answers questions
about the toy images of [easy-VQA](https://github.com/vzhou842/easy-VQA). It is the teacher of madkd_hf's `easy_vqa`
recipe.

## Accuracy

On the {questions:,} yes/no questions of easy-VQA's test images, the more probable of "yes" and "no" after the prompt
`Answer with yes or no. {{question}}`. Beside it, the answer that each phrasing has most often.

{table}

"yes" and "no" together hold {mass:.2%} of the probability on average. The model was chosen on other images
(accuracy there: {validation:.2%}).

## Training

`train_teacher.py` in this folder, from random weights (seed {seed}), on 2,400 of easy-VQA's train images and their own
questions and answers. First the vision tower and the projector: {vision_epochs} epochs, in which the mean image token
learns to point at the word embeddings of the colour and the shape. Then the language model, on their features:
{language_epochs} epochs of next-token loss on the answers to all questions, the open ones ("what color is the shape?")
included; the first {plain_epochs} leave out negated questions. No student of the recipe sees these images.

## Limits

It knows 64 x 64 pixel images of one coloured shape, {words} words and one-word answers: a stand-in for a real
multimodal LLM where a quick run on a CPU has to show the whole path. For real images take a real model.

## Use

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("recipes/easy_vqa/teacher")
model = AutoModelForImageTextToText.from_pretrained("recipes/easy_vqa/teacher")
```
"""


def write_card(folder: str, results: dict, **facts: float) -> None:
    """README.md, with the measured numbers as text and as `model-index` metadata."""
    result = EvalResult(
        task_type="visual-question-answering",
        dataset_type="easy-vqa",
        dataset_name="easy-VQA (yes/no questions)",
        dataset_split="test",
        metric_type="accuracy",
        metric_name="accuracy",
        metric_value=round(results["teacher"]["all"], 4),
    )
    data = ModelCardData(
        model_name="easy-vqa-teacher",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        license="apache-2.0",
        language="en",
        tags=["easy-vqa", "internvl", "madkd"],
        eval_results=[result],
    )
    measured = {key: results[key] for key in ("parameters", "questions", "mass")}
    text = CARD.format(table=table(results), **measured, **facts)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(Path(folder) / "README.md")
