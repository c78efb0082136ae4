from setuptools import find_packages, setup


extras = {
    "demo": ["easy-vqa>=1.0"],
    "detection": ["albumentations>=2.0.5", "pycocotools>=2.0.8"],
    "gguf": ["gguf>=0.10"],
    "onnx": ["onnx>=1.21", "onnxruntime>=1.23", "onnxscript>=0.7"],
    "openai": ["openai[aiohttp]>=3.0"],
    "peft": ["peft>=0.18"],
    "serving": ["fastapi>=0.165", "prometheus-client>=0.20", "python-multipart>=0.0.20", "uvicorn>=0.54"],
    "test": ["pytest>=8.2", "pytest-xdist>=3.8", "import-linter>=2.1"],
    "quality": ["ruff>=0.9"],
}
extras["dev"] = [requirement for group in extras.values() for requirement in group]

setup(
    name="madkd_hf",
    version="0.1.0",
    description="Multi-aspect knowledge distillation for the Hugging Face ecosystem",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["madkd_hf", "madkd_hf.*"]),
    package_data={
        "madkd_hf.hub.cards": ["*.md"],
        "madkd_hf.spaces": ["static/*", "gradio/*"],
        "madkd_hf.viewer": ["static/*"],
    },
    entry_points={
        "console_scripts": [
            "madkd = madkd_hf.cli.main:main",
            "hf-madkd = madkd_hf.cli.main:main",  # by which `hf` finds an extension
        ]
    },
    python_requires=">=3.10",
    install_requires=[
        "accelerate>=1.14",
        "datasets>=5.2",
        "evaluate>=0.4.6",
        "filelock>=3.12",
        "huggingface_hub>=2.4",
        "jinja2>=3.1.6",
        "json_repair>=0.60",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "pillow>=11.0",
        "pyyaml>=6.0",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "snowballstemmer>=2.2",
        "tenacity>=8.5",
        "torch>=2.13",
        "torchvision>=0.28",  # brought along, never needed: image processors that use it are quicker, videos need it
        "tqdm>=4.66.3",
        "transformers>=5.18",
        "xxhash>=3.1",
    ],
    extras_require=extras,
)
