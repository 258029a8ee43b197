import io

import pytest
from rich.console import Console

from tailorbird.report.terminal import Bars, Lines, terminal


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def console(*, tty: bool) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=tty, width=100), stream


def test_plain_lines_come_every_few_seconds_with_time_left():
    clock = Clock()
    speak, stream = console(tty=False)
    with Lines(speak, every_s=5.0, clock=clock).task("distil [b]x[/b]", 100) as task:
        for _ in range(100):
            clock.now += 0.2
            task.advance(1, "loss 0.5")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "distil [b]x[/b]: 25/100 (25%), 15 s left, loss 0.5"
    assert lines[-1] == "distil [b]x[/b]: done in 20 s, loss 0.5"
    assert len(lines) == 4


def test_hundreds_of_short_tasks_do_not_flood():
    clock = Clock()
    speak, stream = console(tty=False)
    lines = Lines(speak, every_s=5.0, clock=clock)
    for index in range(300):
        with lines.task(f"block {index}", 1) as task:
            clock.now += 0.1
            task.advance()
    assert 3 <= len(stream.getvalue().splitlines()) <= 6


def test_bars_nest_survive_errors_and_show_names_literally():
    speak, stream = console(tty=True)
    bars = Bars(speak)
    with bars.task("outer [red]", 0) as outer, bars.task("inner", 2) as inner:
        inner.advance(note="[bold]")
        outer.advance()
        bars.say("news [red]")
    with pytest.raises(ValueError, match="boom"), bars.task("again", 1):
        raise ValueError("boom")
    with bars.task("after", 1) as task:
        task.advance()
    text = stream.getvalue()
    assert "outer [red]" in text and "news [red]" in text and "inner" in text and "after" in text
    assert "\x1b[?25h" in text[text.rindex("\x1b[?25l") :]  # the cursor is shown again


def test_quiet_keeps_the_news_only():
    speak, stream = console(tty=True)
    progress = terminal(quiet=True, console=speak)
    with progress.task("work", 1) as task:
        task.advance()
        progress.say("met")
    assert stream.getvalue() == "met\n"
    assert isinstance(terminal(console=speak), Bars)
