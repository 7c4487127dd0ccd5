"""What a reproduction asks for: each run exactly once, and none whose folder holds another run."""

import dataclasses
import importlib
import io
import math
import re
from types import SimpleNamespace

import pytest
from fabricate import make_planned, make_run, rewrite_json, seeded_plan, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from delving import compare, cost, record
from delving import config as configs
from delving.announce import tell_outcome, tell_plan
from delving.asked import ask, measured_of
from delving.build import build_model
from delving.cost import count_images
from delving.data import load_splits
from delving.display import Overview
from delving.draw import headline, load_times
from delving.groups import CONF, choices
from delving.measured import measure_missing, save_measured
from delving.net import describe
from delving.paper import fisher
from delving.plan import SMALL, in_order, make_plan
from delving.reproduce import list_tasks, save_times
from delving.request import load_request
from delving.schema import Reproduce
from delving.tasks import DETECTING, estimate_task
from delving.work import _work
from delving.workers import Task, reckon_wall

ARTEFACTS = choices("paper")
PAPER_ORDER = [
    "figure1", "table1", "table2", "figure2", "figure3", "signal", "table3", "table4", "table5",
    "table6", "table7", "figure4", "figure5", "figure6", "figure7", "convergence", "fisher",
    "detection",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path, monkeypatch):
    """Outputs go below the working directory, so that all tests share words, composed once."""
    monkeypatch.chdir(tmp_path)


def plan_for(*artefacts, words=()):
    return make_plan(list(artefacts), ["scale=smoke", *words])


@pytest.fixture(scope="module")
def whole():
    """The plan of everything."""
    return plan_for()


def usual(arm, seed):
    return {}


def copy_config(plan, run, *, old, new):
    """Writes a run's folder whose configuration is not the planned one."""
    text = configs.to_yaml(plan.runs[run])
    assert old in text
    record.write_text(plan.folder(run) / "config.yaml", text.replace(old, new))


# --- one name, four places ---
def test_every_artefact_has_a_configuration_and_a_module_of_one_name():
    modules = {path.stem for path in (CONF.parent / "delving" / "paper").glob("*.py")}
    assert modules - {"__init__"} == set(ARTEFACTS)


@pytest.mark.parametrize("name", ARTEFACTS)
def test_every_artefact_loads_and_can_be_shown(name):
    request = load_request(name)
    module = importlib.import_module(f"delving.paper.{name}")
    assert callable(module.show)
    assert request.place > 0
    assert request.runs or request.needs or hasattr(module, "measure")
    assert bool(request.settings) <= hasattr(module, "measure")
    for need in request.needs:
        assert hasattr(importlib.import_module(f"delving.paper.{need}"), "measure")


@pytest.mark.parametrize("scale", choices("scale"))
def test_every_scale_gives_seeds_to_every_role(scale):
    seeds = dataclasses.asdict(configs.plan_of(scale).seeds)
    for name in ARTEFACTS:
        for arm in load_request(name).runs.values():
            assert seeds[arm.seeds] >= 1


def test_artefacts_come_in_the_papers_order_whatever_order_they_are_asked_in(whole):
    assert [name for name in ARTEFACTS if name in PAPER_ORDER] == PAPER_ORDER
    assert list(whole.requests) == ARTEFACTS
    assert list(plan_for("table2", "figure1").requests) == ["figure1", "table2"]


def test_an_artefact_brings_those_whose_measurements_it_shows():
    plan = plan_for("figure6")
    assert list(plan.requests) == ["table7", "figure6"]
    assert len(plan.runs) == 6


# --- bad input ---
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("plase: 10", "'plase'; did you mean place"),
        ("runs: {he: {wrods: [model=b]}}", "'runs.he.wrods'; did you mean words"),
        ("place: first", "place: .*first"),
        ("alone: maybe", "alone: .*maybe"),
        ("place: [", "parsing"),
        ("runs: {he: {seeds: lagre}}", "runs.he.seeds: 'lagre'; choose from .*did you mean large"),
    ],
)
def test_a_typo_in_an_artefacts_configuration_is_refused_by_its_key(
    tmp_path, monkeypatch, text, named
):
    record.write_text(tmp_path / "paper" / "table2.yaml", text)
    monkeypatch.setattr("delving.request.CONF", tmp_path)
    with pytest.raises(ValueError, match=named) as refusal:
        load_request("table2")
    assert str(refusal.value).startswith("table2.yaml: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("typo", "meant"), [("tabel2", "table2"), ("fihser", "fisher")])
@pytest.mark.parametrize("beside", ["figure1", "all"])
def test_an_unknown_artefact_is_refused_with_the_nearest(typo, meant, beside):
    with pytest.raises(ValueError, match=rf"'{typo}'.*did you mean .*{meant}"):
        plan_for(beside, typo)


def test_an_artefact_is_no_path():
    with pytest.raises(ValueError, match=r"artefact '\.\./paper/table1': choose from"):
        plan_for("../paper/table1")


@pytest.mark.parametrize("word", ["model=c", "act=relu", "init=xavier", "seed=3"])
def test_words_that_artefacts_set_themselves_are_refused(word):
    with pytest.raises(ValueError, match=f"{word}: an artefact sets model, act, init, seed"):
        plan_for("table2", words=[word])


def test_an_unknown_key_is_refused_before_anything_is_planned():
    with pytest.raises(ValueError, match=r"trian\.lr"):
        plan_for("table2", words=["trian.lr=1"])


# --- which runs ---
def test_runs_that_artefacts_share_are_planned_once():
    plan = plan_for("figure1", "table1", "table2")
    assert plan.arms["figure1"]["prelu"] == plan.arms["table1"]["prelu"]
    assert plan.arms["table1"]["prelu"] == plan.arms["table2"]["prelu"]
    asked = [name for arms in plan.arms.values() for names in arms.values() for name in names]
    assert len(asked) > len(plan.runs)
    assert set(asked) == set(plan.runs)


@settings(max_examples=3)
@given(st.permutations(ARTEFACTS), st.integers(1, 4))
def test_a_plan_depends_on_which_artefacts_alone_and_is_part_of_the_whole(whole, order, count):
    some = order[:count]
    plan = plan_for(*some)
    assert plan == plan_for(*some[::-1])
    assert set(some) <= set(plan.requests)
    assert all(whole.arms[name] == arms for name, arms in plan.arms.items())
    assert set(plan.runs) <= set(whole.runs)


@pytest.mark.parametrize("order", [("figure2", "convergence"), ("convergence", "figure2")])
def test_a_run_asked_for_with_another_interval_of_looks_is_planned_once_with_the_smaller(order):
    plan = plan_for(*order)
    [run] = plan.arms["figure2"]["he"]
    assert plan.arms["convergence"]["b_relu"] == [run]
    assert plan.runs[run].eval.every == 0.25
    [alone] = plan_for("convergence").arms["convergence"]["b_relu"]
    assert alone == run
    assert plan_for("convergence").runs[run].eval.every > 0.25


def test_seeds_rise_from_zero_as_the_scale_gives_them():
    plan = plan_for("table2")
    for arm, role in {"prelu": "rectifiers", "xavier": "small"}.items():
        seeds = [plan.runs[name].seed for name in plan.arms["table2"][arm]]
        assert seeds == list(range(getattr(plan.budget.seeds, role)))


def test_overrides_reach_every_run_and_neutral_ones_change_no_name():
    plain, neutral = plan_for("figure1"), plan_for("figure1", words=["device=cpu"])
    plan = plan_for("figure1", words=["data.workers=0", "train.lr=0.02"])
    assert {c.data.workers for c in plan.runs.values()} == {0}
    assert {c.train.lr for c in plan.runs.values()} == {0.02}
    assert not set(plan.runs) & set(plain.runs)
    assert {c.device for c in neutral.runs.values()} == {"cpu"}
    assert list(neutral.runs) == list(plain.runs)


# --- what is there ---
def test_finished_runs_are_recognised_and_nothing_is_touched(tmp_path):
    plan = plan_for("figure1")
    assert sorted(plan.missing()) == sorted(plan.runs)
    make_planned(plan, "figure1", usual)
    before = snapshot(tmp_path)
    again = plan_for("figure1")
    assert (again.missing(), again.refused) == ([], {})
    assert [run.name for run in ask(again, "figure1").arms["prelu"]] == list(plan.runs)
    assert snapshot(tmp_path) == before


def test_an_unfinished_run_is_still_to_be_trained():
    plan = plan_for("figure1")
    make_planned(plan, "figure1", usual)
    first, second = plan.runs
    (plan.folder(second) / "result.json").unlink()
    again = plan_for("figure1")
    assert again.missing() == [second]
    assert [run.name for run in ask(again, "figure1").arms["prelu"]] == [first]


def test_a_folder_that_holds_another_run_is_refused_naming_keys_and_both_values():
    plan = plan_for("figure1")
    make_planned(plan, "figure1", usual)
    first, second = plan.runs
    copy_config(plan, first, old="momentum: 0.9", new="momentum: 0.8")
    again = plan_for("figure1")
    assert list(again.refused) == [first]
    assert "train.momentum 0.9 asked for, 0.8 there" in again.refused[first]
    assert str(again.folder(first)) in again.refused[first]
    assert again.missing() == []
    assert [run.name for run in ask(again, "figure1").arms["prelu"]] == [second]


def test_other_runs_in_the_small_nets_folders_are_no_noise():
    plan = plan_for("table2")
    make_planned(plan, "table2", usual)
    for name in plan.runs:
        copy_config(plan, name, old="momentum: 0.9", new="momentum: 0.8")
    assert not any(plan_for("figure2").small)


def test_a_run_that_diverged_tells_nothing_of_how_long_others_take(tmp_path):
    plan = plan_for("figure1")
    before = plan.estimate(next(iter(plan.runs)))
    make_planned(plan, "figure1", lambda arm, seed: {"status": "diverged"})
    for name in plan.runs:
        path = plan.folder(name) / "result.json"
        record.write_json(path, record.read_json(path) | {"seconds": 0.001})
    again = plan_for("figure1", "figure3")
    assert again.estimate(next(iter(again.runs))) == pytest.approx(before)


def test_a_folder_with_an_unreadable_configuration_is_refused_and_the_rest_is_planned():
    plan = plan_for("figure1")
    first, second = plan.runs
    for text in ("seed: 0\n", "seed: [", "sede: 0\n"):
        record.write_text(plan.folder(first) / "config.yaml", text)
        again = plan_for("figure1")
        assert list(again.refused) == [first]
        assert "config.yaml" in again.refused[first]
        assert again.missing() == [second]


def test_a_change_that_alters_no_result_is_the_same_run():
    plan = plan_for("figure1")
    make_planned(plan, "figure1", usual)
    first = next(iter(plan.runs))
    copy_config(plan, first, old="device: auto", new="device: cpu")
    assert plan_for("figure1").refused == {}


def test_a_run_that_was_tested_less_often_than_is_asked_for_is_kept_and_told():
    before = plan_for("convergence")
    make_planned(before, "convergence", usual)
    [he] = before.arms["convergence"]["b_relu"]
    copy_config(before, he, old="every: 1.0", new="every: 1.0")
    plan = plan_for("figure2")
    assert plan.finished(he)
    assert plan.rarer == {he: "eval.every 0.25 asked for, 1 there"}
    assert f"looked at less often: {he}, eval.every 0.25 asked for, 1 there" in say_plan(plan)
    assert plan_for("convergence").rarer == {}


@pytest.mark.parametrize(
    "word",
    ["model.depth=40", "model.family=large", "act.slope=0.1", "train.log_every=1", "act=prelu"],
)
def test_what_an_artefacts_nets_are_and_how_finely_they_log_is_its_own(word):
    """A claim about 30 layers says nothing of 40; steps are read off the log."""
    with pytest.raises(ValueError, match=re.escape(word) + ": an artefact sets model, act, init"):
        make_plan(["figure3"], ["scale=smoke", word])


def test_comparisons_of_other_settings_have_folders_of_their_own():
    def place(*words, act="relu"):
        return compare._name(["14"], [configs.compose(["scale=smoke", f"act={act}", *words])])

    assert place() == place("device=cpu") == "compare-init-14"
    assert place("train.lr=0.02") == "compare-init-14-lr0.02"
    assert place("seed=3", act="prelu") == "compare-init-14-prelu-s3"
    many = place(
        "train.lr=0.02", "train.batch=16", "data.classes=3", "train.momentum=0.8", "seed=1"
    )
    assert len(many) <= 60
    assert len({place("data.classes=3"), place(), many}) == 3


def test_compare_init_trains_the_nets_of_figure_3(monkeypatch):
    """At scale paper both arms switch their learning rate at the same shares of the training: a
    plateau would switch the slower one before it starts to learn."""
    planned = []
    monkeypatch.setattr(compare, "work_runs", lambda plan, *rest: planned.append(plan) or {"x": ""})
    with pytest.raises(RuntimeError):
        compare.compare_inits(["depth=30", "scale=paper"], None)
    [plan] = planned
    assert plan.runs == make_plan(["figure3"], ["scale=paper"], need_data=False).runs
    assert {tuple(config.train.switch) for config in plan.runs.values()} == {(0.7, 0.9)}
    planned.clear()
    with pytest.raises(RuntimeError):
        compare.compare_inits(["depth=30", "scale=paper", "train.switch=0.5"], None)
    assert {tuple(config.train.switch) for config in planned[0].runs.values()} == {(0.5,)}


def test_a_run_by_plateaus_is_told_where_the_same_by_switches_is_to_be_trained():
    """`delving train` makes such runs at scale paper: days of work, mentioned nowhere else."""
    words = ["scale=smoke", "train.switch=0.7,0.9"]
    plan = make_plan(["figure1"], words)
    by_plateaus = make_plan(["figure1"], ["scale=smoke", "train.switch=[]"])
    make_planned(by_plateaus, "figure1", usual)
    told, twin = say_plan(plan), by_plateaus.arms["figure1"]["prelu"][0]
    assert f"{twin} is there, and is another run" in told
    assert "train.switch=0.7,0.9" in told
    assert "another run" not in say_plan(by_plateaus)


def test_hours_of_a_cpu_that_nobody_waits_for_are_told_to_be_a_cpus():
    plan = plan_for("figure1")
    task = Task(next(iter(plan.runs)), {"kind": "train"})
    assert "on this machine's CPU; `delving estimate" in say_plan(plan, [task], 3600 * 1000.0)
    assert "CPU" not in say_plan(plan, [task], 3600.0)


def test_the_headline_tells_the_widths_and_epochs_of_the_nets_that_are_asked_for():
    """Figure 3's nets have 12 epochs, where scale smoke gives small ones 2."""
    small = "small nets at 0.0625 of the paper's width for {} epochs, large ones at 0.0625 for 2."
    for artefacts, epochs in ((["figure3"], "12"), (["figure3", "figure1"], "2 or 12")):
        assert small.format(epochs) in headline(plan_for(*artefacts))
    words = ["family.small.epochs=3", "family.large.width=0.5"]
    told = headline(plan_for("figure1", "table5", words=words))
    assert "at 0.0625 of the paper's width for 3 epochs, large ones at 0.5 for 2." in told


def test_the_time_is_no_less_than_the_longest_chain_of_tasks_that_wait_for_one_another():
    plan = plan_for("figure1")
    tasks = [Task("images", {}, seconds=5.0), Task("short", {}, seconds=20.0),
             Task("long", {}, frozenset({"images"}), seconds=100.0),
             Task("measured", {}, frozenset({"long", "short"}), seconds=40.0),
             Task("timed", {}, alone=True, seconds=7.0)]  # fmt: skip
    assert reckon_wall(tasks, 1) == 165 + 7
    assert reckon_wall(tasks, 2) == reckon_wall(tasks, 9) == 145 + 7
    tasks = [Task("long", {"kind": "train"}), Task("measured", {"kind": "measure"},
                                                   frozenset({"long"}))]  # fmt: skip
    assert "About 2.0 min, 2 side by side." in say_plan(plan, tasks, 60.0, jobs=2)


@pytest.fixture
def budgeted(whole):
    """A plan of everything, and one of a single artefact, at a scale that plans 100 seconds."""
    budget = Reproduce(seconds={"small": 100.0})
    return [dataclasses.replace(plan, budget=budget) for plan in (whole, plan_for("figure1"))]


def test_seconds_are_planned_for_all_artefacts_as_the_scale_sets_them(budgeted):
    everything, one = budgeted
    assert everything.planned == {"small": 100.0}
    assert dataclasses.replace(everything, overrides=["train.epochs=9"]).planned == {}
    assert one.planned == {}
    said = {}
    for plan in budgeted:
        out = io.StringIO()
        tell_outcome(plan, {"small": 3.0}, [], {}, [], Overview(Console(file=out)))
        said[len(plan.requests)] = out.getvalue()
    assert "planned" in said[len(everything.requests)]
    assert "planned" not in said[1]


def test_a_single_artefact_adds_to_the_seconds_used_and_leaves_those_planned(budgeted):
    everything, one = budgeted
    for plan, planned in ((one, {}), (everything, {"small": 100.0}), (one, {"small": 100.0})):
        save_times(plan, 1, {"small": 3.0})
        assert load_times(plan)["planned"] == planned
    assert load_times(one)["used"] == {"small": 9.0}


def say_plan(plan, tasks=(), seconds=1.0, jobs=1):
    said = io.StringIO()
    tasks = [dataclasses.replace(task, seconds=seconds) for task in tasks]
    tell_plan(plan, tasks, jobs, Overview(Console(file=said, width=200)))
    return said.getvalue()


def test_small_nets_tell_what_seeds_change_also_to_artefacts_that_do_not_ask_for_them(
    tmp_path, monkeypatch
):
    small = seeded_plan(monkeypatch, tmp_path, SMALL, seeds=2)
    make_planned(small, SMALL, lambda arm, seed: {"errors": {"ten_view": 20.0 + 2 * seed}})
    plan = plan_for("figure3")
    assert all(run.startswith("small30") for run in plan.runs)
    noise = ask(plan, "figure3").noise(lambda run: run.error("ten_view"))
    assert noise == pytest.approx(math.sqrt(2))


def test_a_source_is_read_in_place_of_the_output_folder(tmp_path):
    plan = make_plan(["figure1"], ["scale=smoke"], tmp_path / "other")
    assert {plan.folder(run).parent for run in plan.runs} == {tmp_path / "other" / "runs"}


# --- fewer nets, smaller ones ---
def test_seeds_can_be_given_by_role(whole):
    plan = plan_for("table2", words=["reproduce.seeds.rectifiers=1", "reproduce.seeds.small=3"])
    counts = {arm: len(names) for arm, names in plan.arms["table2"].items()}
    assert counts == {
        "relu": 1,
        "lrelu": 3,
        "prelu_shared": 3,
        "prelu": 1,
        "xavier": 3,
        "small30": 3,
    }
    assert set(plan.told) == {"reproduce.seeds.rectifiers=1", "reproduce.seeds.small=3"}
    # A run stays the same, however many seeds are asked for.
    assert plan.arms["table2"]["relu"] == whole.arms["table2"]["relu"][:1]


def test_artefacts_without_nets_and_those_that_show_what_these_measure_are_left_out(whole):
    plan = plan_for(words=["reproduce.seeds.large=0"])
    assert set(whole.requests) - set(plan.requests) == {
        "table4", "table5", "table6", "table7", "figure4", "figure5", "figure6", "figure7",
    }  # fmt: skip
    assert "reproduce.seeds" in plan.left_out["table4"]
    assert "table7" in plan.left_out["figure7"]
    assert set(plan.runs) < set(whole.runs)
    assert plan.arms["convergence"]["small14_relu"]  # the rest of what it shows stays
    assert plan.arms["convergence"]["a_relu"] == []


def test_an_artefact_without_nets_that_is_asked_for_by_name_is_refused():
    with pytest.raises(ValueError, match=r"table4: reproduce\.seeds\.large: its nets get no"):
        plan_for("table4", words=["reproduce.seeds.large=0"])
    with pytest.raises(
        ValueError, match=r"figure7: it shows what table7 measures; reproduce\.seeds"
    ):
        plan_for("figure7", words=["reproduce.seeds.large=0"])


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("reproduce.seeds.lagre=0", r"lagre'; did you mean reproduce\.seeds\.large"),
        ("reproduce.seeds.large=-1", r"reproduce\.seeds\.large=-1: must be an integer from 0"),
        ("reproduce.seeds.large=few", r"reproduce\.seeds\.large=few"),
        ("reproduce.seconds=3", r"reproduce\.seconds"),
        ("family.small.epochs=0", r"family\.small\.epochs=0.*must be"),
        ("family.smal.epochs=1", r"did you mean .*family\.small\.epochs"),
    ],
)
def test_a_wrong_number_of_trainings_or_a_familys_wrong_value_is_refused_by_name(word, named):
    with pytest.raises(ValueError, match=named):
        plan_for("table2", words=[word])


def test_trainings_are_counted_by_reproduce_alone():
    with pytest.raises(ValueError, match="a setting of `delving reproduce`"):
        configs.compose(["reproduce.seeds.large=0"])


def test_small_and_large_nets_have_settings_of_their_own():
    words = ["family.small.epochs=3", "family.large.width=0.125", "family.large.lr=0.001"]
    plan = plan_for("table2", "table5", words=words)
    small = {run: c for run, c in plan.runs.items() if c.model.family == "small"}
    large = {run: c for run, c in plan.runs.items() if c.model.family == "large"}
    assert small
    assert large
    assert {c.train.epochs for c in small.values()} == {3}
    assert {(c.model.width, c.train.lr) for c in large.values()} == {(0.125, 0.001)}
    assert all("epochs3" in run and "width" not in run for run in small)
    # An option for the family and the same one for the net make the same run.
    given = configs.compose(["scale=smoke", "act=relu", "train.epochs=3"])
    assert small["small14-relu-he-epochs3-s0"] == given


def test_records_without_detections_are_redrawn_without_them(tmp_path):
    """Even if scenes could be generated: nothing is trained when drawing from records."""
    plan = make_plan(["all"], ["scale=smoke"], tmp_path)
    assert plan.left_out == {"detection": "these records hold no detections"}
    with pytest.raises(ValueError, match="detection: these records hold no detections"):
        make_plan(["detection"], ["scale=smoke"], tmp_path)


@pytest.mark.parametrize(
    ("words", "epochs"),
    [([], 12), (["family.small.epochs=30"], 30), (["family.small.epochs=3"], 12),
     (["train.epochs=3"], 3)],
)  # fmt: skip
def test_figure_3_has_twelve_epochs_at_least(words, epochs):
    """More do not help Xavier; if small nets have as many, He's net is Table 2's."""
    plan = plan_for("figure3", "table2", words=words)
    runs = [run for arm in plan.arms["figure3"].values() for run in arm]
    assert {plan.runs[run].train.epochs for run in runs} == {epochs}
    shared = set(plan.arms["figure3"]["he"]) & set(plan.arms["table2"]["small30"])
    assert bool(shared) == (words in (["family.small.epochs=30"], ["train.epochs=3"]))


@pytest.mark.parametrize(("scale", "he"), [("paper", "he_backward"), ("quarter", "he")])
def test_figures_2_and_3_compare_xavier_with_the_scales_own_form_of_he(scale, he):
    plan = make_plan(["figure2", "figure3"], [f"scale={scale}"], need_data=False)
    for figure in ("figure2", "figure3"):
        inits = {arm: {plan.runs[run].init.name for run in runs}
                 for arm, runs in plan.arms[figure].items()}  # fmt: skip
        assert inits == {"he": {he}, "xavier": {"xavier"}}


# --- how long ---
@pytest.mark.parametrize(
    ("words", "images"),
    [
        (["data=tiny_imagenet"], (100_000, 10_000)),
        (["data=tiny_imagenet", "data.classes=50"], (25_000, 2_500)),
        (["data=tiny_imagenet", "data.classes=50", "data.train_images=100"], (100, 2_500)),
        (["data=cifar10", "data.classes=20"], (50_000, 10_000)),
        (["data=imagenet", "data.classes=100"], (128_117, 5_000)),
        (["data=folder", "data.classes=10"], (100_000, 10_000)),
        (["data=shapes", "data.train_images=10", "data.val_images=5"], (10, 5)),
        # The number of generated shapes does not depend on the classes.
        (
            ["data=shapes", "data.classes=5", "data.train_images=null", "data.val_images=null"],
            (4_000, 1_000),
        ),
    ],
)
def test_images_are_counted_by_the_data_sets_name_and_the_share_of_its_classes(words, images):
    assert count_images(configs.compose(["scale=quarter", *words])) == images


def test_images_that_lie_there_are_counted(tmp_path):
    for name in ("train/cat/1.png", "train/cat/2.png", "train/dog/3.png", "val/dog/4.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    words = ["scale=quarter", "data=folder", f"data.root={tmp_path}"]
    assert count_images(configs.compose(words)) == (3, 1)
    assert count_images(configs.compose([*words, "data.train_images=2"])) == (2, 1)
    nowhere = ["scale=quarter", "data=cifar10", f"data.root={tmp_path / 'nowhere'}"]
    assert count_images(configs.compose(nowhere)) == (50_000, 10_000)
    imagenet = ["scale=quarter", "data=imagenet", f"data.root={tmp_path}"]  # known without listing
    assert count_images(configs.compose(imagenet)) == (1_281_167, 50_000)


def test_images_on_a_disk_that_cannot_be_read_are_counted_by_name(tmp_path, monkeypatch):
    def unreadable(*_, **__):
        raise OSError("Input/output error")

    monkeypatch.setattr("delving.cost.load_data", unreadable)
    words = ["scale=quarter", "data=cifar10", f"data.root={tmp_path}"]
    assert count_images(configs.compose(words)) == (50_000, 10_000)


def test_before_any_run_seconds_follow_from_multiplications_and_from_layers_and_steps():
    """3,200 images twice are 200 steps of 32; forward and backward take three forward passes."""
    words = ["data.train_images=3200", "data.val_images=100", "train.batch=32", "train.epochs=2"]
    config = configs.compose(["scale=smoke", *words])
    multiplying = 3 * 1e9 * 6400 / cost.RATE
    layers = cost.LAYER * 14 * 200
    assert cost.estimate_seconds(config, (10**9, 14)) == pytest.approx(multiplying + layers)


def test_a_gpu_is_not_reckoned_to_take_a_cores_time(monkeypatch):
    words = ["scale=quarter", "model=a", "data.train_images=12800", "train.epochs=2"]
    config = configs.compose(words)
    core = cost.estimate_seconds(config, (10**10, 22))
    monkeypatch.setattr(cost, "pick_device", lambda name: SimpleNamespace(type="cuda"))
    gpu = cost.estimate_seconds(config, (10**10, 22))
    assert gpu == pytest.approx(3 * 1e10 * 25600 / cost.GPU_RATE + 200 * cost.GPU_STEP)
    assert core > 1000 * gpu


def test_the_work_of_a_net_is_that_of_all_its_layers_for_the_classes_there_are():
    config = configs.compose(["scale=smoke", "data.classes=3"])
    net, layers = build_model(config, 3)
    multiply_adds = sum(row["multiply_adds"] for row in describe(net, layers, config.data.crop))
    assert cost.measure_work(config) == (multiply_adds, 14)


def test_the_longest_run_comes_first():
    plan = plan_for("figure3", "figure1")
    order = in_order(plan.runs, plan.estimate, gpu=False)
    estimates = [plan.estimate(run) for run in order]
    assert estimates == sorted(estimates, reverse=True)
    assert order[0].startswith("small30")
    assert min(estimates) > 0
    trainings = [task.name for task in list_tasks(plan, []) if task.message["kind"] == "train"]
    assert trainings == order


def test_on_a_gpu_those_that_see_the_same_images_follow_one_another():
    """Side by side they share decoded images: the arms of a seed do, whatever their nets."""
    words = ["reproduce.seeds.deep=2", "reproduce.seeds.rectifiers=2"]
    plan = plan_for("figure3", "figure1", "table4", words=words)
    order = in_order(plan.runs, plan.estimate, gpu=True)
    assert sorted(order) == sorted(plan.runs)
    small = [run for run in order if run.startswith("small")]
    assert [run[-2:] for run in small] == ["s0"] * 3 + ["s1"] * 3
    assert [run[:7] for run in small[:3]] == ["small30", "small30", "small14"]
    places = [order.index(run) for run in small]
    assert places[2] - places[0] == places[5] - places[3] == 2  # large nets draw another s


def test_finished_runs_correct_the_estimate_of_the_others():
    plan = plan_for("figure1")
    before = {run: plan.estimate(run) for run in plan.runs}
    make_planned(plan, "figure1", usual)
    first, second = plan.runs
    rewrite_json(plan.folder(first) / "result.json", seconds=7 * before[first])
    (plan.folder(second) / "result.json").unlink()
    assert plan_for("figure1").estimate(second) == pytest.approx(7 * before[second])


def test_finished_runs_of_the_same_model_correct_it_where_there_are_some():
    plan = plan_for("figure1", "figure3")
    before = {run: plan.estimate(run) for run in plan.runs}
    of_14, of_30 = (sorted(run for run in before if run.startswith(net))
                    for net in ("small14", "small30"))  # fmt: skip
    for name in ("figure1", "figure3"):
        make_planned(plan, name, usual)
    for run, factor in ((of_14[0], 7), (of_30[0], 3)):
        rewrite_json(plan.folder(run) / "result.json", seconds=factor * before[run])
    for run in (of_14[1], of_30[1]):
        (plan.folder(run) / "result.json").unlink()
    there = plan_for("figure1", "figure3")
    assert there.estimate(of_14[1]) == pytest.approx(7 * before[of_14[1]])
    assert there.estimate(of_30[1]) == pytest.approx(3 * before[of_30[1]])


# --- measurements ---
@pytest.fixture
def measured():
    """A plan whose runs are finished and have been measured one by one."""
    plan = plan_for("fisher")
    make_planned(plan, "fisher", usual)
    for run in plan.runs:
        save_measured(plan, "fisher", [run], {"of": run}, 2.5)
    return plan


def measured_runs(plan):
    return {run for (run,) in measured_of(plan, "fisher")}


def tasks_of(plan):
    return {task.name: task for task in list_tasks(plan, [])}


def test_a_measurement_is_kept_while_its_runs_stay_as_they_are(measured):
    again = plan_for("fisher")
    found = {(run,): {"of": run} for run in measured.runs}
    assert measured_of(again, "fisher") == found
    assert ask(again, "fisher").measured == {"fisher": found}
    assert tasks_of(again) == {}


def test_a_measurement_is_made_anew_when_its_run_s_result_changes(measured):
    changed, *others = measured.runs
    rewrite_json(measured.folder(changed) / "result.json", status="stalled")
    again = plan_for("fisher")
    assert measured_runs(again) == set(others)
    assert list(tasks_of(again)) == ["fisher"]


def test_a_measurement_is_made_anew_for_other_settings(measured):
    plan = plan_for("fisher")
    request = dataclasses.replace(plan.requests["fisher"], settings={"images": 7})
    plan.requests["fisher"] = request
    assert measured_of(plan, "fisher") == {}
    assert ask(plan, "fisher").measured == {}
    assert list(tasks_of(plan)) == ["fisher"]


def test_more_seeds_leave_the_measurements_of_the_others(measured):
    """Those may come from another machine, without the weights to measure again."""
    more = make_plan(["fisher"], ["scale=smoke", "reproduce.seeds.small=2"])
    assert len(more.runs) > len(measured.runs)
    assert measured_runs(more) == set(measured.runs)
    assert list(tasks_of(more))[-1] == "fisher"
    make_planned(more, "fisher", usual)
    assert measured_runs(more) == set(measured.runs)
    assert list(tasks_of(more)) == ["fisher"]


def test_what_is_missing_is_measured_and_what_cannot_be_is_told_last(measured, monkeypatch):
    more = make_plan(["fisher"], ["scale=smoke", "reproduce.seeds.small=2"])
    make_planned(more, "fisher", usual)
    lost, kept = (name for name in more.runs if name not in measured.runs)
    tried = []

    def measure(asked, run):
        tried.append(run.name)
        if run.name == lost:
            raise ValueError(f"{run.name} has no weights")
        return {"of": run.name}

    monkeypatch.setattr(fisher, "measure", measure)
    with pytest.raises(ValueError, match=f"{lost} has no weights"):
        measure_missing(more, ask(more, "fisher"))
    assert tried == [lost, kept]
    assert measured_runs(more) == {*measured.runs, kept}


@pytest.mark.parametrize(
    ("word", "stays"),
    [
        ("model.width=0.5", False),
        ("family.small.width=0.5", False),
        ("init.range=raw", False),
        ("data.classes=2", False),
        ("family.small.epochs=7", True),
        ("eval.images=7", True),
        ("data.workers=0", True),
    ],
)
def test_nets_measured_as_they_start_are_measured_anew_where_they_differ(word, stays):
    save_measured(plan_for("signal"), "signal", [], {"found": 1}, 2.5)
    again = make_plan(["signal"], ["scale=smoke", word])
    assert (measured_of(again, "signal") == {(): {"found": 1}}) == stays


def test_nets_measured_as_they_start_are_measured_anew_on_other_images(tmp_path):
    def plan_on(root, *names):
        for path in (tmp_path / root / split / "dogs" for split in ("train", "val")):
            path.mkdir(parents=True)
            for name in names:
                Image.new("RGB", (40, 40)).save(path / name)
        return plan_for("signal", words=["data=folder", f"data.root={tmp_path / root}"])

    here, moved = plan_on("here", "a.png"), plan_on("moved", "a.png")
    save_measured(here, "signal", [], {"found": 1}, 2.5)
    assert measured_of(moved, "signal")
    assert not measured_of(plan_on("others", "a.png", "b.png"), "signal")
    # Where none are asked for, as when records are redrawn elsewhere, none can be compared.
    assert measured_of(plan_for("signal", words=["data=folder"]), "signal")


@pytest.mark.parametrize("word", ["device=cpu", "precision=fp32"])
def test_steps_are_timed_anew_on_another_device_and_in_another_precision(word):
    save_measured(plan_for("table3"), "table3", [], {"found": 1}, 2.5)
    assert measured_of(plan_for("table3"), "table3")
    assert not measured_of(make_plan(["table3"], ["scale=smoke", word]), "table3")


def test_a_measurement_waits_for_the_runs_that_are_missing():
    plan = plan_for("fisher", "figure1", "table3")
    make_run(plan.folder(plan.arms["fisher"]["prelu"][0]))
    tasks = tasks_of(plan)
    assert tasks["fisher"].after == set(plan.arms["fisher"]["relu"])
    assert not tasks["fisher"].alone
    assert tasks["table3"].alone
    assert tasks["table3"].after == frozenset()
    runs = [name for name, task in tasks.items() if task.message["kind"] == "train"]
    assert runs == plan.missing()


def test_what_a_worker_is_told_of_a_run_is_its_whole_configuration():
    plan = plan_for("figure1")
    tasks = tasks_of(plan)
    for name, config in plan.runs.items():
        assert configs.from_yaml(tasks[name].message["config"], name) == config


@pytest.mark.parametrize(("words", "switch"), [([], [0.7, 0.9]), (["train.switch=[0.5]"], [0.5])])
def test_what_is_compared_at_the_paper_scale_switches_after_the_same_epochs(words, switch):
    """Section 3: with a plateau of its own, an arm that starts late would switch before it does."""
    names = ["table2", "table4", "figure2", "figure3"]
    plan = make_plan(names, ["scale=paper", *words], need_data=False)
    assert {tuple(config.train.switch) for config in plan.runs.values()} == {tuple(switch)}
    assert configs.compose(["scale=paper", "model=small14"]).train.switch == []


def make(task):
    """Makes a task's images as a worker does, without output."""
    _work(task.message, io.StringIO(), {})


def test_generated_images_are_made_once_and_before_what_needs_them(tmp_path):
    plan = make_plan(["detection"], ["scale=smoke"])
    first, second, *rest = list_tasks(plan, [])
    shapes, scenes = first.name, second.name
    assert [shapes.split("-")[0], scenes.split("-")[0]] == ["shapes", "shapes_voc"]
    assert [first.serves, second.serves] == [True, True]
    assert {task.after for task in rest if task.message["kind"] == "train"} == {frozenset([shapes])}
    detections = [task for task in rest if task.message["kind"] == "detect"]
    assert len(detections) == len(plan.detectors())
    for task in detections:
        assert task.after == {task.name.removesuffix(" detection"), scenes}
    for task in (first, second):
        make(task)
        assert (tmp_path / "outputs" / "data" / task.name).is_dir()
    assert [task.name for task in list_tasks(plan, [])] == [task.name for task in rest]
    assert not any(task.after & {shapes, scenes} for task in list_tasks(plan, []))


def test_nets_that_are_measured_untrained_wait_for_their_images_too(tmp_path):
    """Beside trainings, which wait for them, they would be made a second time."""
    plan = make_plan(["signal", "table3", "figure1"], ["scale=smoke"])
    maker, *rest = list_tasks(plan, [])
    after = {task.name: task.after for task in rest}
    assert set(map(after.get, ["signal", *plan.runs])) == {frozenset([maker.name])}
    assert after["table3"] == frozenset()  # it looks at noise
    [alone, signal] = list_tasks(make_plan(["signal"], ["scale=smoke"]), [])
    assert (alone.name, signal.after) == (maker.name, {maker.name})
    make(alone)
    assert (tmp_path / "outputs" / "data" / maker.name).is_dir()
    assert not tasks_of(plan)["signal"].after


def test_images_that_cannot_be_made_are_left_to_the_runs_to_name(tmp_path):
    (tmp_path / "outputs").write_text("no folder")
    plan = make_plan(["figure1"], ["scale=smoke"])
    maker, run, *_ = list_tasks(plan, [])
    make(maker)
    with pytest.raises(OSError, match="outputs"):
        load_splits(plan.runs[run.name].data, "outputs")


def test_images_that_lie_somewhere_are_not_made():
    plan = make_plan(["figure1"], ["scale=smoke", "data.root=there"])
    assert {task.message["kind"] for task in list_tasks(plan, [])} == {"train"}


def test_a_detection_is_planned_by_its_steps_not_by_what_those_of_scale_cpu_take():
    """`--minutes` does not begin a task that would not end in time."""
    known = {}
    for steps in (20, 20_000, 40_000):
        plan = make_plan(["detection"], ["scale=smoke", f"detect.steps={steps}"])
        [first, *_] = [task for task in list_tasks(plan, []) if task.name.endswith(" detection")]
        known[steps] = estimate_task(plan, first)
    assert known[20] == DETECTING
    assert known[40_000] == pytest.approx(2 * known[20_000], rel=0.01)


def test_a_measurement_is_planned_by_what_its_artefact_says():
    """In conf/paper: table3 takes minutes, in which the work would seem to stand still."""
    plan = make_plan(["table3", "signal"], ["scale=smoke"])
    tasks = {task.name: task for task in list_tasks(plan, [])}
    for name in ("table3", "signal"):
        assert estimate_task(plan, tasks[name]) == load_request(name).seconds
    assert load_request("table3").seconds > load_request("signal").seconds


def test_a_damaged_result_is_no_reason_to_plan_nothing():
    plan = plan_for("figure1")
    make_planned(plan, "figure1", usual)
    first, second = plan.runs
    (plan.folder(first) / "result.json").write_text("{")
    (plan.folder(second) / "result.json").unlink()
    assert plan_for("figure1").estimate(second) > 0
