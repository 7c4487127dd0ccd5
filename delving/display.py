"""What a person sees of a run: a progress bar on a terminal, plain timed lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from delving.terminal import naming_output, plain

NARROW = 60  # columns of a terminal below which a bar shows no name
NARROWEST = 12  # columns below which there is no bar
REDRAWN = 0.1  # seconds before a bar is redrawn
EVERY = 30.0  # seconds between two lines about many runs, where there is no bar


def _unheard() -> contextlib.AbstractContextManager:
    """Lets work go on when nothing can be shown any more, as when the reader is gone or a disk is
    full; if the reader is gone, rich raises SystemExit."""
    return contextlib.suppress(OSError, SystemExit)


def make_console(*, stderr: bool = False) -> Console:
    """A console for the stream as it is: FORCE_COLOR must not have a bar drawn into a file."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, force_terminal=None if stream.isatty() else False)


def speak(console: Console, text: str, *, working: bool = True) -> None:
    """Shows a plain line, above the bar if there is one; empty lines before it are kept.

    Raises:
        OSError: it cannot be shown, and there is no work that must go on; names the stream.
    """
    line = text.lstrip("\n")
    gap = text[: len(text) - len(line)]
    with _unheard() if working else naming_output(), contextlib.suppress(SystemExit):
        console.print(gap + plain(line), highlight=False, markup=False, soft_wrap=True)


class Bar:
    """One line of progress that fits its terminal: a name, a bar, a note, the time left."""

    def __init__(self, console: Console, name: str, *, total: float, done: float = 0.0):
        self.drawn, width = time.monotonic(), console.width
        named = width >= NARROW
        self.room = width - 24 - (width // 3 if named else 0)
        name_column = Column(no_wrap=True, overflow="crop", max_width=width // 3)
        columns = [
            TextColumn("{task.description}", markup=False, table_column=name_column),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="crop")),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, overflow="crop")),
        ]
        # Drawn only by us: rich's own thread would die with a traceback if the terminal goes.
        self.bar = Progress(
            *columns[0 if named else 1 :], console=console, auto_refresh=False, expand=True
        )
        self.task = self.bar.add_task(plain(name), total=total, completed=done, note="")
        with _unheard():
            self.bar.start()

    def update(self, done: float | None = None, notes: list[str] | None = None) -> None:
        """Moves the bar, and shows as many of the notes as there is room for."""
        if notes:
            while len(notes) > 1 and len("  ".join(notes)) > self.room:
                notes = notes[:-1]
            self.bar.update(self.task, note="  ".join(notes))
        self.bar.update(self.task, completed=done)
        if time.monotonic() - self.drawn >= REDRAWN:
            self.drawn = time.monotonic()
            with _unheard():
                self.bar.refresh()

    def stop(self) -> None:
        with _unheard():
            self.bar.stop()


def open_bar(console: Console, name: str, *, total: float, done: float = 0.0) -> Bar | None:
    """A bar on a terminal that has room and can redraw a line; None elsewhere."""
    able = console.is_terminal and not console.is_dumb_terminal and console.width >= NARROWEST
    return Bar(console, name, total=total, done=done) if able else None


class Display:
    """Watches a run's events (see session.Watch); use it as a context."""

    def __init__(self, console: Console, every: float = 5.0):
        self.console, self.every = console, every
        self.bar: Bar | None = None
        self.scored = False  # whether scores were shown
        self.steps, self.spoken = 0, time.monotonic()

    def __enter__(self) -> "Display":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, event: dict) -> None:
        getattr(self, f"_on_{event['event']}", lambda event: None)(event)

    def say(self, text: str) -> None:
        speak(self.console, text)

    def _on_opening(self, event: dict) -> None:
        self.say(event["line"])

    def _on_compiling(self, event: dict) -> None:
        self.say("compiling the rectifier's kernels for this CPU, once: about half a minute")

    def _on_finished(self, event: dict) -> None:
        self.say("Finished earlier; nothing to train, and no image was looked at. To train it "
                 "anew, move its folder away.")  # fmt: skip

    def _on_start(self, event: dict) -> None:
        self._open_bar(event, 0)

    def _on_damaged(self, event: dict) -> None:
        self.say(event["fault"])

    def _on_resume(self, event: dict) -> None:
        self.say(f"Continues after step {event['step']}.")
        self._open_bar(event, event["step"])

    def _open_bar(self, event: dict, step: int) -> None:
        self.steps = event["steps"]
        self.bar = open_bar(self.console, event["run"], total=self.steps, done=step)

    def _on_tick(self, event: dict) -> None:
        if self.bar:
            self.bar.update(event["step"])

    def _on_step(self, event: dict) -> None:
        notes = [
            f"{event['step']}/{self.steps}",
            f"loss {event['loss']:.3f}",
            f"err {event['err']:.1f} %",
            f"{event['images_per_second']:.0f} images/s",
            f"data wait {100 * event['wait']:.0f} %",
        ]
        if self.bar:
            self.bar.update(notes=notes)
        elif time.monotonic() - self.spoken >= self.every:
            self.spoken = time.monotonic()
            note = "  ".join(notes)
            self.say(f"[{event['seconds']:7.1f} s] epoch {event['epoch']:.2f}  step {note}")

    def _on_val(self, event: dict) -> None:
        self.say(
            f"epoch {event['epoch']:g}: validation error {event['top1_err']:.1f} % top-1 "
            f"({event['images']} images, center crop)"
        )

    def _on_bad_image(self, event: dict) -> None:
        self.say(f"cannot be decoded, the next one took its place: {event['name']}")

    def _on_diverged(self, event: dict) -> None:
        self.say(
            f"DIVERGED at step {event['step']}: loss {event['loss']}, "
            f"gradient norm {event['grad_norm']}; recorded as such"
        )

    def _on_score(self, event: dict) -> None:
        self.scored = True
        self.say(
            f"{event['protocol']:>10}: top-1 {event['top1_err']:.2f} %  "
            f"top-5 {event['top5_err']:.2f} %  ({event['images']} images)"
        )

    def _on_proposals(self, event: dict) -> None:
        done = event["done"] == event["total"]
        if done or time.monotonic() - self.spoken >= self.every:
            self.spoken = time.monotonic()
            self.say(
                f"proposals for {event['done']:,} of {event['total']:,} {event['split']} images"
            )

    def _on_detected(self, event: dict) -> None:
        self.scored = True
        for name, value in event["maps"].items():
            shown = "not defined" if value is None else f"{value:.2f} %"
            self.say(f"{name:>10}: mAP {shown}  ({event['images']} images)")


class Overview:
    """What a person sees of many runs: what is planned, one line per task that has ended, and on a
    terminal one bar over everything."""

    def __init__(self, console: Console):
        self.console = console
        self.bar: Bar | None = None
        self.weights: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        self.steps: dict[str, int] = {}
        self.ended, self.working = 0, False
        self.started = self.spoken = time.monotonic()

    def say(self, text: str = "") -> None:
        speak(self.console, text, working=self.working)

    @contextlib.contextmanager
    def showing(self, weights: dict[str, float]) -> Iterator[None]:
        """Shows the overall bar while tasks are done; weights are their estimated seconds."""
        self.weights, self.started, self.working = weights, time.monotonic(), True
        self.bar = open_bar(self.console, "all of it", total=sum(weights.values()))
        try:
            yield
        finally:
            self.working = False
            if self.bar:
                self.bar.stop()

    def __call__(self, name: str, event: dict) -> None:
        if event["event"] in ("start", "resume"):
            self.steps[name] = event["steps"]
        elif event["event"] == "tick":
            # Training is most of a task, but not all.
            self.shares[name] = 0.9 * event["step"] / self.steps[name]
        elif event["event"] == "outcome":
            self._note_outcome(name, event["outcome"])
        self._move()

    def _note_outcome(self, name: str, outcome) -> None:
        self.ended += 1
        self.shares[name] = 1.0
        what = f"{outcome.wall:.0f} s"
        if outcome.error:
            what = f"{'interrupted' if outcome.interrupted else 'FAILED'}: {outcome.error}"
        self.say(f"[{clock(time.monotonic() - self.started)}] {self.ended:3}/{len(self.weights)}  "
                 f"{name}  {what}")  # fmt: skip

    def _move(self) -> None:
        done = sum(self.weights[name] * share for name, share in self.shares.items())
        share = f"{100 * done / max(1e-9, sum(self.weights.values())):.0f} %"
        if self.bar:
            self.bar.update(done, [share])
        elif time.monotonic() - self.spoken > EVERY:
            self.spoken = time.monotonic()
            self.say(f"[{clock(self.spoken - self.started)}] {share} of the estimated work")


def clock(seconds: float) -> str:
    """Minutes and seconds, as in 7:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
