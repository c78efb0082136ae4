"""What README and docs tell people to type, typed; what they show, compared with what the commands wrote."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from builders import tiny
from builders.coco import coco_rows
from builders.labelled_birds import birds, save_labelled
from builders.llm_server import LLMServer
from builders.openai_server import OpenAIServer
from builders.quick_python import online_python, quick_bin
from builders.student_files import student_files
from transformers import AutoModelForImageClassification, Dinov2Config, ViTImageProcessorPil

from madkd_hf import MadkdTrainingArguments


ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    ]
}
OF_THEIR_OWN = {  # pages with a test that does what they say
    "docs/your_own_teacher.md": "tests/teachers/test_your_own_teacher.py",
    "docs/your_own_loss.md": "tests/students/losses/test_your_own_loss.py",
}
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
BLOCKS = {
    page: [(language, mark.strip(), code) for language, mark, code in BLOCK.findall(text)]
    for page, text in PAGES.items()
    if page not in OF_THEIR_OWN
}
IN_YAML = [  # a command line, and the file that tells it
    (line, path.relative_to(ROOT).as_posix())
    for path in sorted((ROOT / "recipes").rglob("*.yaml"))
    for line in re.findall(r"^# +((?:madkd|accelerate launch|python) .*\w)$", path.read_text("utf-8"), re.MULTILINE)
]
MARKS = {"", "install", "long"}  # a block runs; is never run; runs in the slow tests
BIRDS = BLOCKS["docs/quickstart.md"][0][2]  # the bank of questions that all pages mean by aspects.json
SERVER = "http://localhost:11434/v1"
SERVED, SERVED_MODEL = "http://localhost:8000/v1", "Qwen/Qwen3-VL-8B-Instruct"  # a teacher behind a server
SMALLER = [  # in YAML files and in blocks
    (r"(max_steps\W+)\d+", r"\g<1>2"),
    (r"(num_train_epochs\W+)\d+", r"\g<1>1"),
    (r"(lr_milestones\W+)[^]]+", r"\g<1>0.5"),
    (r"(\bseeds\W+)\d+", r"\g<1>2"),
    (r"((?:images_per_class|scenes): )\d+", r"\g<1>2"),
    (r"(sample: )\d+", r"\g<1>48"),
    (r"(--bank \S*candidates\S* --limit )\d+|(--limit )60|(range\()120", r"\1\2\g<3>48"),
    (r'"train": \d{4}(?:, "validation": 400, "test": 600)?', '"train": 48, "validation": 24, "test": 24'),
    (r"\[5, 10, 20, 50\]|\[2, 4, 8, 12, 16\]", "[1, 2]"),
    (r"\[10, 20, 40\]", "[10]"),
    (r"(dataloader_num_workers: )\d+", r"\g<1>0"),
    (r"python benchmarks/(\w+).py.*", r"python benchmarks/\1.py --help"),  # tests of their own run them
]


def smaller(text: str) -> str:
    for pattern, replacement in SMALLER:
        text = re.sub(pattern, replacement, text)
    return text


class Writer:
    """An LLM that writes questions about birds, and selects the first of them."""

    def complete(self, messages: list[dict[str, str]], *_: object) -> str:
        if '"selected"' in messages[-1]["content"]:
            return json.dumps({"selected": list(range(1, 11))})
        seen = (
            "red blue green black brown gray yellow teal large small round thin long short wet old dark bright".split()
        )
        seen += "striped spotted shiny hungry".split()
        return json.dumps({"questions": [{"id": w, "question": f"Is it {w}?", "group": "visual"} for w in seen]})


@pytest.fixture
def folder(tmp_path, hub):
    """What pages take for granted: a checkout with small settings, and small things under the names of large ones."""
    for path in sorted((ROOT / "recipes").rglob("*")):
        copy = tmp_path / path.relative_to(ROOT)
        if path.is_dir():
            copy.mkdir(parents=True)
        elif path.name == "scenes.py" or path.suffix == ".yaml" and path.parent.name != "accelerate":
            limit = "\nlimit: 72\n" if path.suffix == ".yaml" else ""
            copy.write_text(smaller(path.read_text(encoding="utf-8")) + limit, encoding="utf-8")
        else:
            copy.symlink_to(path)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    (tmp_path / "aspects.json").write_text(BIRDS, encoding="utf-8")
    quick_bin(tmp_path / "bin", online_python(hub))
    birds = {}
    for i, image in enumerate(tiny.images(24, 64)):
        image.save(tmp_path / "photo.jpg")
        name = f"{'train' if i < 16 else 'test'}/{['finch', 'heron'][i % 2]}/{i}.jpg"
        birds[name] = (tmp_path / "photo.jpg").read_bytes()
    hub.add_repo("you/birds", birds, "dataset")
    hub.add_repo("microsoft/resnet-18", student_files(tmp_path))
    hub.add_repo("facebook/dinov2-small", dinov2(tmp_path / "dinov2"))
    hub.add_repo("OpenGVLab/InternVL3-8B-hf", ROOT / "recipes/easy_vqa/teacher")
    return tmp_path


def dinov2(folder: Path) -> Path:
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def run_block(language: str, code: str, folder: Path, environment: dict[str, str]) -> str:
    environment = {**environment, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OPENAI_API_KEY": "sk-nobodys"}
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    interpreter = ["python", "-c"] if language == "python" else ["bash", "-euc"]
    done = subprocess.run([*interpreter, code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def to_run(page: str, *marks: str) -> list[tuple[str, str]]:
    return [
        (language, code) for language, mark, code in BLOCKS[page] if language in ("bash", "python") and mark in marks
    ]


def run_page(page: str, marks: tuple[str, ...], folder: Path, environment: dict[str, str]) -> str:
    with OpenAIServer(llm=Writer()) as server, LLMServer(name=SERVED_MODEL) as teacher:
        blocks = [
            (language, smaller(code).replace(SERVER, server.url).replace(SERVED, teacher.url))
            for language, code in to_run(page, *marks)
        ]
        return "\n".join(run_block(language, code, folder, environment) for language, code in blocks)


@pytest.mark.parametrize("page", [page for page in BLOCKS if to_run(page, "")])
def test_blocks_of_a_page_run_in_order(page, folder, hub):
    printed = run_page(page, ("",), folder, hub.environment(hub.home))
    if page == "docs/hub.md":
        assert f"Published: {hub.url}/datasets/you/birds-aspects" in printed
        assert "Does the bird have a hooked beak?" in printed and "hooked beak: " in printed


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in BLOCKS if to_run(page, "long")])
def test_long_blocks_run_with_small_settings(page, folder, hub):
    run_page(page, ("", "long") if page == "README.md" else ("long",), folder, hub.environment(hub.home))


@pytest.fixture
def on_the_hub(hub, folder):
    """Small things under the names of all datasets and models in YAML files."""
    save_labelled(folder / "runs/flowers102/labelled")
    for path in sorted(folder.glob("recipes/*/*.yaml")):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        add_dataset(hub, config)
        if "/" in config.get("backbone", "") and not config["backbone"].startswith("recipes/"):
            hub.add_repo(config["backbone"], folder / ("dinov2" if "vit" in config["backbone"] else "resnet"))
        if not config.get("detector", "recipes/").startswith("recipes/"):
            hub.add_repo(config["detector"], ROOT / "recipes/easy_vqa/detector")


def add_dataset(hub, config: dict) -> None:
    """Some birds, or scenes, in the splits that a configuration names."""
    name = config.get("dataset", ":")
    if ":" in name:
        return
    rows = birds()
    rows, splits = (coco_rows(8), ("train", "val")) if name.endswith("coco") else (rows, ("train", "val", "test"))
    files = {}
    for split in splits:
        rows.to_parquet(file := io.BytesIO())
        files[f"data/{split}-00000-of-00001.parquet"] = file.getvalue()
    hub.add_repo(name, files, "dataset")


def test_command_lines_in_yaml_files_name_their_file():
    assert len(IN_YAML) > 40
    for line, path in IN_YAML:
        assert f"--config {path} " in line


@pytest.mark.slow
@pytest.mark.parametrize(("line", "path"), IN_YAML, ids=[path for _, path in IN_YAML])
def test_command_lines_in_yaml_files_run(line, path, folder, hub, on_the_hub):
    run_block("bash", line, folder, hub.environment(hub.home))


def test_marks_of_blocks_are_known():
    assert {mark for blocks in BLOCKS.values() for _, mark, _ in blocks} == MARKS


def test_pages_that_are_not_run_here_are_run_elsewhere():
    for page, test in OF_THEIR_OWN.items():
        assert page not in PAGES or Path(page).name in (ROOT / test).read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len(PAGES["README.md"].split()) < 1200 and PAGES["README.md"].count("\n") < 180


def anchors(page: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", PAGES[page]), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page])]
    links = [(page, *link.partition("#")[::2]) for page, link in links if not link.startswith("http")]
    assert len(links) > 50
    for page, path, anchor in links:
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {path}"
        assert not anchor or anchor in anchors(target.resolve().relative_to(ROOT).as_posix()), (
            f"{page}: {path}#{anchor}"
        )


def test_every_page_of_the_documents_is_linked_from_the_readme():
    assert [page for page in PAGES if page.startswith("docs/") and f"({page})" not in PAGES["README.md"]] == []


def cells(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", text, re.MULTILINE)
    ]


def test_the_tables_of_results_are_the_reports():
    """Each row is one of a report's, perhaps without some of its columns."""
    reports = (ROOT / "recipes").glob("*/results/**/*.md")
    rows = [row for report in reports for row in cells(report.read_text(encoding="utf-8"))]
    shown = [
        row
        for page in ("README.md", "docs/experiments.md")
        for row in cells(PAGES[page])
        if re.search(r"\d\.\d", str(row)) and "→" not in str(row)  # what others report
    ]
    assert len(shown) == 4 + 4 + 9 + 7 + 8 + 6 + 5 + 10 + 3 + 4 + 8 + 5 + 18 + 8 + 5
    for row in shown:
        assert any(all(cell in iter_ for cell in row) for report in rows for iter_ in [iter(report)]), row


def test_what_the_paper_reports_is_the_same_everywhere():
    paper = [row[:2] for row in cells(PAGES["docs/experiments.md"]) if len(row) == 5 and "→" in row[1]]
    files = [path.read_text(encoding="utf-8") for path in (ROOT / "recipes").glob("*/attach.yaml")]
    told = dict(re.findall(r"^# ([^:]+): .*the paper: ([\d.]+ -> [\d.]+)\.$", "\n".join(files), re.MULTILINE))
    assert {name: figures.replace("→", "->") for name, figures in paper} == told and len(told) == 8


def test_tables_fit_a_page():
    rows = [
        row
        for page in PAGES
        if page != "docs/commands.md"
        for row in re.findall(r"^\|.*\|$", PAGES[page], re.MULTILINE)
    ]
    assert [row for row in rows if len(row) > 100] == []


def without_other_commands(block: re.Match) -> str:
    """A block that is never run may hold commands of others: what `madkd` is told in it, and other blocks whole."""
    if block[2].strip() != "install":
        return block[0]
    return "\n".join(re.findall(r"^madkd (?:.*\\\n)*.*$", block[3], re.MULTILINE))


def test_options_that_are_named_exist():
    """As fields of the arguments of some command, or as options of a script."""
    known = {"help", "config", "config_file", "num_processes", *MadkdTrainingArguments.__dataclass_fields__}
    scripts = (ROOT / "benchmarks").glob("*.py"), (ROOT / "madkd_hf/cli").rglob("*.py")
    own = [*(ROOT / "recipes/flowers102").glob("*.py")]
    own += [ROOT / "recipes/easy_vqa/questions_curve.py", ROOT / "recipes/jobs/label.py"]
    for script in itertools.chain(*scripts, own):
        found = re.findall(r'"--(\w+)"|^    (\w+): .*= option\(', script.read_text(encoding="utf-8"), re.MULTILINE)
        known |= {name for names in found for name in names}
    texts = [BLOCK.sub(without_other_commands, page) for page in PAGES.values()]
    named = {option for text in texts for option in re.findall(r"(?<![\w-])--(\w+)(?![\w-])", text)}
    assert len(named) > 50 and named - known == set()


def test_make_targets_that_are_named_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"(?:`|^)make ([a-z][a-z-]*)", "\n".join(PAGES.values()), flags=re.MULTILINE)
    assert named and set(named) <= targets


def test_files_that_are_named_are_there():
    named = {
        path
        for page in BLOCKS
        for path in re.findall(r"(?<![\w/.])(?:benchmarks|madkd_hf|recipes|tests)/[\w/.]+\.\w+", PAGES[page])
    }
    assert len(named) > 20 and [path for path in sorted(named) if not (ROOT / path).exists()] == []
