"""One table of several comparisons: of one task or of two, and of grids."""

from __future__ import annotations

import json

from madkd_hf.report import summarise
from madkd_hf.report.overview import overview_table, overview_verdict, summarise_all, write_overview


def report(task: str = "classification", **scores: list[float]) -> dict:
    key = "map" if task == "detection" else "accuracy"
    cells = [
        {"condition": name, "seed": seed, key: value}
        for name, values in scores.items()
        for seed, value in enumerate(values)
    ]
    return summarise(cells, task)


SHAPES = report(base=[50, 52, 54], madkd=[60, 63, 64], shuffled=[50, 51, 54]) | {
    "dataset": "a_b/shapes",
    "figures": {},
}
SCENES = report("detection", base=[30.0], object=[29.0], image_shuffled=[28.0]) | {"dataset": "scenes", "scenes": 30}


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_a_row_has_scores_gain_and_controls():
    (entry,) = summarise_all({"one": SHAPES | {"images_per_class": 5}})
    head, _, row = rows(overview_table([entry]))
    assert head[:4] == ["Comparison", "Dataset", "Images per class", "Seeds"]
    assert head[4:] == ["Base, %", "Distilled, %", "Gain over base", "shuffled"]
    mean, (low, high) = 31 / 3, entry["gain"]["ci95"]
    assert entry["gain"]["mean"] == mean and low < mean < high
    gain = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
    assert row[:-1] == ["one", "a_b/shapes", "5", "3", "52.00 ± 2.00", "62.33 ± 2.08", gain]
    assert row[-1].startswith("-0.33 [-1.77, +1.10]")
    assert "figures" not in entry and entry["roles"]["shuffled"] == "control"


def test_a_grid_has_a_row_for_each_point():
    points = [
        {**SHAPES, "point": {"weight_decay": decay, "images_per_class": count}}
        for decay, count in ((0.0001, 5), (0.0005, 10))
    ]
    entries = summarise_all({"grid": {"points": points, "dataset": "flowers"}})
    assert [(row[0], *row[1:3]) for row in rows(overview_table(entries))[2:]] == [
        ("grid (`weight_decay 0.0001`)", "flowers", "5"),
        ("grid (`weight_decay 0.0005`)", "flowers", "10"),
    ]


def test_tasks_may_differ_and_what_was_not_run_stays_empty():
    table = overview_table(summarise_all({"shapes": SHAPES, "scenes": SCENES, "alone": report(base=[1.0])}))
    head, _, shapes, scenes, alone = rows(table)
    assert head[4:] == ["Base, % or AP", "Distilled, % or AP", "Gain over base", "shuffled", "image_shuffled"]
    assert (shapes[2], shapes[8]) == ("all", "")
    assert scenes[2:] == ["30 scenes", "1", "30.00", "29.00", "-1.00", "", "-2.00"]
    assert alone[1:] == ["", "all", "1", "1.00", "", "", "", ""]


def test_the_answers_alone_are_the_last_column_where_somebody_measured_them(tmp_path):
    found = {"accuracy": [70.0, 72.0], "fitted": [10, 10], "images": [90, 90], "of": ["test"]}
    entries = summarise_all({"one": SHAPES | {"answers_alone": found}, "scenes": SCENES})
    assert [row[-1] for row in rows(overview_table(entries))[::2]] == ["The answers alone, %", "71.0 ± 1.4"]
    assert rows(overview_table(entries))[3][-1] == ""
    assert "The last column is what you would get if" in write_overview(entries, tmp_path, "madkd compare").read_text()
    unknown = summarise_all({"one": SHAPES | {"answers_alone": {"unknown": "no answers."}}})
    assert rows(overview_table(unknown))[0][-1] == "shuffled"


def test_the_sentence_counts_gains_and_clear_ones():
    less_clear = report(base=[50, 52], madkd=[51, 59])
    entries = summarise_all(
        {"clear": SHAPES, "not clear": less_clear, "behind": SCENES, "one alone": report(base=[1])}
    )
    assert "on average in 2 of 3 rows, and clearly, with an interval above 0, in 1." in overview_verdict(entries)
    assert overview_verdict(entries[-1:]).startswith("Nothing to compare")


def test_the_page_links_each_report_and_json_holds_the_numbers(tmp_path):
    page = write_overview(summarise_all({"a b": SHAPES, "scenes": SCENES}), tmp_path, "madkd compare").read_text()
    assert "[a b](a%20b/report.md), [scenes](scenes/report.md)" in page and "```bash\nmadkd compare\n```" in page
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["command"] == "madkd compare"
    assert [entry["dataset"] for entry in found["comparisons"]] == ["a_b/shapes", "scenes"]
    assert found["comparisons"][0]["accuracy"]["madkd"] == [60, 63, 64] and found["comparisons"][1]["map"]["base"] == [
        30
    ]
