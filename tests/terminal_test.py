"""What a run shows: one line on a terminal, lines elsewhere, and never silence."""

import io
import re
import time
import types

from litevit_jax import distributed, terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_redraws_one_line_and_clears_what_was_longer(monkeypatch):
    monkeypatch.setenv("COLUMNS", "12")
    stream = Terminal()
    line = terminal.ConsoleLine(stream)
    line.show("a text that is wider than the terminal")
    line.show("short")
    line.say("a text that is kept, whole")
    clear = "\r\x1b[K"
    assert stream.getvalue() == (
        f"{clear}a text that{clear}short{clear}a text that is kept, whole\n"
    )


def test_elsewhere_every_text_is_a_line():
    stream = io.StringIO()
    line = terminal.ConsoleLine(stream)
    line.show("a long text")
    line.show("short")
    line.say("kept")
    assert stream.getvalue() == "a long text\nshort\nkept\n"


def test_what_begins_is_said_and_known_to_the_watch():
    stream = io.StringIO()
    line = terminal.ConsoleLine(stream)
    line.begin("evaluating")
    assert stream.getvalue() == "evaluating ...\n"
    assert distributed.doing().text == "evaluating"
    line.begin("evaluating again", quiet=True)
    assert stream.getvalue() == "evaluating ...\n"
    assert distributed.doing().text == "evaluating again"


def spoken(monkeypatch, stream, quiet_s, begun_s):
    """What the thread says when all was quiet for long, of what began long ago."""
    monkeypatch.setattr(terminal, "_EVERY_S", 0.01)
    monkeypatch.setattr(terminal, "_spoke", time.monotonic() - quiet_s)
    doing = types.SimpleNamespace(text="saving", since=time.monotonic() - begun_s)
    monkeypatch.setattr(distributed, "doing", lambda: doing)
    with terminal.alive(terminal.ConsoleLine(stream)):
        until = time.monotonic() + 0.5
        while time.monotonic() < until and not stream.getvalue():
            time.sleep(0.01)
    return stream.getvalue()


def test_after_a_quiet_minute_it_says_what_is_being_done(monkeypatch):
    assert re.fullmatch(
        r"saving: 6[12] s so far\n", spoken(monkeypatch, io.StringIO(), 60, 61)
    )
    assert spoken(monkeypatch, io.StringIO(), 30, 61) == ""


def test_a_terminal_counts_the_seconds(monkeypatch):
    assert "saving: 5 s so far" in spoken(monkeypatch, Terminal(), 3, 5)
    assert not terminal.ConsoleLine(io.StringIO()).live
