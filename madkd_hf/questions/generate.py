"""Ask an LLM for N yes/no questions, then for the Q of them that tell the classes apart (paper section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from ..aspects import LONGEST, Aspect, AspectBank
from ..llm import LLM, LLMError
from ..text import counted, get_logger, one_line
from .parsing import parse_choice, parse_questions
from .plan import SELECTION_ROUNDS, Plan
from .prompts import ask_choice, ask_questions, choice_schema, question_schema
from .store import CANDIDATES, QuestionTask, Store
from .validation import Rules, fault, searchable_names


logger = get_logger(__name__)


class TooFewQuestionsError(ValueError):
    """The LLM did not write enough good questions; those that are good are saved."""


class Generated(NamedTuple):
    """What came out.

    Attributes:
        candidates: the good questions, N or a few more, in the order in which they came.
        selected: Q of them, as the LLM ranks them.
        n_chosen: how many of these the LLM chose; the others fill up, in the order of the candidates.
    """

    candidates: AspectBank
    selected: AspectBank
    n_chosen: int


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """The names on one line each, without spaces around.

    Raises:
        ValueError: fewer than two, an empty one, the same twice, or one that no file and no request can hold.
    """
    names = tuple(" ".join(name.split()) for name in class_names)
    if len(names) < 2:
        raise ValueError(f"{counted(len(names), 'class name')} given: expected two or more to tell apart.")
    if "" in names:
        raise ValueError(f"Class name {names.index('') + 1} of {len(names)} is empty: remove or mend it.")
    for name in names:
        _check_text(name, "class name")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"The class name {twice!r} is given twice: remove one.")
    return names


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, from a terminal or a file of another encoding
        raise ValueError(f"The {what} {text!a} cannot be written as UTF-8: write it anew.") from error


def generate(store: Store, llm: LLM, plan: Plan | None = None, progress: bool = False) -> Generated:
    """Let an LLM write a bank of questions about classes; what the store holds is not asked for again.

    Args:
        store: of `open_store`; everything is saved there as it comes.
        llm: who writes.
        plan: how many questions, and how to ask for them.
        progress: show a bar of good questions.

    Returns:
        All good questions, and the selected ones.

    Raises:
        TooFewQuestionsError: there are fewer than N good questions after the allowed rounds.
        LLMError: the LLM gives no answer.
    """
    plan = plan or Plan()
    with store.hold():
        try:
            collect(store, llm, plan, progress)
            return select(store, llm, plan)
        except LLMError as error:
            raise LLMError(f"{error}{saved_questions(store)}") from error


def open_store(
    class_names: Sequence[str],
    llm_name: str,
    domain: str = "",
    rules: Rules | None = None,
    folder: str | Path | None = None,
    change_llm: bool = False,
) -> Store:
    """What `generate` begins with, or goes on from.

    Args:
        class_names: the C classes, two or more.
        llm_name: who writes.
        domain: what the images are, such as "photographs of birds".
        rules: what is asked of a question; the class names are added to it.
        folder: where everything is saved; None keeps it in memory.
        change_llm: go on in the folder with another LLM.

    Raises:
        ValueError: class names, domain or folder are not as expected.
    """
    names, rules = check_class_names(class_names), rules or Rules()
    _check_text(domain, "domain")
    _check_text(llm_name, "name of the LLM")
    everyday = [name for name in names if not searchable_names(name)]
    if everyday and not rules.allow_class_names:
        logger.warning(
            "Class names that are everyday words are not searched for in the questions (%s): pass longer ones, such "
            "as 'letter A' for 'A'.",
            ", ".join(map(repr, everyday)),
        )
    task = QuestionTask(names, " ".join(domain.split()), llm_name)
    return Store(folder, task, replace(rules, class_names=names), change_llm)


def collect(store: Store, llm: LLM, plan: Plan, progress: bool = False) -> None:
    """Ask until there are N good questions; all of an answer's are taken, so there may be more."""
    first = store.next_round
    with tqdm(total=plan.candidates, initial=len(store.aspects), desc="questions", disable=not progress) as bar:
        for round in range(first, first + plan.rounds):
            if len(store.aspects) >= plan.candidates:
                return
            before = len(store.aspects)
            _ask_round(store, llm, plan, round)
            store.next_round = round + 1
            bar.update(len(store.aspects) - before)
    if len(store.aspects) < plan.candidates:
        raise TooFewQuestionsError(_too_few(store, plan))


def _ask_round(store: Store, llm: LLM, plan: Plan, round: int) -> None:
    group, count = plan.request(round, plan.candidates - len(store.aspects))
    task, allowed = store.task, store.rules.allow_class_names
    messages = ask_questions(task.class_names, task.domain, count, group, store.questions, allowed)
    completion = llm.complete(messages, question_schema([group]), plan.tokens(count, llm), plan.seed + round)
    proposals = parse_questions(completion)
    for proposal in proposals:
        own_group = next((name for name in plan.groups if name.lower() == proposal.group.lower()), group)
        aspect = Aspect(proposal.id, proposal.question, own_group)
        reason = fault(proposal.question, store.rules, store.questions)
        if reason is None:
            store.add(aspect, round)
        else:
            store.reject(aspect, reason, round)
    if not proposals:
        refusal = getattr(llm, "refusal", "")
        empty = f"a refusal: {refusal}" if refusal else "an empty answer"
        answer = one_line(completion, LONGEST["question"])
        store.reject(Aspect("", answer, group), "no question in the answer" if answer else empty, round)


def select(store: Store, llm: LLM, plan: Plan) -> Generated:
    """Let the LLM choose Q of the questions that are there; what it leaves open is filled in their order."""
    bank, done = AspectBank(store.aspects), store.selection
    by_id = dict(zip(bank.ids, bank.aspects))
    if done and done["of"] == bank.fingerprint and len(done["ids"]) == plan.keep and by_id.keys() >= set(done["ids"]):
        return Generated(bank, AspectBank(by_id[name] for name in done["ids"]), done["chosen"])
    chosen: list[int] = list(range(len(bank))) if len(bank) == plan.keep else []
    for attempt in range(SELECTION_ROUNDS):
        missing = plan.keep - len(chosen)
        if not missing:
            break
        messages = ask_choice(store.task.class_names, store.task.domain, missing, bank.aspects, chosen)
        answer = llm.complete(messages, choice_schema(), plan.tokens(missing // 4, llm), plan.seed + attempt)
        new = parse_choice(answer, bank.questions)
        chosen += [index for index in new if index not in chosen][:missing]
    rest = [index for index in range(len(bank)) if index not in chosen][: plan.keep - len(chosen)]
    selected = AspectBank(bank[index] for index in [*chosen, *rest])
    store.save_selection(bank.fingerprint, selected.ids, len(chosen))
    return Generated(bank, selected, len(chosen))


def saved_questions(store: Store) -> str:
    """Where the good questions are, as the end of an error."""
    if store.folder is None or not store.aspects:
        return ""
    there = counted(len(store.aspects), "good question")
    return f" {store.folder / CANDIDATES} keeps {there}; the same command goes on."


def _too_few(store: Store, plan: Plan) -> str:
    n_good, reasons = len(store.aspects), store.reasons.most_common()
    n_rejected = sum(store.reasons.values())
    why = ", ".join(f"{number} {reason}" for reason, number in reasons) or "nothing was wrong with them"
    tips = [f"--candidates {n_good}, which are there"] if n_good >= plan.keep else []
    tips += ["--allow_class_names"] if reasons and reasons[0][0] == "names the class" else []
    tips += ["more --max_rounds", "other --groups"]
    tips += [f"--candidates {n_good} --keep {n_good}"] if 1 < n_good < plan.keep else []
    tips.append("a larger --llm (with --change_llm it goes on with what is there)")
    return (
        f"{n_good} of {counted(plan.candidates, 'good question')} after {counted(store.next_round, 'request')} to "
        f"{store.task.llm}; of {counted(n_good + n_rejected, 'proposal')} {n_rejected} were rejected: {why}. "
        f"Try {'; '.join(tips[:-1])}; or {tips[-1]}.{saved_questions(store)}"
    )
