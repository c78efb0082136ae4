"""docs/commands.md says what the parsers say."""

from pathlib import Path

from docs import make_commands


def test_the_page_is_what_its_script_writes():
    page = Path(make_commands.__file__).with_name("commands.md")
    assert page.read_text(encoding="utf-8") == make_commands.reference(), "run: python docs/make_commands.py"
