"""What a reproduction says before it starts and at its end."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from delving.cost import is_for_a_gpu
from delving.display import Overview
from delving.draw import headline, name_data
from delving.naming import name_run
from delving.plan import Plan
from delving.report import verdict_heading, verdict_words
from delving.words import count, duration
from delving.workers import Task, reckon_wall

LONG = 3600 * 100.0  # seconds beyond which nobody means to wait for a CPU
ON_A_CPU = " on this machine's CPU; `delving estimate ... --tflops` tells a GPU's time"


def tell_plan(plan: Plan, tasks: Sequence[Task], jobs: int, say: Overview) -> None:
    """Says what there is, what is missing and how long it may take."""
    there = sum(plan.finished(run) for run in plan.runs)
    say.say(f"{headline(plan)} Scale {plan.scale}; the paper's own: scale=paper data.root=...")
    artefacts = f"{count(len(plan.requests), 'artefact')} of " if plan.requests else ""
    lack = "to train" if tasks or not plan.missing() else "not there"  # drawn from records
    say.say(f"{artefacts}{count(len(plan.runs), 'run')}: {there} there, {len(plan.missing())} "
            f"{lack}, {len(plan.refused)} refused.")  # fmt: skip
    for why in dict.fromkeys(plan.refused.values()):
        say.say(f"  refused: {why}")
    for name, how in plan.rarer.items():
        say.say(f"  looked at less often: {name}, {how}; its curve is drawn as it is")
    for name, twin in list(_by_plateaus(plan).items())[:1]:
        switch = ",".join(f"{share:g}" for share in plan.runs[name].train.switch)
        say.say(f"  {twin} is there, and is another run: a reproduction's are trained with "
                f"train.switch={switch}")  # fmt: skip
    for name, why in plan.left_out.items():
        say.say(f"  left out: {name}; {why}")
    for task in tasks:
        say.say(f"  {task.name:44} {task.message['kind']:8} about {duration(task.seconds)}")
    if tasks:
        jobs, gpu = min(jobs, len(tasks)), any(is_for_a_gpu(run.device) for run in plan.to_train())
        seconds = reckon_wall(tasks, jobs)
        hint = ON_A_CPU if seconds > LONG and not gpu else ""
        say.say(f"About {duration(seconds)}, {jobs} side by side{hint}.")


def tell_outcome(
    plan: Plan,
    seconds: Mapping[str, float],
    late: Sequence[str],
    failed: Mapping[str, str],
    rows: Iterable[Mapping],
    say: Overview,
) -> None:
    """Says the ledger of claims in short, time planned and used, what failed and what is left."""
    words, data = verdict_words(plan.scale), name_data(plan)
    say.say(f"\n{verdict_heading(plan.scale, data)}")
    for row in rows:
        say.say(f"  {words[row['verdict']]:14} {row['artefact']:11} {row['claim']}")
    if any(seconds.values()) and (planned := plan.planned):
        say.say("\nseconds         planned    used")
        for purpose in dict.fromkeys([*planned, *seconds]):
            say.say(f"  {purpose:12} {planned.get(purpose, 0):8.0f} "
                    f"{seconds.get(purpose, 0.0):7.0f}")  # fmt: skip
        say.say(f"  {'in all':12} {sum(planned.values()):8.0f} "
                f"{sum(seconds.values()):7.0f}")  # fmt: skip
    for name, error in failed.items():
        say.say(f"FAILED {name}: {error}")
    if late:
        names = f"{', '.join(late[:4])}{' ...' if late[4:] else ''}"
        say.say(f"{count(len(late), 'task')} not begun for lack of time, {names}: the same "
                "command takes up there")  # fmt: skip


def _by_plateaus(plan: Plan) -> dict[str, str]:
    """{run to be trained: finished run that differs only in when the learning rate switches}:
    `delving train` waits for plateaus, as the paper does, unless a scale says otherwise."""
    given = {name: plan.runs[name] for name in plan.missing() if plan.runs[name].train.switch}
    twins = {name: name_run(replace(config, train=replace(config.train, switch=[])))
             for name, config in given.items()}  # fmt: skip
    return {name: twin for name, twin in twins.items()
            if (plan.folder(twin) / "result.json").exists()}  # fmt: skip
