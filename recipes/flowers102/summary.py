"""One table and one picture of comparisons with different numbers of labelled images, from the reports they left.

    python recipes/flowers102/summary.py --reports runs/flowers102/*/report.json --output_dir runs/flowers102/summary

Leaves summary.md and figures/against_images_per_class.png.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from madkd_hf.cli.arguments import command_line
from madkd_hf.files import write_whole
from madkd_hf.report.comparison import numbers_text
from madkd_hf.report.grid import grid_answers_text, grid_table, plot_against
from madkd_hf.text import block


OPTION = "images_per_class"


def read_points(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The points of the reports, in ascending order of labelled images a class; each with its own seeds."""
    points = []
    for path in paths:
        report = json.loads(path.read_text(encoding="utf-8"))
        for part in report.get("points") or [report]:
            count = (part.get("point") or {}).get(OPTION) or report.get(OPTION)
            if count is None:
                raise ValueError(f"{path} does not say how many labelled images of each class its students saw.")
            points.append(part | {"point": {OPTION: count}, "validation": {}})
    points.sort(key=lambda point: point["point"][OPTION])
    if len({point["point"][OPTION] for point in points}) < len(points) or len(points) < 2:
        raise ValueError("Expected reports with different numbers of labelled images of each class, two or more.")
    if len({tuple(point["accuracy"]) for point in points}) > 1:
        raise ValueError("Expected reports of the same conditions.")
    return points


def summarise(paths: Sequence[Path], output_dir: Path) -> Path:
    """Write picture and page, and return where the page is."""
    points = read_points(paths)
    plot_against(points, OPTION, output_dir / "figures" / f"against_{OPTION}.png")
    seeds = numbers_text([len(point["seeds"]) for point in points])
    return write_whole(
        output_dir / "summary.md",
        "\n\n".join(
            [
                "# Accuracy against the number of labelled images",
                f"{seeds} seeds: mean ± standard deviation; gains paired by seed, with a 95% t interval.",
                f"![Accuracy against the number of labelled images](figures/against_{OPTION}.png)",
                grid_table(points),
                grid_answers_text(points),
                block(f"python {command_line()}", "bash"),
            ]
        )
        + "\n",
    )


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--reports", nargs="+", type=Path, required=True, help="report.json of comparisons")
    parser.add_argument("--output_dir", type=Path, required=True, help="the folder for page and picture")
    args = parser.parse_args()
    try:
        print(summarise(args.reports, args.output_dir))
    except (OSError, ValueError) as error:
        parser.error(str(error))
