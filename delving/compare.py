"""`compare-init` and `plot-slopes`: Figure 3 at any depth, Table 1's figure of any runs."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from delving import config as configs
from delving import record
from delving.artefact import Run
from delving.bounds import DEEPEST
from delving.display import Overview
from delving.draws import measure_nets
from delving.groups import PAPER_DEPTH
from delving.naming import list_extra, shortened
from delving.paper.figure3 import draw_inits, tabulate_runs
from delving.paper.signal import draw_signal, list_layers
from delving.paper.table1 import draw_slopes, list_slopes
from delving.plan import Plan, add_run, with_switch
from delving.plot import save_figure
from delving.reproduce import work_runs
from delving.request import load_request
from delving.schema import Config, check_families
from delving.words import name_apart, refuse_slip, shown

MODELS = {22: "b"}  # by depth; others are the small model lengthened
AGAINST = "xavier"
OWN = ("depth=", "model=", "inits=")
STD = "init.std="


def compare_inits(words: Sequence[str], say: Overview) -> list[Path]:
    """Trains a net with each initialiser; draws its error and gradients (figure.png), and what it
    does to the signal layer by layer (signal.png). Returns their paths.

    Args:
        words: depth=N or model=NAME, inits=he,xavier (if not given, the scale's own and xavier),
            and overrides.

    Raises:
        ValueError: an unknown depth, model or initialiser; a folder that holds another run.
        RuntimeError: a run failed.
    """
    if number := [word for word in words if word.isdigit()]:
        raise ValueError(f"{number[0]} is not key=value; did you mean depth={number[0]}?")
    own = dict(word.split("=", 1) for word in words if word.startswith(OWN))
    rest = [refuse_slip(word, ("depth",)) for word in words if not word.startswith(OWN)]
    if strange := [word for word in rest if word.startswith("init=")]:
        raise ValueError(f"{strange[0]}: compare-init takes inits=he,xavier")
    if strange := [word for word in rest if word.startswith(("model.depth=", "model.layers="))]:
        raise ValueError(f"{shown(strange[0])}: compare-init takes depth=N or model=NAME")
    net, model = _read_net(own)
    usual = [] if any(word.startswith("act=") for word in rest) else ["act=relu"]
    usual_init = configs.compose([f"model={model}", *usual, *rest]).init.name
    inits = own.get("inits", f"{usual_init},{AGAINST}").split(",")
    if len(set(inits)) < len(inits):
        raise ValueError(f"inits={shown(','.join(inits))}: each once")
    if "gaussian" not in inits and (std := [word for word in rest if word.startswith(STD)]):
        raise ValueError(f"{shown(std[0])}: only of inits=gaussian, not of {','.join(inits)}")
    nets = {init: configs.compose([f"model={model}", f"init={init}", *usual, *_of_init(init, rest)])
            for init in inits}  # fmt: skip
    check_families(rest, nets.values())
    first = next(iter(nets.values()))
    plan = Plan(first.scale, rest, Path(first.output_root) / first.scale,
                configs.plan_of(first.scale))  # fmt: skip
    arms = {init: [add_run(plan, with_switch(plan, config))] for init, config in nets.items()}
    if plan.refused:
        raise ValueError("; ".join(plan.refused.values()))
    failed = work_runs(plan, first.device, say)
    if failed:
        raise RuntimeError("; ".join(f"{run}: {error}" for run, error in failed.items()))
    found = {init: [Run(plan.folder(name)) for name in names] for init, names in arms.items()}
    to = plan.root / _name([net, *(inits if "inits" in own else [])], list(nets.values()))
    signal = _write_signal(model, nets, to)
    data = tabulate_runs(run for runs in found.values() for run in runs)
    figure = draw_inits(found)
    figure.axes[0].set_title("validation images, center crop", fontsize=8)  # no caption says so
    return [_write(figure, data, to), signal]


def _of_init(init: str, words: Sequence[str]) -> list[str]:
    """The words that an initialiser takes: only the Gaussian takes a std."""
    return [word for word in words if init == "gaussian" or not word.startswith(STD)]


def _name(what: Sequence[str], nets: Sequence[Config]) -> str:
    """The folder's name: what is compared, and what was asked for other than ReLU and seed 0."""
    act = [] if nets[0].act.name == "relu" else [nets[0].act.name]
    extra = dict.fromkeys(word for net in nets for word in list_extra(net))
    seed = [f"s{nets[0].seed}"] if nets[0].seed else []
    return shortened("-".join(["compare-init", *what]), [*act, *extra, *seed])


def _read_net(own: Mapping[str, str]) -> tuple[str, str]:
    """From compare-init's own words, what to name its folder after, and the model."""
    if "model" in own and "depth" in own:
        both = f"depth={shown(own['depth'])} model={shown(own['model'])}"
        raise ValueError(f"{both}: compare-init takes one of the two")
    if "model" in own:
        return own["model"], own["model"]
    depth = own.get("depth", "30")
    if not re.fullmatch("[1-9][0-9]{0,3}", depth) or not PAPER_DEPTH <= int(depth) <= DEEPEST:
        some = f"from {PAPER_DEPTH} to {DEEPEST:,}"
        raise ValueError(f"depth={shown(depth)}: a number of conv and fc layers, {some}")
    return depth, MODELS.get(int(depth), f"small{depth}")


def _write_signal(model: str, nets: Mapping[str, Config], to: Path) -> Path:
    """Per layer, what each initialiser does to responses and gradients before training."""
    by_net = {model: measure_nets(nets, load_request("signal").settings, bits=False)}
    record.write_text(to / "signal.csv", list_layers(by_net).to_csv(index=False))
    return save_figure(draw_signal(by_net), to / "signal.png")


def compare_slopes(
    runs: Sequence[str], output_root: str, scale: str = "*"
) -> tuple[Path, list[str]]:
    """Draws the slopes of runs, by default of all that learned some. Returns the figure's path and
    what is wrong with the runs that are damaged, which are left out unless they were named. Slopes
    are those of PReLU and of classes derived from it.

    Raises:
        ValueError: a run that was named is damaged, unfinished or has no slopes; or none has any.
    """
    if runs:
        names = name_apart([record.find_run(run, output_root, scale) for run in runs])
        found = {name: run for name, folder in names.items() if (run := _finished(folder)).slopes}
        strange, faults = [str(names[name]) for name in names if name not in found], []
    else:
        found, faults = _list_sloped(name_apart(record.list_runs(output_root, scale=scale)))
        strange = []
    if strange or not found:
        where = ", ".join(strange) or output_root
        none = f"no slopes of PReLU, or of a class derived from it, in {where}: train act=prelu"
        raise ValueError("; ".join([none, *faults]))
    by_model: dict[str, list[Run]] = {}
    for run in found.values():
        by_model.setdefault(f"{run.result['model']}, {run.result['act']}", []).append(run)
    data = pd.concat(list_slopes([run]).assign(run=name) for name, run in found.items())
    return _write(draw_slopes(by_model), data, Path(output_root) / "slopes"), faults


def _finished(folder: Path) -> Run:
    if not (folder / "result.json").exists():
        raise ValueError(f"{folder} is not finished: its slopes are told at its end")
    return Run(folder)


def _list_sloped(names: Mapping[str, Path]) -> tuple[dict[str, Run], list[str]]:
    """The finished runs that learned slopes, and what is wrong with those that are damaged."""
    found, faults = {}, []
    for name, folder in names.items():
        run = Run(folder)
        try:
            if (folder / "result.json").exists() and run.result and run.slopes:
                found[name] = run
        except ValueError as error:
            faults.append(str(error))
    return found, faults


def _write(figure, data: pd.DataFrame, to: Path) -> Path:
    record.write_text(to / "data.csv", data.to_csv(index=False))
    save_figure(figure, to / "figure.svg")
    return save_figure(figure, to / "figure.png")
