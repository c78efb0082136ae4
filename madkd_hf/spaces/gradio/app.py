"""A page on which to try a student: an image in, its class and what speaks for it out."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr
import numpy as np
import onnxruntime
from huggingface_hub import hf_hub_download
from PIL import Image
from reasons import class_probabilities, classes_html, links_html, reasons, reasons_html, text
from rgb import to_rgb
from transformers import AutoImageProcessor


HERE = Path(__file__).parent
DATA = json.loads((HERE / "space.json").read_text(encoding="utf-8"))  # titles, classes and questions: only data
PROCESSOR = AutoImageProcessor.from_pretrained(HERE / "model")
HAS_REASONS = bool(DATA["questions"])


def load_model() -> onnxruntime.InferenceSession:
    """The student as ONNX: beside this file, or at one commit of the Hub."""
    model = DATA["model"]
    path = HERE / "model/onnx/model.onnx"
    if "id" in model:
        path = hf_hub_download(model["id"], "onnx/model.onnx", revision=model["commit"])
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


SESSION = load_model()


def look(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits [C] of the classes, and log-odds [Q] of the answers, where there are any."""
    try:
        with Image.open(path) as file:
            image = to_rgb(file)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise gr.Error(
            "This file cannot be read as an image: choose a JPEG, PNG or WebP.", print_exception=False
        ) from error
    pixels = PROCESSOR([image], return_tensors="np")["pixel_values"].astype(np.float32)
    outputs = dict(zip([output.name for output in SESSION.get_outputs()], SESSION.run(None, {"pixel_values": pixels})))
    return outputs["logits"][0].astype(float), outputs["aspect_logits"][0].astype(float) if HAS_REASONS else None


def classify(path: str | None) -> tuple[str, list[float] | None, int | None, str]:
    """What a new image shows: the classes, the answers for `explain`, the class that is explained, and its reasons."""
    if path is None:
        return WAITING, None, None, ""
    logits, answers = look(path)
    probabilities = class_probabilities(DATA, logits)
    label = int(probabilities.argmax())
    found = reasons_html(DATA, reasons(DATA, answers, label), label) if HAS_REASONS else ""
    return classes_html(DATA, probabilities), None if answers is None else answers.tolist(), label, found


def explain(answers: list[float] | None, label: int | None) -> str:
    """Reasons for the class that somebody chose."""
    if answers is None or label is None:
        return ""
    return reasons_html(DATA, reasons(DATA, np.array(answers), label), label)


def example(event: gr.SelectData) -> str:
    """The example that somebody chose."""
    return EXAMPLES[event.index]


Q, C = len(DATA["questions"]), len(DATA["classes"])
SUMMARY = f"A small image model that knows {C} {'class' if C == 1 else 'classes'}"
SUMMARY += (
    f", and says which of its answers to {Q} {'question' if Q == 1 else 'questions'} speak for the one it names."
    if Q
    else ". It answers no questions, so it gives no reasons."
)
EXPLAINED = (
    "Each answer has a weight: how far it moves the score of the class, in log-odds, compared with "
    f"{text(DATA['against'])}. Bars to the right speak for the class, bars to the left against it. Weights of several "
    "answers do not add up, and they tell what this model computes with, not why things are so. "
)
WARNING = "Models err, and are sure of what they have never seen: take nothing here for advice."
WAITING = '<h2>Class</h2><p class="madkd-quiet">Choose an image.</p>'
EXAMPLES = [str(HERE / example["file"]) for example in DATA["examples"]]
CSS = """
footer :is(a, button, .divider) { color: var(--madkd-grey) !important; }  /* Gradio's own, too pale to be read */
#examples, #examples .grid-wrap { min-height: 0 !important; max-height: none !important; height: auto !important; }
#examples .grid-container { grid-template-columns: repeat(6, minmax(0, 84px)) !important; grid-auto-rows: auto; }
"""

with gr.Blocks(title=DATA["title"], analytics_enabled=False) as demo:
    gr.HTML(f'<h1>{text(DATA["title"])}</h1><p class="madkd-quiet">{SUMMARY}</p>')
    with gr.Row():
        with gr.Column(scale=5):
            image = gr.Image(
                type="filepath",
                image_mode=None,
                format="png",
                label="Image",
                sources=["upload", "webcam", "clipboard"],
                height=320,
                alt_text="The image that you chose",
            )
            gr.HTML("<h2>Examples</h2>", visible=bool(EXAMPLES))
            gallery = gr.Gallery(
                EXAMPLES,
                label="Examples",
                show_label=False,
                container=False,
                columns=6,
                allow_preview=False,
                interactive=False,
                buttons=[],
                visible=bool(EXAMPLES),
                elem_id="examples",
            )
        with gr.Column(scale=6):
            classes = gr.HTML(WAITING, elem_id="classes")
            answers = gr.State()
            label = gr.Dropdown(
                [(name, index) for index, name in enumerate(DATA["classes"])],
                value=None,
                label="Reasons for the class",
                visible=HAS_REASONS,
            )
            because = gr.HTML("", elem_id="reasons")
    with gr.Accordion("How to read this page", open=False):
        gr.HTML(f'<p class="madkd-quiet">{EXPLAINED * HAS_REASONS}{WARNING}</p>')
    gr.HTML(links_html(DATA))
    image.change(classify, image, [classes, answers, label, because], api_name="classify")
    gallery.select(example, None, image, api_name=False)
    label.input(explain, [answers, label], because, api_name=False)


if __name__ == "__main__":
    theme = gr.themes.Default(font=["system-ui", "sans-serif"])  # no font of somebody else's server
    demo.launch(
        theme=theme,
        css=CSS,
        css_paths=HERE / "bars.css",
        allowed_paths=[str(HERE / "examples")],
        run_history=False,
        ssr_mode=False,
    )
