"""Let an LLM write a bank of yes/no questions about the classes of a dataset.

It writes N candidates on clear, distinct aspects (visual, categorical, environmental), and then selects the Q of them
that tell the classes apart best. In --output_dir: aspects.json, the Q selected ones, aspects_all.json, all candidates,
candidates.jsonl, rejected.jsonl with the reason of each, and generation.json, what they are about. Everything is kept
as it comes: killed, stopped or out of luck, the same command goes on where it was.

The classes come from --class_names, --class_names_file or the labels of a --dataset. An LLM of Inference Providers
(pip install "madkd_hf[openai]"; log in by `hf auth login`, or set HF_TOKEN; --dry_run shows what it would take):

    madkd ask --dataset dpdl-benchmark/oxford_iiit_pet --domain "photographs of pets" \\
        --llm Qwen/Qwen3-235B-A22B-Instruct-2507 --price_in 0.2 --price_out 0.6 --dry_run --output_dir runs/questions

Any OpenAI-compatible server, such as vLLM, TGI, llama.cpp, Ollama, or OpenAI; its key is in an environment variable:

    madkd ask ... --base_url http://localhost:11434/v1 --llm llama3.3
    madkd ask ... --base_url https://api.openai.com/v1 --llm gpt-4o \\
        --api_key_env OPENAI_API_KEY

A model on this machine, by folder or Hub id, or from a GGUF file (takes the package gguf):

    madkd ask ... --local --llm Qwen/Qwen2.5-7B-Instruct
    madkd ask ... --llm bartowski/Qwen2.5-7B-Instruct-GGUF:Qwen2.5-7B-Instruct-Q4_K_M.gguf

Next: madkd label --bank DIR ... labels images with the answers to the questions.
"""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from .. import AspectBank
from ..aspects import BANK_FILE
from ..data.problems import Problems
from ..files import check_folder, check_output, own_folder, refuse_link
from ..llm import LLM
from ..llm.keys import key_in
from ..llm.local import LocalLLM, split_gguf
from ..questions import MANIFEST, Generated, Plan, Rules, Store, estimate, generate, open_store, saved_questions
from ..students.base.fields import option
from ..text import counted, terminal
from .arguments import CommandParser, DatasetArguments, load_splits
from .interrupts import BEGUN
from .outputs import BANK


ALL_FILE = "aspects_all.json"
KIND = "bank of questions"
OF_A_DATASET = ("dataset_dict.json", "dataset_info.json", "state.json")
LONGEST_TIMEOUT = 1e6  # seconds; clocks end a little later


@dataclass
class ClassNameArguments(DatasetArguments):
    """What the questions are about."""

    _argument_group_name = "classes"

    label_column: str = option("label", "The column of classes in the dataset; a ClassLabel, which has the names.")
    class_names: list[str] | None = option(None, 'Classes in place of a dataset\'s: "black cat" "white dog" ...')
    class_names_file: str | None = option(None, "The same from a file: a name a line, a JSON list, or id2label.")
    domain: str = option("", 'What the images are, such as "photographs of birds": helps the LLM a lot.')


@dataclass
class QuestionArguments:
    """How many questions, and which are good."""

    _argument_group_name = "questions"

    output_dir: str = option("", "The folder of this bank; another task is refused there.")
    candidates: int = option(100, "N: how many good questions to collect.")
    keep: int = option(50, "Q: how many of them the LLM selects.")
    groups: list[str] = option(
        ["visual", "categorical", "environmental"],
        "The kinds of aspects; each request asks for one of them, by turns.",
    )
    per_request: int = option(20, "The most questions to ask for at once.")
    max_rounds: int | None = option(None, "The most requests in one run; by default three times what is needed.")
    allow_class_names: bool = option(False, "Take questions that name a class.")
    any_language: bool = option(False, "Take questions of every language; English ones are checked more.")
    max_characters: int = option(160, "The longest question, in characters.")
    max_words: int = option(25, "The longest question, in words.")


@dataclass
class LLMArguments:
    """Who writes them."""

    _argument_group_name = "LLM"

    llm: str | None = option(
        None, "The model: a Hub id, a name on the server, a folder with --local, or a .gguf file (owner/repo:x.gguf)."
    )
    llm_revision: str | None = option(None, "Branch, tag or commit of a local one.")
    base_url: str | None = option(None, "An OpenAI-compatible server, such as http://localhost:8000/v1.")
    local: bool = option(False, "Run the model on this machine, with transformers.")
    provider: str = option("auto", "Who computes, of Inference Providers: together, groq, ...")
    api_key_env: str | None = option(
        None, "The NAME of the variable with the key; without, only Inference Providers get your Hub token."
    )
    temperature: float = option(0.7, "Of sampling; lower repeats itself more.")
    seed: int = option(0, "Of sampling.")
    max_tokens: int | None = option(
        None, "The longest answer; by default what the questions take, and on a server 4096 more to think."
    )
    timeout: float = option(120.0, "Seconds that one answer may take.")
    retries: int = option(5, "How often a request is repeated that a busy server refused.")
    change_llm: bool = option(False, "Go on with another LLM than the one that the output_dir was begun with.")
    dtype: str = option("auto", "What a local one computes in: auto, float32, bfloat16, ...")
    device: str | None = option(None, "Where; by default an accelerator, if any.")
    trust_remote_code: bool = option(False, "Run code that comes with a local one.")
    price_in: float | None = option(None, "USD per million tokens read, for the estimate.")
    price_out: float | None = option(None, "USD per million tokens written.")
    dry_run: bool = option(False, "Show what it would take, and stop before the first request.")


def main() -> None:
    classes, questions, args = CommandParser(
        ClassNameArguments, QuestionArguments, LLMArguments, description=__doc__
    ).parse()
    folder = Path(questions.output_dir)
    problems = Problems()
    if problems.passes(check_options, args, questions):
        problems.step(check_bank_folder, folder, classes.dataset)
    names = problems.step(class_names, classes)
    problems.raise_all()
    options = {name: getattr(questions, name) for name in ("candidates", "keep", "per_request", "max_rounds")}
    plan = Plan(**options, groups=tuple(questions.groups), max_tokens=args.max_tokens, seed=args.seed)
    options = ("allow_class_names", "any_language", "max_characters", "max_words")
    rules = Rules(**{name: getattr(questions, name) for name in options})
    llm = load_llm(args)
    store = open_store(names, llm.name, classes.domain, rules, folder, args.change_llm)
    check_banks(folder, store)
    print(f"{len(names)} classes; there already: {len(store.aspects)} of {counted(plan.candidates, 'good question')}.")
    if args.dry_run or is_paid(args, llm):
        print_estimate(args, store, llm, plan)
    if not args.dry_run:
        write_banks(folder, store, llm, plan)


def check_options(args: LLMArguments, questions: QuestionArguments) -> None:
    """Refuse what needs no loading to be seen."""
    if not questions.output_dir:
        raise ValueError("No output folder given: pass --output_dir.")
    if args.llm is None:
        raise ValueError("No LLM given: pass --llm with a Hub id, a model of --base_url, or a .gguf file.")
    if args.local and args.base_url:
        raise ValueError("Both --local and --base_url are given: pass one of them.")
    if not 0 < args.timeout <= LONGEST_TIMEOUT:
        raise ValueError(
            f"--timeout is {args.timeout}: expected more than 0, and at most {LONGEST_TIMEOUT:,.0f} seconds."
        )
    for name in ("retries", "temperature", "price_in", "price_out"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"--{name} is {value}: expected 0 or more.")
    for name in ("max_words", "max_characters"):
        if getattr(questions, name) < 1:
            raise ValueError(f"--{name} is {getattr(questions, name)}: expected 1 or more.")
    if (args.price_in is None) != (args.price_out is None):
        raise ValueError("One price is given: pass both --price_in and --price_out, in USD per million tokens.")


def check_bank_folder(folder: Path, dataset: str) -> None:
    """Refuse a folder that cannot be written, one whose bank a dataset needs, or one with a user's files."""
    check_output(folder, dataset)
    for name in (*BANK, BANK_FILE, ALL_FILE):  # of the last two, `check_banks` reads the questions
        refuse_link(folder / name)
    if not (folder / MANIFEST).exists():  # it says what the others are
        check_folder(folder, KIND, BANK)
    if any((folder / name).exists() for name in OF_A_DATASET):
        raise ValueError(f"{folder} holds a dataset: pass another --output_dir, so that its bank stays.")


def class_names(args: ClassNameArguments) -> list[str]:
    """The names from the one source that the arguments give."""
    sources = {
        "--class_names": args.class_names,
        "--class_names_file": args.class_names_file,
        "--dataset": args.dataset,
    }
    given = [name for name, value in sources.items() if value]
    if len(given) != 1:
        raise ValueError(
            f"The class names come from {' and '.join(given) or 'nowhere'}: pass one of {', '.join(sources)}."
        )
    if args.class_names:
        return args.class_names
    return _names_in_file(Path(args.class_names_file)) if args.class_names_file else _names_of_dataset(args)


def _names_in_file(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"There is no file {path}: pass --class_names_file with a name on each line, or JSON.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if not text.lstrip().startswith(("[", "{")):
            return [line.strip() for line in text.splitlines() if line.strip()]
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is neither JSON nor names in UTF-8, one a line ({error}): mend it.") from error
    names = list(content.values()) if isinstance(content, dict) else content
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} holds other things than names: expected a JSON list of texts, or id2label.")
    return names


def _names_of_dataset(args: ClassNameArguments) -> list[str]:
    from datasets import ClassLabel

    splits = load_splits(args, streaming=True)  # nothing but the features is needed
    features = next(iter(splits.values())).features or {}
    label = features.get(args.label_column)
    if isinstance(label, ClassLabel):
        return label.names
    class_columns = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    remedy = f"pass --label_column {class_columns[0]}" if class_columns else "pass --class_names or --class_names_file"
    if label is None:
        raise ValueError(f"{args.dataset} has no column {args.label_column!r} but {', '.join(features)}: {remedy}.")
    raise ValueError(
        f"The column {args.label_column!r} of {args.dataset} is {label}, which has no class names: {remedy}."
    )


def load_llm(args: LLMArguments) -> LLM:
    """What the arguments name, ready to answer; with --dry_run, one that needs no key."""
    if is_local(args):
        return LocalLLM(args.llm, args.llm_revision, args.dtype, args.device, args.temperature, args.trust_remote_code)
    from ..llm.server import ROUTER, HubLLM, ServerLLM

    key = None if args.dry_run else key_in(args.api_key_env, "--api_key_env")
    options = {"timeout": args.timeout, "temperature": args.temperature, "retries": args.retries}
    if args.base_url or args.dry_run:
        return ServerLLM(args.llm, args.base_url or ROUTER, key, **options)
    return HubLLM(args.llm, args.provider, key, **options)


def is_local(args: LLMArguments) -> bool:
    """Whether the model runs in this process."""
    return args.local or (args.base_url is None and split_gguf(args.llm)[1] is not None)


def is_paid(args: LLMArguments, llm: LLM) -> bool:
    """Whether somebody may have to pay for the answers."""
    return not is_local(args) and not llm.server.is_here


def check_banks(folder: Path, store: Store) -> None:
    """Refuse to overwrite banks with other questions than those that this command wrote."""
    for path in (folder / BANK_FILE, folder / ALL_FILE):
        questions = AspectBank.load(path).questions if path.exists() else []
        foreign = next((text for text in questions if text not in store.written), None)
        if foreign is not None:
            raise ValueError(
                f"{path} holds questions that were not written by this command ({foreign!r}), and would be "
                "overwritten: pass another --output_dir, or move it away."
            )


def print_estimate(args: LLMArguments, store: Store, llm: LLM, plan: Plan) -> None:
    """Print what it takes, before it is paid for."""
    tokens = estimate(store, llm, plan)
    print(
        f"{llm.name}: about {counted(tokens.requests, 'request')}, {tokens.tokens_in:,} tokens read and "
        f"{tokens.tokens_out:,} written; at most {tokens.most_requests}, {tokens.most_tokens_in:,} and "
        f"{tokens.most_tokens_out:,} (--max_rounds, --max_tokens)."
    )
    if args.price_in is not None:
        expected, most = tokens.cost(args.price_in, args.price_out)
        print(f"About {expected:.4f} USD, at most {most:.4f} USD, without what is repeated after a time-out.")
    elif not is_local(args):
        print("With --price_in and --price_out, in USD per million tokens, this tells the cost.")


def write_banks(folder: Path, store: Store, llm: LLM, plan: Plan) -> None:
    """Ask until there are enough questions, and save those and the selected ones."""
    try:
        with store.hold():
            BEGUN.append(str(folder))
            if not (folder / MANIFEST).exists():
                own_folder(folder, KIND, BANK)
            result = generate(store, llm, plan, progress=True)
            result.candidates.save(folder / ALL_FILE)
            result.selected.save(folder / BANK_FILE)
    except KeyboardInterrupt as stopped:
        raise type(stopped)(*filter(None, [saved_questions(store).strip()])) from None
    print_result(folder, llm, plan, result)


def print_result(folder: Path, llm: LLM, plan: Plan, result: Generated) -> None:
    """Print the selected questions and the next command."""
    if result.n_chosen < plan.keep:
        print(
            f"Warning: {llm.name} selected only {counted(result.n_chosen, 'question')} of {len(result.candidates)}; "
            "the others are the first of the rest."
        )
    for aspect in result.selected:
        print(f"  {terminal(aspect.group):14} {terminal(aspect.id):24} {terminal(aspect.question)}")
    print(
        f"Now {folder / BANK_FILE} has {counted(plan.keep, 'question')}, selected from {len(result.candidates)} in "
        f"{folder / ALL_FILE}. Next:\n  madkd label --bank {shlex.quote(str(folder))} "
        "--dataset ... --teacher ... --output_dir runs/labelled"
    )
