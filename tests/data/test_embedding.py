"""Rows with the files that they name inside."""

import pyarrow as pa
from builders import tiny
from datasets import Features, Image

from madkd_hf.data.embedding import embed_files
from madkd_hf.data.origin import Origin


FEATURES = Features({"image": Image()})


def chunked(cells: list[dict]) -> pa.Table:
    """A table with a chunk for each cell, as many batches of a stream make one."""
    return pa.concat_tables([pa.table({"image": pa.array([cell], Image().pa_type)}) for cell in cells])


def test_rows_with_all_bytes_inside_are_not_copied():
    table = chunked([{"bytes": bytes(1 << 20), "path": "0.png"}, {"bytes": bytes(1 << 20), "path": None}])
    pool = pa.default_memory_pool()
    before = pool.total_bytes_allocated()
    assert embed_files(table, FEATURES, Origin(), str) is table
    assert pool.total_bytes_allocated() - before < 1 << 20


def test_a_file_is_put_inside_its_row_in_whichever_chunk(tmp_path):
    tiny.images(1)[0].save(tmp_path / "1.png")
    cells = [{"bytes": b"0", "path": "0.png"}, {"bytes": None, "path": str(tmp_path / "1.png")}]
    rows = embed_files(chunked(cells), FEATURES, Origin(), str)["image"].to_pylist()
    assert rows == [cells[0], {"bytes": (tmp_path / "1.png").read_bytes(), "path": "1.png"}]
