"""One exit for each place: what strangers write is shown as the text that it is."""

import ast
import base64
import itertools
import json
import logging
import sys
from urllib.parse import quote

import pytest
import yaml
from builders.hostile import STRINGS, alive_in_markdown, alive_in_terminal, headings, table_sizes, tokens

from madkd_hf import text
from madkd_hf.report.comparison import markdown_table
from madkd_hf.report.figures import new_axes, new_figure, save, short


MARKUP = {"em_open", "strong_open", "s_open", "blockquote_open", "hr", "fence", "code_block"}
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


def shown_text(markdown: str) -> str:
    """What a reader sees of a line of Markdown."""
    return "".join(token.content for token in tokens(markdown) if token.type in ("text", "code_inline"))


def test_terminals_get_one_line_without_control_characters():
    for hostile in STRINGS.values():
        for shown in (text.terminal(hostile), text.excerpt(hostile), text.one_line(hostile)):
            assert alive_in_terminal(shown) == [] and "\n" not in shown
        assert len(text.terminal(hostile)) <= 300
        assert alive_in_terminal(text.terminal_lines(hostile)) == []


def test_markdown_stays_text_in_paragraphs_headings_lists_and_tables():
    for hostile in STRINGS.values():
        for exit in (text.markdown, text.code):
            shown = exit(hostile)
            table = markdown_table([["A", "B"], [shown, "END"], ["END", shown]])
            page = f"# {shown}\n\n{shown}\n\nWords {shown} words.\n\n- {shown}\n\n{table}\n\nLast line."
            assert alive_in_markdown(page) == []
            assert table_sizes(page) == [2, 2, 2, 2] and len(headings(page)) == 1
            assert shown_text(page).endswith("Last line.")
            kinds = [token.type for token in tokens(page)]
            assert kinds.count("td_open") == 4 and kinds.count("bullet_list_open") == 1
            assert MARKUP.isdisjoint(kinds)


def test_what_is_harmless_reads_as_it_was_written():
    for line in ["snake_case_id", "salt & pepper", "a < b > c", "50% (of all)", "grün", "x*y", "می‌روم"]:
        assert shown_text(text.markdown(line)) == shown_text(text.code(line)) == text.terminal(line) == line


def test_texts_are_shown_whole_where_nothing_is_hidden():
    for name, hostile in itertools.product(("code", "markdown"), STRINGS.values()):
        line = " ".join(hostile.split())
        if text.hidden_character(line) is None and len(line) < 1_000 and "\\|" not in line:
            assert shown_text(markdown_table([["A"], [getattr(text, name)(line)]])) == f"A{line}"


def test_python_literals_are_the_text_and_no_code():
    for hostile in STRINGS.values():
        line = f"load({text.python(hostile)})"
        (call,) = ast.parse(line).body
        assert ast.literal_eval(call.value.args[0]) == hostile
        assert alive_in_terminal(line) == [] and "\n" not in line


def test_front_matter_holds_texts_of_one_line():
    for hostile in STRINGS.values():
        value = {hostile: [hostile, {"a": hostile}], "n": 1}
        read = yaml.safe_load(yaml.dump(text.front(value), allow_unicode=True))
        assert read == text.front(value) and alive_in_terminal(json.dumps(read, ensure_ascii=False)) == []
        assert isinstance(read[text.one_line(hostile)][0], str)


def test_values_that_json_cannot_hold_become_what_it_can():
    made = text.jsonable({"a": float("nan"), 1: (1, {2}), "c": object, "d": "\ud800", "e": b"x"})
    assert made == {"a": None, "1": [1, [2]], "c": str(object), "d": "\\ud800", "e": "b'x'"}
    assert json.dumps(made, allow_nan=False, ensure_ascii=False).encode()


def test_pictures_of_all_of_them_are_drawn(tmp_path, recwarn, monkeypatch):
    import matplotlib

    figure = new_figure(8, 12, text.figure("$\\frac{$"))
    ax = new_axes(figure, text.figure("$x$ \\alpha"))
    ax.barh(range(len(STRINGS)), 1, label=text.figure("$y$"))
    ax.set_yticks(range(len(STRINGS)), [short(hostile) for hostile in STRINGS.values()])
    ax.set_xlabel(text.figure(STRINGS["formula"]))
    figure.legend()
    assert save(figure, tmp_path / "x.png").stat().st_size > 1000
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    with matplotlib.rc_context({"text.usetex": True}):  # a user's own setting: TeX reads files and starts programs
        figure = new_figure(4, 3, text.figure(STRINGS["tex"]))
        new_axes(figure, text.figure(STRINGS["tex"]))
        monkeypatch.setattr("matplotlib.texmanager.TexManager.make_dvi", lambda *_: pytest.fail("TeX was started"))
        save(figure, tmp_path / "tex.png")


def test_joiners_of_words_are_no_hidden_characters():
    for line in ["می‌روم", "क्‍ष", "🐦‍⬛", "naïve Ü", "它是红色的吗"]:
        assert text.hidden_character(line) is None


# Secrets


def forms(secret: str) -> dict[str, str]:
    return {
        "as it is": f"no: {secret}.",
        "quoted": f"GET /?token={quote(secret, safe='')}&x=1",
        "in an address": f"https://user:{secret}@host/x",
        "in json": json.dumps({"token": secret}),
        "in base64": base64.b64encode(f"user:{secret}".encode()).decode(),
        "in base64, shifted": base64.b64encode(f"us:{secret}".encode()).decode(),
        "in base64 of addresses": base64.urlsafe_b64encode(f"u:{secret}".encode()).decode(),
        "in a header": f"Authorization: Bearer {secret}",
        "cut": f"the token {secret[:14]}",
        "twice": secret * 2,
    }


@pytest.mark.parametrize("secret", [TOKEN, "s3cr3t/with+strange=signs&more", "hf_with a\nline break in it"])
def test_secrets_are_masked_in_every_form(monkeypatch, secret):
    monkeypatch.setattr(text, "_SECRETS", set())
    text.keep_secret(secret)
    for form in forms(secret).values():
        masked = text.masked(form)
        for start in range(0, len(secret) - 8, 4):
            assert secret[start : start + 8] not in masked, form
        assert base64.b64encode(secret.encode()).decode()[4:16] not in masked
        assert "***" in masked


def test_secrets_of_the_environment_and_what_looks_like_one_are_masked(monkeypatch):
    monkeypatch.setattr(text, "_SECRETS", set())
    monkeypatch.setenv("OPENAI_API_KEY", "plainwordsthatareakey")
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "abcdefgh12345678")
    told = "plainwordsthatareakey abcdefgh12345678 hf_unknownButATokenAllTheSame sk-proj-zyxwvutsrqponmlk1234 https://me:pw@host/"
    assert text.masked(told) == "*** *** *** *** https://***@host/"
    assert text.masked("hf_hub_download task-specific risk-free ask-me-anything-you-like") == (
        "hf_hub_download task-specific risk-free ask-me-anything-you-like"
    )


def test_no_part_of_a_secret_is_left_where_a_message_is_cut(monkeypatch):
    monkeypatch.setattr(text, "_SECRETS", set())
    text.keep_secret(TOKEN)
    for place in range(400):
        shown = text.excerpt("x" * place + " " + TOKEN + " " + "y" * 400)
        assert "abcd" not in shown and len(shown) <= 300


def test_logs_have_an_exit_of_their_own(caplog, monkeypatch):
    monkeypatch.setattr(text, "_SECRETS", set())
    text.keep_secret(TOKEN)
    with caplog.at_level(logging.WARNING):
        text.get_logger("madkd_hf.tests").warning("%s said %s: %d", "\x1b[2Jserver", TOKEN, 3)
    assert caplog.messages == ["\\x1b[2Jserver said ***: 3"]


def test_tracebacks_and_messages_of_errors_have_neither_secrets_nor_control_characters(capsys, monkeypatch):
    monkeypatch.setattr(text, "_SECRETS", set())
    text.keep_secret(TOKEN)
    try:
        try:
            raise OSError(f"\x1b[2J {TOKEN}")
        except OSError as error:
            raise ValueError(f"first {TOKEN}\nsecond \ud800 \u202e") from error
    except ValueError as error:
        assert text.message(error) == "first ***\nsecond \\ud800 \\u202e"
        text.show_traceback(*sys.exc_info())
    told = capsys.readouterr().err
    assert TOKEN not in told and alive_in_terminal(told) == [] and "ValueError: first" in told and "OSError" in told
