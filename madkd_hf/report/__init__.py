"""What came out, in numbers, words and pictures: students compared, class by class, and at the points of a grid."""

from .comparison import markdown_table, paired_gain, summarise, table, verdict
from .page import write_report


__all__ = ["markdown_table", "paired_gain", "summarise", "table", "verdict", "write_report"]
