"""What came out, in numbers, words and pictures: `comparison` of students, `evidence` on questions."""

from .comparison import markdown_table, paired_gain, summarise, table, verdict, write_report


__all__ = ["markdown_table", "paired_gain", "summarise", "table", "verdict", "write_report"]
