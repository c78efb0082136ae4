"""The benchmarks print tables and are no tests; here only that they run."""

import json

from benchmarks import exactness


def test_the_table_of_exactness(tmp_path, capsys, monkeypatch):
    words = ["exactness.py", "--architectures", "internvl", "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr("sys.argv", words)
    exactness.main()
    assert "| internvl" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["chosen"] == "cascade" and max(row["errors"].values()) < 1e-4
