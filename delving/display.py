"""What a person sees of a run: a progress bar on a terminal, plain timed lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """Watches a run's events (see run.Watch); use it as a context."""

    def __init__(self, console: Console, every: float = 5.0):
        self.console, self.every = console, every
        self.bar: Progress | None = None
        self.scored = False  # whether scores were shown
        self.task, self.steps, self.spoken = None, 0, time.monotonic()

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
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _on_opening(self, event: dict) -> None:
        self.say(event["line"])

    def _on_finished(self, event: dict) -> None:
        self.say("Finished earlier; nothing to train.")

    def _on_start(self, event: dict) -> None:
        self._open_bar(event, 0)

    def _on_resume(self, event: dict) -> None:
        self.say(f"Goes on after step {event['step']}.")
        self._open_bar(event, event["step"])

    def _open_bar(self, event: dict, step: int) -> None:
        self.steps = event["steps"]
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task(event["run"], total=self.steps, completed=step, note="")

    def _on_tick(self, event: dict) -> None:
        if self.bar:
            self.bar.update(self.task, completed=event["step"])

    def _on_step(self, event: dict) -> None:
        note = (
            f"step {event['step']}/{self.steps}  loss {event['loss']:.3f}  "
            f"err {event['err']:.1f} %  {event['images_per_second']:.0f} images/s  "
            f"data wait {100 * event['wait']:.0f} %"
        )
        if self.bar:
            self.bar.update(self.task, note=note)
        elif time.monotonic() - self.spoken >= self.every:
            self.spoken = time.monotonic()
            self.say(f"[{event['seconds']:7.1f} s] epoch {event['epoch']:.2f}  {note}")

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


class Overview:
    """What a person sees of many runs: what is planned, one line per task that has ended, and on a
    terminal one bar over everything."""

    def __init__(self, console: Console, every: float = 30.0):
        self.console, self.every = console, every
        self.bar: Progress | None = None
        self.weights: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        self.steps: dict[str, int] = {}
        self.ended = 0
        self.started = self.spoken = time.monotonic()

    def say(self, text: str = "") -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, weights: dict[str, float]) -> None:
        """Opens the overall bar; weights are the tasks' estimated seconds."""
        self.weights, self.started = weights, time.monotonic()
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:.0f} %"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.bar.start()
            self.bar.add_task("all of it", total=sum(weights.values()))

    def end(self) -> None:
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
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=done)
        elif time.monotonic() - self.spoken > self.every:
            self.spoken = time.monotonic()
            share = 100 * done / max(1e-9, sum(self.weights.values()))
            self.say(f"[{clock(self.spoken - self.started)}] {share:.0f} % of the estimated work")


def clock(seconds: float) -> str:
    """7:05 minutes."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
