"""Several comparisons after each other, and one table of all: `madkd compare --config A.yaml B.yaml ...`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ... import AspectBank
from ...data.problems import Problems
from ...files import file_checksum, read_json, read_record, write_record
from ...hub.upload import HubRepo
from ...labelling.manifest import difference_of
from ...report.overview import overview_table, overview_verdict, summarise_all, write_overview
from ..arguments import command_line
from ..outputs import COMPARING_ALL, COMPARISONS, check_place, working_in
from ..preflight import Ready
from .cells import model_digests
from .conditions import of_condition, points, student_cell
from .options import CompareArguments
from .run import checked, run


FINISHED, REPORT = "finished.json", "report.json"
WHERE = ("output_dir", "work_dir", "jobs")  # options without effect on what comes out
OF_LABELLED = ("dataset", "bank", "teacher", "teacher_revision", "teacher_options")  # of a student: noted once for all


@dataclass
class Comparison:
    """One of several: the file that tells it, its options, and what its checks have found."""

    config: str
    args: CompareArguments
    ready: Ready
    repo: HubRepo | None

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir)

    @property
    def decides(self) -> dict[str, Any]:
        """All that decides what comes out: options, students, rows and questions, and the versions of the code."""
        args, students = self.args, {}
        conditions = [*args.controls(), *([args.command.class_teacher] if args.class_teacher else [])]
        for point, condition in itertools.product(points(args), dict.fromkeys(conditions)):
            settings = of_condition(args, point, condition)
            settings.pop("aspects", None)
            more = [f"--{option}={value}" for option, value in settings.items()]
            decides = student_cell(args, condition, 0, "any", more).decides
            name = ", ".join([condition, *(f"{option} {value}" for option, value in settings.items())])
            students[name] = {option: value for option, value in decides.items() if option not in OF_LABELLED}
        bank = AspectBank.load(args.bank or args.dataset, None if args.bank else args.dataset_revision)
        return {
            "options": {option: value for option, value in asdict(args).items() if option not in WHERE},
            "students": students,
            "rows": {split: rows._fingerprint for split, rows in self.ready.splits.items()},
            "bank": bank.fingerprint,
            "teacher": model_digests(Path(args.teacher)) if args.teacher and Path(args.teacher).is_dir() else None,
        }

    def finished(self) -> bool:
        """Whether its report is there, and of the same comparison; a line says why it is run again."""
        if not (self.folder / FINISHED).exists():
            return False
        try:
            note = read_record(self.folder / FINISHED, "note of a finished comparison", "it is run again")
            report = self.folder / REPORT
            if not report.is_file() or file_checksum(report) != note["report"]:
                raise ValueError(f"{report} is another one than this comparison has left: it is run again.")
            if difference := difference_of(note["decides"], self.decides, ""):
                raise ValueError(f"The comparison in {self.folder} is run again: {difference}.")
        except ValueError as error:
            print(error)
            return False
        return True

    def run(self) -> None:
        decides = self.decides  # as it is now; files may change meanwhile
        run(self.args, self.ready, self.repo)
        write_record(self.folder / FINISHED, {"decides": decides, "report": file_checksum(self.folder / REPORT)})


def compare_all(parsed: Sequence[tuple[str, CompareArguments]], output_dir: str) -> None:
    """Check all, run those that are not finished, and write the table of all.

    Args:
        parsed: the file and the options of each; each has an output folder of its own in `output_dir`.

    Raises:
        ValueError: what keeps one from beginning, with the name of its file. Where one fails later, its own error, and
            a line says which one it was and what remains.
    """
    problems, comparisons = Problems(), []
    for config, args in parsed:
        problems.step(check_place, output_dir, args, COMPARING_ALL, COMPARISONS)
        print(f"\n{config}", flush=True)
        with problems.noted():
            comparisons.append(_checked(config, args))
    problems.raise_all()
    with working_in(output_dir, parsed[0][1], COMPARING_ALL, COMPARISONS):
        _run(comparisons)
        reports = {one.folder.name: _report(one.folder) for one in comparisons}
        entries = summarise_all(reports)
        page = write_overview(entries, output_dir, command_line())
    print(f"\n{overview_table(entries)}\n\n{overview_verdict(entries)}\nReport: {page}")


def _checked(config: str, args: CompareArguments) -> Comparison:
    try:
        return Comparison(config, args, *checked(args))
    except (ValueError, OSError, ImportError) as error:
        raise ValueError(f"{config}: {error}") from error


def _run(comparisons: Sequence[Comparison]) -> None:
    for index, one in enumerate(comparisons):
        place = f"{index + 1} of {len(comparisons)}: {one.config}"
        if one.finished():
            print(f"\nComparison {place} is finished already, see {one.folder / 'report.md'}.", flush=True)
            continue
        print(f"\nComparison {place}, in {one.folder}.", flush=True)
        try:
            one.run()
        except BaseException:
            remaining = ", ".join(other.config for other in comparisons[index:])
            print(
                f"\nComparison {place} did not finish; the same command goes on with what remains: {remaining}.",
                file=sys.stderr,
                flush=True,
            )
            raise


def _report(folder: Path) -> dict[str, Any]:
    return read_json(folder / REPORT, "report of a comparison", "run the same command again")
