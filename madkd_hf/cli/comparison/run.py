"""What `madkd compare` does: labels, trains the students of all conditions, reports and publishes."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers
from datasets import DatasetDict
from huggingface_hub import ModelCard

from ... import report
from ...data.image_processors import load_image_processor
from ...data.limits import how_drawn
from ...data.objects import flatten_objects
from ...data.problems import Problems
from ...data.target_facts import TargetFacts
from ...files import new_folder
from ...hub.cards.results import Evaluation
from ...hub.cards.student import StudentFacts
from ...hub.student import push_student
from ...hub.upload import HubRepo
from ...report.classes import calibration_sentence
from ...report.comparison import answers_alone_text, over_controls, verdict_of
from ...report.grid import grid_answers_text, grid_table, grid_verdict, write_grid
from ...students.base.saved import ADAPTER
from ...text import terminal
from ..arguments import command_line, source
from ..outputs import COMPARING, COMPARISON, working_in
from ..preflight import Ready
from ..student import about_dataset
from ..train import parse as parse_student
from .answers import AnswersAlone
from .cells import Cell
from .class_teachers import train_all
from .conditions import check, label, load_checked, plan, points, settings_of_all, student_argv
from .options import CompareArguments
from .pictures import draw_figures


NEXT = """Next, your own photographs (one sub-folder a class) and any MLLM of the Hub:
  madkd label --dataset PHOTOS --bank aspects.json --teacher OpenGVLab/InternVL3-1B-hf --output_dir runs/labelled"""


def compare(args: CompareArguments) -> None:
    """All of it: check, label, train, report, and with --push_to_hub publish."""
    run(args, *checked(args))
    if not args.detects and points(args) == [{}]:
        print(NEXT)


def checked(args: CompareArguments) -> tuple[Ready, HubRepo | None]:
    """What `run` takes; raises all that keeps it from beginning."""
    problems = Problems()
    repo = problems.step(check_publishing, args)
    return load_checked(args, problems, problems.step(check, args), "scored"), repo


def run(args: CompareArguments, ready: Ready, repo: HubRepo | None) -> None:
    """Everything after the checks."""
    with working_in(args.output_dir, args, COMPARING, COMPARISON):
        _compare(args, ready, repo)


def _compare(args: CompareArguments, ready: Ready, repo: HubRepo | None) -> None:
    datasets.disable_progress_bars()  # ours remain: images labelled, students trained
    transformers.utils.logging.disable_progress_bar()
    started = [time.perf_counter()]
    labelled, bank, teacher = label(args, ready.splits)
    started.append(time.perf_counter())
    planned = [(point, plan(args, point, labelled, bank)) for point in points(args)]
    results = train_all(args, planned, labelled, bank)
    about = {
        "dataset": args.dataset,
        "commit": source(args)["commit"],
        "classes": args.command.classes(labelled[args.train_split], args).num_classes,
        "bank": bank.fingerprint,
        "teacher": about_teacher(teacher.provenance if teacher else bank.provenance or {}, labelled, args),
        "left_out": ready.summary,
        "train_split": args.train_split,
        "drawn": ready.drawn(args),
        "validated": args.eval_split in ready.splits,
        "command": command_line(),
    }
    if planned[0][0]:
        return report_points(args, planned, results, about, AnswersAlone(args, labelled, bank))
    student = copy_student(args)
    started.append(time.perf_counter())
    cells = [{**results[cell.name], "condition": key[0], "seed": key[1]} for key, cell in planned[0][1].items()]
    summary = report.summarise(cells, args.objects.task)
    if not args.detects:
        summary["answers_alone"] = AnswersAlone(args, labelled, bank).measure(planned[0][1])
    pictures, by_class = draw_figures(args, labelled, bank, teacher, cells, summary, student)
    started.append(time.perf_counter())
    summary |= about | {
        "images_per_class": args.images_per_class,
        "settings": settings_of_all(args),
        "unlabelled": count_unlabelled(args, labelled),
        "scenes": args.objects.scenes,
        "smoothing": args.smoothing if "smoothing" in args.controls() else None,
        "seconds": dict(zip(("label", "train", "report"), np.diff(started).tolist())),
        "figures": pictures,
    }
    report_path = report.write_report(summary, args.output_dir)
    sentences = [f"{verdict_of(summary)}."] if "gain" in summary else []
    sentences += filter(None, [over_controls(summary), answers_alone_text(summary)])
    sentences += [calibration_sentence(by_class)] if by_class and "calibration" in by_class else []
    print(f"\n{report.table(summary)}\n", *sentences, f"Report and pictures: {report_path}", sep="\n")
    if repo:
        url = publish(args, repo, student, results[f"{args.treated}-0"]["metrics"], summary, labelled)
        print(f"Published: {terminal(url)}")


def report_points(
    args: CompareArguments,
    planned: list[tuple[dict[str, Any], dict[tuple[str, int], Cell]]],
    results: dict[str, dict[str, Any]],
    about: dict[str, Any],
    answers: AnswersAlone,
) -> None:
    """The report of a grid."""
    summaries = []
    for point, cells in planned:
        on = {}
        for images in ("test", "eval") if about["validated"] else ("test",):
            scores = {key: 100 * results[cell.name]["metrics"][f"{images}_accuracy"] for key, cell in cells.items()}
            on[images] = report.summarise(
                [{"condition": name, "seed": seed, "accuracy": score} for (name, seed), score in scores.items()]
            )
        validation = on.get("eval", {}).get("accuracy", {})
        summary = {"point": point, **on["test"], "validation": validation}
        summaries.append({**summary, "answers_alone": answers.measure(cells, point.get("aspects"))})
    same = {} if "images_per_class" in planned[0][0] else {"images_per_class": args.images_per_class}
    report_path = write_grid({"points": summaries, **same, **about}, args.output_dir)
    sentences = "\n".join(filter(None, [grid_verdict(summaries), grid_answers_text(summaries)]))
    print(f"\n{grid_table(summaries)}\n\n{sentences}\nReport and pictures: {report_path}")


def count_unlabelled(args: CompareArguments, labelled: DatasetDict) -> int | None:
    """How many images without a class some students learn from; None where none do."""
    if not args.learning_unlabelled:
        return None
    return args.command.count_without_class(labelled, args, 0)


def copy_student(args: CompareArguments) -> Path | None:
    """Copy the first distilled student to where users look for it."""
    if args.treated not in args.controls():
        return None
    trained, student = (Path(args.output_dir) / name for name in (f"cells/{args.treated}-0", "student"))
    ignored = shutil.ignore_patterns("cell.json", "*.npz", "log.txt", "checkpoint-*", ".madkd.*")
    with new_folder(student, "student") as new:
        shutil.copytree(trained, new, ignore=ignored, dirs_exist_ok=True)
    return student


def about_teacher(provenance: dict[str, Any], labelled: DatasetDict, args: CompareArguments) -> dict[str, Any]:
    """The teacher's provenance, how far its answers are to be trusted, and what its card reports of it."""
    rows = labelled[args.train_split]
    rows = flatten_objects(rows) if args.detects else rows
    mass = np.array([row for row in rows["aspect_mass"] if row is not None])
    about = dict(provenance)
    if mass.size:
        about |= {"mean_mass": float(mass.mean()), "lowest_mass": float(mass.min())}
    card = Path(args.teacher or "") / "README.md"
    if args.teacher and card.is_file():
        results = ModelCard.load(card, ignore_metadata_errors=True).data.eval_results or []
        about["card"] = {f"{result.dataset_name}: {result.metric_name}": result.metric_value for result in results}
    return about


def check_publishing(args: CompareArguments) -> HubRepo | None:
    """The repo to publish to, checked before anything starts; None without --push_to_hub."""
    if not args.push_to_hub:
        return None
    if points(args) != [{}]:
        raise ValueError("A grid has no one student to publish: choose a point, and publish without --grid.")
    if args.treated not in args.controls():
        raise ValueError(
            f"There is no distilled student to publish in {args.conditions}: add {args.treated} to --conditions."
        )
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    return HubRepo(name, "model", **args.repo_settings).check(args.hub_license)


def publish(
    args: CompareArguments,
    repo: HubRepo,
    student: Path,
    metrics: dict[str, Any],
    summary: dict[str, Any],
    labelled: DatasetDict,
) -> str:
    """One commit with the student that is kept, and a card with its own numbers and the comparison's; where it is."""
    evaluations = []
    for name, prefix, split in ("validation", "eval", args.eval_split), ("test", "test", args.test_split):
        if split not in labelled:
            continue
        own = {key.removeprefix(f"{prefix}_"): value for key, value in metrics.items() if key.startswith(f"{prefix}_")}
        drawn = how_drawn(labelled[split])
        auroc = list(summary["aspect_auroc"].values()) or None if prefix == "eval" else None
        evaluations.append(Evaluation(name, own, len(labelled[split]), None if drawn else split, auroc, drawn=drawn))
    student_args, training_args = parse_student(student_argv(args, args.treated, 0, str(student)))
    targets = TargetFacts.load(student)
    facts = StudentFacts(
        about_dataset(args, labelled[args.train_split]),
        evaluations=evaluations,
        comparison=args.output_dir,
        compared=True,
        hyperparameters=args.command.task.trainer.hyperparameters(training_args, class_targets=bool(targets))
        | args.command.hyperparameters(student_args),
        license=args.hub_license,
        targets=targets,
    )
    commit = push_student(
        args.command.task.model.from_pretrained(student),
        load_image_processor(student),
        repo,
        facts,
        plain=args.push_plain,
        adapter=student / ADAPTER if (student / ADAPTER).is_dir() else None,
        commit_message="Upload a distilled student",
    )
    return commit.pr_url or commit.repo_url
