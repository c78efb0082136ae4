"""What strangers write into names, questions, classes, licences and answers, and whether any of it is alive in what
we show: a terminal, a page of Markdown, a card, a picture."""

from __future__ import annotations

import re
from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.token import Token


STRINGS = {
    # terminals
    "clears the screen": "\x1b[2J\x1b[H",
    "names the window": "\x1b]0;owned\x07",
    "hyperlink of a terminal": "\x1b]8;;http://evil.example\x07click\x1b]8;;\x07",
    "C1 control": "\x9b31mred\x9d0;owned\x9c",
    "overwrites the line": "good\rerror: deleted",
    "rubs out": "abc\x08\x08\x08xyz",
    "null": "a\0b",
    "bidi override": "\u202eder\u202c",
    "bidi isolate": "\u2066a\u2069\u200e\u200f\u061c",
    "zero width": "r\u200be\u200dd\u2060\ufeff",
    "lone surrogate": "\ud800x\udfff",
    "line separators": "a\u2028b\u2029c\x85d",
    "tags": "red\U000e0041\U000e0042",
    "soft hyphen": "re\xadd",
    # Markdown
    "image": "![x](http://127.0.0.1:9/t.png)",
    "image by reference": "![x][y]\n\n[y]: http://127.0.0.1:9/t.png",
    "link": "[red](http://127.0.0.1:9/login)",
    "link to a script": "[red](javascript:alert(1))",
    "link without scheme": "[red](//127.0.0.1:9/x) [x](x)",
    "autolink": "<http://127.0.0.1:9/x>",
    "bare address": "see http://127.0.0.1:9/x and https://evil.example",
    "www": "see www.evil.example",
    "mail": "mail me@evil.example",
    "mention": "ask @everyone",
    "bare domain": "see evil.example",
    "html": "<b>bold</b>",
    "script": "<script>alert(1)</script>",
    "image in html": "<img src=x onerror=alert(1)>",
    "comment": "<!-- a --> <!--",
    "entities": "&lt;b&gt; &#60;img&#62; &amp;",
    "table break": "a | b | c",
    "table break behind a backslash": "a \\| b \\\\| c",
    "new rows": "a\n| b | c |\n| d | e |",
    "code": "`a` ``b`` ```c```",
    "open code": "`a",
    "fence": "```\n# x\n```",
    "heading": "# Owned",
    "rule": "---\nowned: true\n---",
    "emphasis": "*a* **b** _c_ __d__ ~~e~~",
    "list": "- a\n- b\n1. c",
    "quote": "> a",
    "footnote": "a[^1]\n\n[^1]: b",
    "backslashes": "a\\ \\* \\[b\\](c) \\",
    # formulas and templates
    "formula": "$\\frac{$",
    "formula of the Hub": "$$x$$ \\\\(y\\\\) \\(z\\)",
    "tex": "$\\input{/etc/passwd}$ \\write18{id}",
    "template": "{{ card_data }} {% raw %}",
    # YAML and Python
    "yaml": "a: [b, {c: !!python/object/apply:os.system ['id']}]",
    "anchor": "&a *a",
    "quotes": "a\"b'c\"\"\"d'''",
    "python": '"); import os; os.system("id") #',
    # lengths
    "very long": "very " * 2_000 + "long",
    "one long word": "x" * 5_000,
    "emoji": "🐦\u200d⬛ 👩\u200d🔬",
}
ALIVE_IN_A_TERMINAL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
AUTOLINK = re.compile(r"(?:https?|ftp)://|www\.\w|[\w.+-]+@[\w-]|(?<!\w)@\w|mailto:|\w\.example\b", re.IGNORECASE)
OURS = re.compile(r"figures/[\w]+\.png|classes\.md|questions\.md|https://arxiv\.org/abs/2501\.13341")
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def alive_in_terminal(text: str) -> list[str]:
    return ALIVE_IN_A_TERMINAL.findall(text)


def alive_in_markdown(text: str, ours: re.Pattern = OURS) -> list[str]:
    """What a reader of Markdown would load, follow, run or typeset and is not ours; and what a terminal would obey."""
    found = alive_in_terminal(text)
    for token in tokens(text):
        if token.type in ("html_inline", "html_block"):
            found.append(token.content)
        if token.type in ("link_open", "image") and not ours.fullmatch(token.attrs.get("href") or token.attrs["src"]):
            found.append(str(token.attrs))
        if token.type in ("text", "s_open"):
            found += AUTOLINK.findall(token.content)
    bare = re.sub(r"(?<![`\\])(`+)(?!`).*?(?<!`)\1(?!`)", "", re.sub(r"(?ms)^```.*?^```$", "", text))
    return found + re.findall(r"(?<!\\)\$|\\\\[(\[]", bare)  # formulas on GitHub and the Hub


def tokens(text: str) -> Iterator[Token]:
    for block in PARSER.parse(text):
        yield block
        yield from block.children or ()


def table_sizes(text: str) -> list[int]:
    """The number of cells in each row, as GitHub counts them: at every pipe without a backslash before it."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [len(re.findall(r"(?<!\\)\|", line)) - 1 for line in rows]


def headings(text: str) -> list[str]:
    found = PARSER.parse(text)
    return [inner.content for each, inner in zip(found, found[1:]) if each.type == "heading_open"]


def python_blocks(text: str) -> list[str]:
    return [token.content for token in PARSER.parse(text) if token.type == "fence" and token.info == "python"]
