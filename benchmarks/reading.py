"""How fast is each way of reading Q yes/no answers about an image, and how exact?

Random weights in InternVL's architecture: neither speed nor exactness depends on what they are. Every strategy reads
the same images in turn, one round after the other; the ratio is the median over rounds of reference time / time, both
with the mass (the whole vocabulary at each answer) and with image preprocessing, which the reference repeats for each
question, as a loop over questions does. With --preprocessed it is the model alone. TFLOP/s count what the strategy
itself computes.

    python benchmarks/reading.py                              # 8 layers, 512 wide, 256 image tokens, on this CPU
    python benchmarks/reading.py --shape 8b --tiles 13 --device cuda --dtype bfloat16 --preprocessed
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from tqdm.auto import tqdm
from transformers import (
    BatchFeature,
    CLIPImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from madkd_hf import Aspect, AspectBank, AspectTeacher
from madkd_hf.report import markdown_table
from madkd_hf.teachers.mllm.layout import Layout, encode
from madkd_hf.teachers.mllm.selfcheck import flops, patches
from madkd_hf.teachers.mllm.strategies import STRATEGIES


VOCABULARY = 151_674
TOKENS_PER_TILE = 256
TEMPLATE = (
    "{% for m in messages %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %} assistant"
)
SHAPES = {  # width, layers, heads, key heads, MLP width of the text model; width, layers, heads, MLP width of vision
    "tiny": ((32, 2, 2, 1, 64), (32, 1, 2, 64)),
    "cpu": ((512, 8, 8, 2, 2048), (256, 8, 4, 1024)),
    "1b": ((896, 24, 14, 2, 4864), (1024, 24, 16, 4096)),
    "8b": ((3584, 28, 28, 4, 18944), (1024, 24, 16, 4096)),
}


class TiledProcessor(LlavaProcessor):
    """One image as several tiles of 448 x 448 pixels, 256 tokens each, without torchvision.

    `done` keeps what was made of each image and text, where that is not to be measured.
    """

    tiles = 1
    done: dict[tuple[bytes, str], BatchFeature] | None = None

    def __call__(self, images, text, return_tensors="pt"):
        if self.done is None:
            return self._inputs(images[0], text[0])
        key = images[0].tobytes()[:64], text[0]  # images are noise, and begin differently
        if key not in self.done:
            self.done[key] = self._inputs(images[0], text[0])
        return BatchFeature(self.done[key])

    def _inputs(self, image: Image.Image, text: str) -> BatchFeature:
        tile = self.image_processor(image, return_tensors="pt")["pixel_values"]
        text = text.replace("<image>", " <image> " * TOKENS_PER_TILE * self.tiles)
        return BatchFeature(
            {**self.tokenizer(text, return_tensors="pt"), "pixel_values": tile.repeat(self.tiles, 1, 1, 1)}
        )


def processor(tiles: int, keep: bool = False) -> TiledProcessor:
    words = ["<pad>", "<unk>", "<image>", "yes", "no", "?", *(f"w{i}" for i in range(2000))]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=["<image>"]
    )
    images = CLIPImageProcessorPil(size={"height": 448, "width": 448}, do_center_crop=False)
    made = TiledProcessor(
        images, tokenizer, patch_size=28, vision_feature_select_strategy="full", chat_template=TEMPLATE
    )
    made.tiles, made.done = tiles, {} if keep else None
    return made


def model(shape: str, device: str, dtype: torch.dtype, attention: str) -> InternVLForConditionalGeneration:
    (width, layers, heads, key_heads, mlp), (vision_width, vision_layers, vision_heads, vision_mlp) = SHAPES[shape]
    text = Qwen2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=mlp,
        vocab_size=VOCABULARY,
        max_position_embeddings=32768,
    )
    vision = InternVLVisionConfig(
        hidden_size=vision_width,
        num_hidden_layers=vision_layers,
        num_attention_heads=vision_heads,
        intermediate_size=vision_mlp,
        image_size=448,
        patch_size=14,
    )
    config = InternVLConfig(vision_config=vision, text_config=text, image_token_id=2)
    with torch.device(device):
        made = InternVLForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation=attention)
    return made.eval()


def bank(questions: int, length: int, shared: float) -> AspectBank:
    """Questions of `length` words on average, a third shorter to a third longer, in five groups with one beginning.

    The beginning is `shared` of the average length; 0 makes questions that begin in no way alike.
    """
    draw = np.random.default_rng(0)
    common = round(shared * length)
    lengths = np.linspace(length * 2 / 3, length * 4 / 3, questions).round().astype(int)
    texts = [
        [f"w{100 * (i % 5) + place}" for place in range(common)]
        + [f"w{word}" for word in draw.integers(500, 2000, size)]
        for i, size in enumerate(lengths - common)
    ]
    return AspectBank([Aspect(f"aspect-{i}", " ".join(words) + "?") for i, words in enumerate(texts)])


class PeakMemory:
    """The growth of memory within, in MiB: of the GPU's allocator, or of this process."""

    def __init__(self, device: str):
        self.cuda = device.startswith("cuda")

    def __enter__(self) -> PeakMemory:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)
            self.process, self.done = psutil.Process(), threading.Event()
            self.before = self.peak = self.process.memory_info().rss
            self.thread = threading.Thread(target=self._watch)
            self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.001):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.peak = torch.cuda.max_memory_allocated()
        else:
            self.done.set()
            self.thread.join()
        self.mebibytes = (self.peak - self.before) / 2**20


def seconds(teacher: AspectTeacher, images: list[Image.Image], questions: AspectBank) -> float:
    synchronize = torch.cuda.synchronize if teacher.model.device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    teacher.read(images, questions)
    synchronize()
    return (time.perf_counter() - start) / len(images)


def first_reading(
    teacher: AspectTeacher,
    names: list[str],
    args: argparse.Namespace,
    images: list[Image.Image],
    questions: AspectBank,
) -> tuple[dict[str, torch.Tensor], dict[str, float], dict[str, str]]:
    """Log-odds and memory in MiB by strategy, and why a strategy cannot read; it warms everything up."""
    readings, memory, failed = {}, {}, {}
    for name in tqdm(names, desc="first reading", unit=" strategies"):
        teacher.plan = {"strategy": name, "batch_size": args.batch_size, "errors": {}}
        try:
            with PeakMemory(args.device) as peak:
                readings[name] = teacher.read(images, questions).logits
        except Exception as error:  # such as an implementation of attention that takes no mask
            if name == "full":
                raise
            failed[name] = f"{type(error).__name__}: {error}"
            continue
        memory[name] = peak.mebibytes
    return readings, memory, failed


def measure(args: argparse.Namespace) -> list[dict[str, float | str]]:
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    made = model(args.shape, args.device, dtype, args.attention)
    teacher = AspectTeacher(made, processor(args.tiles, args.preprocessed), batch_size=args.batch_size)
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 256, (300, 400, 3), dtype=np.uint8)) for _ in range(args.images)]
    questions = bank(args.questions, args.length, args.shared)
    layout = teacher.layout(questions)
    names = list(dict.fromkeys(["full", *(args.strategies or STRATEGIES)]))
    readings, memory, failed = first_reading(teacher, names, args, images, questions)
    times = {name: [] for name in readings}
    start, rounds = time.perf_counter(), 0
    while rounds < args.rounds and (not rounds or time.perf_counter() - start < args.seconds):
        for name in tqdm(times, desc=f"round {rounds + 1}", unit=" strategies"):
            teacher.plan = {"strategy": name, "batch_size": args.batch_size, "errors": {}}
            times[name].append(seconds(teacher, images, questions))
        rounds += 1
    inputs = encode(teacher.processor, images[0], layout.texts[0])
    prefix = inputs["input_ids"].shape[1] - len(layout.suffixes[0])
    spread = readings["full"].std(dim=1).mean()
    rows = []
    for name in times:
        rate = 1 / statistics.median(times[name])
        row = {"name": name, "ratio": statistics.median(full / own for full, own in zip(times["full"], times[name]))}
        row |= {"images_per_second": rate, "memory_mib": memory[name]}
        row["tflops"] = rate * flops(name, layout, prefix, made, patches(inputs, made)) / 1e12
        row["max_error"] = float((readings[name] - readings["full"]).abs().max() / spread)
        rows.append(row)
    print(about(args, layout, prefix, rounds))
    return rows + [{"name": name, "failed": reason} for name, reason in failed.items()]


def about(args: argparse.Namespace, layout: Layout, prefix: int, rounds: int) -> str:
    sizes = [len(suffix) for suffix in layout.suffixes]
    return (
        f"{args.shape} shape, {args.dtype} on {args.device}, attention {args.attention}: {prefix} tokens before the "
        f"questions part, {len(sizes)} questions of {min(sizes)} to {max(sizes)} tokens (mean {np.mean(sizes):.1f}), "
        f"{args.images} image(s) per reading, batch size {args.batch_size}, {rounds} rounds, "
        f"{'without' if args.preprocessed else 'with'} preprocessing."
    )


def table(rows: list[dict[str, float | str]]) -> str:
    lines = [["Strategy", "Images/s", "Times faster", "TFLOP/s", "Memory, MiB", "Error"]]
    failed = [f"{row['name']} cannot read this: {row['failed']}" for row in rows if "failed" in row]
    for row in [row for row in rows if "failed" not in row]:
        numbers = [f"{row['images_per_second']:.3g}", f"{row['ratio']:.1f}", f"{row['tflops']:.3g}"]
        lines.append([row["name"], *numbers, f"{row['memory_mib']:.0f}", f"{row['max_error']:.1e}"])
    return "\n".join([markdown_table(lines, right=range(1, 6)), *failed])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="cpu", help="sizes of text model and vision tower")
    parser.add_argument("--tiles", type=int, default=1, help="tiles of an image, 256 tokens each")
    parser.add_argument("--questions", type=int, default=50, help="Q")
    parser.add_argument("--length", type=int, default=24, help="words of a question on average")
    parser.add_argument(
        "--shared", type=float, default=0.0, help="share of a question that begins a fifth of them alike"
    )
    parser.add_argument("--images", type=int, default=1, help="images per reading")
    parser.add_argument("--batch_size", type=int, default=256, help="image-question pairs in one forward pass")
    parser.add_argument("--rounds", type=int, default=3, help="timed readings of each strategy")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no other round begins")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, help="by default all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to compute")
    parser.add_argument("--dtype", default="float32", help="what to compute in")
    parser.add_argument("--attention", default="sdpa", help="the model's attention: sdpa, flash_attention_2 or eager")
    parser.add_argument("--preprocessed", action="store_true", help="leave the preprocessing of images out of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    args = parser.parse_args()
    rows = measure(args)
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
