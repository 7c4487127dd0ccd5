"""The READMEs' generated blocks, and what their text says of records, agree with the records."""

import itertools
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from calling import python_path
from scipy.stats import spearmanr

from delving import record
from delving.artefact import mean_and_spread, published
from delving.judge import mean_interval
from delving.paper import fisher
from delving.paper.table1 import fall_with_depth, stand_out
from delving.readme import BLOCKS, READMES, REFERENCE, collect, paragraphs, refresh

ROOT = Path(__file__).parent.parent
README, BENCH = READMES
FURTHER = REFERENCE / "README.md"
PLACE = re.compile(r"(.*?) +# (\S+\.py|\S+\.yaml|in RECTIFIERS)$")


def text_of(path):
    """The file's text as one line, so that line breaks do not matter."""
    return " ".join(path.read_text(encoding="utf-8").split())


@pytest.mark.parametrize("path", READMES)
def test_a_readme_is_fresh(path):
    text = path.read_text(encoding="utf-8")
    assert refresh(text) == text, "stale: run `make readme`"


@pytest.mark.parametrize("path", [README, BENCH, FURTHER])
def test_what_a_readme_leads_to_is_there(path):
    places = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    places = [place for place in places if "://" not in place]
    assert places
    assert not [place for place in places if not (path.parent / place).exists()]


@pytest.mark.parametrize("title", BLOCKS)
def test_every_block_has_its_place_and_is_not_empty(title):
    [text] = [text for path in READMES
              if f"<!-- {title} -->" in (text := path.read_text(encoding="utf-8"))]  # fmt: skip
    block = text.partition(f"<!-- {title} -->")[2].partition(f"<!-- end {title} -->")[0]
    assert len(block.strip().splitlines()) >= (1 if title.startswith("picture") else 3)


def test_a_stale_block_is_rewritten_and_nothing_else():
    text = "before\n<!-- deviations -->\nold\n<!-- end deviations -->\nafter\n"
    fresh = refresh(text)
    assert "\nold\n" not in fresh
    assert fresh.startswith("before\n<!-- deviations -->\n- ")
    assert fresh.endswith("\n<!-- end deviations -->\nafter\n")


@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        (["x = 1  # assumed: one line", "y = 2  # not this"], ["One line."]),
        (["# assumed: two", "# lines.", "x = 1"], ["Two lines."]),
        (['"""Does it.', "", "    assumed: a paragraph", "    of two.", "", "    Args:"],
         ["A paragraph of two."]),
        (['    """assumed: all there is."""', "    return 1"], ["All there is."]),
        (["# assumed: first", "# assumed: second"], ["First.", "Second."]),
        (["# assumed: to the empty", "# line.", "#", "# Not this."], ["To the empty line."]),
        (["# ours: another kind"], []),
        (["def f(assumed: int):"], []),
        (["class Row:", "    assumed: float"], []),
    ],
)  # fmt: skip
def test_a_tag_reaches_to_the_end_of_its_comment_or_paragraph(lines, texts):
    assert list(paragraphs(lines, "assumed")) == texts


def test_each_tag_names_its_file():
    assert all(
        line.startswith("- ") and line.endswith((".py))", ".yaml))")) for line in collect("assumed")
    )


@pytest.mark.parametrize(
    ("kind", "place", "words"),
    [("assumed", "conf/paper/detection.yaml", "trunk is small14"),
     ("assumed", "conf/config.yaml", "section 3's batch"),
     ("ours", "conf/paper/table7.yaml", "are C"),
     ("ours", "delving/paper/table7.py", "validation images"),
     ("ours", "delving/detect/train.py", "biases do not decay")],
)  # fmt: skip
def test_what_neither_paper_says_is_told(kind, place, words):
    assert [line for line in collect(kind) if line.endswith(f"({place}))") and words in line]


# --- how to extend it, as the README tells ---
def examples():
    """{where it belongs: code} of the examples in the README's section on extending."""
    section = (
        README.read_text(encoding="utf-8").partition("## Extending it")[2].partition("\n## ")[0]
    )
    found, place = {}, None
    for line in section.splitlines():
        if line and not line.startswith("    "):
            place = None
        elif told := PLACE.match(line):
            place = told[2]
            found[place] = [told[1][4:]]
        elif place:
            found[place].append(line[4:])
    return {place: "\n".join(lines).strip() + "\n" for place, lines in found.items()}


def test_the_rectifier_and_the_initialisers_serve_in_any_net():
    text = README.read_text(encoding="utf-8")
    block = text[text.index("    from functools import partial\n") :].partition("\n\n")[0]
    scope = {}
    exec("\n".join(line[4:] for line in block.splitlines()), scope)
    conv, act, _ = net = scope["net"]
    std = math.sqrt(2 / ((1 + 0.25**2) * 27))  # Eq. 15
    assert conv.weight.std().item() == pytest.approx(std, rel=0.1)
    assert act.slope.tolist() == [0.25] * 64
    plain = torch.nn.PReLU(64)
    plain.load_state_dict({"weight": act.state_dict()["slope"]})
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(conv(x)), net[:2](x))
    bare = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3, bias=False))
    scope["initialize"](bare, lambda layers: [std], seed=0)
    assert torch.equal(bare[0].weight, conv.weight)


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """Runs a copy of the program that has the README's rectifier, net and artefact."""
    root = tmp_path_factory.mktemp("extended")
    for name in ("delving", "conf"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = examples()
    path = root / "delving" / "rectifier.py"
    function, line = code.pop("delving/rectifier.py"), code.pop("in RECTIFIERS")
    text = path.read_text(encoding="utf-8").replace("RECTIFIERS: ", f"{function}\n\nRECTIFIERS: ")
    path.write_text(
        text.replace('    "relu": build', f'    {line}    "relu": build'), encoding="utf-8"
    )
    for name, text in code.items():
        (root / name).write_text(text, encoding="utf-8")

    def run(*words):
        command = [sys.executable, "-m", "delving", *words, "scale=smoke", "output_root=out"]
        env = os.environ | {"PYTHONPATH": python_path(root)}
        return subprocess.run(
            command, cwd=root, env=env, capture_output=True, text=True, check=False
        )

    return root, run


@pytest.mark.long
def test_a_rectifier_and_a_net_are_added_and_compared_as_the_readme_says(extended):
    root, run = extended
    done = run("train", "model=slim", "act=elu")
    assert done.returncode == 0, done.stderr
    assert (root / "out/smoke/runs/slim-elu-he-s0/result.json").exists()
    done = run("compare-init", "model=slim", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    assert (root / "out/smoke/compare-init-slim-epochs1/signal.png").exists()


@pytest.mark.long
def test_the_tests_pick_all_of_them_up_unedited(extended):
    root, _ = extended
    shutil.copytree(ROOT / "tests", root / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    files = [
        f"tests/test_{name}.py"
        for name in (
            "rectifier",
            "initializer",
            "net",
            "spp",
            "plan",
            "signal",
            "house",
            "config",
            "train",
            "replay",
            "fisher",
            "artefact",
            "estimate",
            "compile",
            "kernels",
        )
    ]
    command = [sys.executable, "-m", "pytest", "-q", *files]
    env = os.environ | {"PYTHONPATH": python_path(root)}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "elu" in subprocess.run([*command, "--collect-only"], cwd=root, env=env, text=True,
                                   capture_output=True, check=True).stdout  # fmt: skip


@pytest.mark.long
def test_an_artefact_is_added_as_the_readme_says(extended):
    root, run = extended
    done = run("reproduce", "slopes")
    assert done.returncode == 0, done.stderr
    assert "| conv1 | 0." in (root / "out/smoke/slopes/table.md").read_text(encoding="utf-8")
    assert "slope is positive" in (root / "out/smoke/report.html").read_text(encoding="utf-8")


def test_what_is_told_of_all_classes_is_in_their_records():
    told, folder = text_of(FURTHER), REFERENCE / "classes200"
    ends, errors, trained = pd.read_csv(folder / "ends.csv").set_index("run"), {}, {}
    for path in sorted(folder.glob("*.json")):
        result = record.read_json(path)
        net = f"{result['act']}-{result['init']}"
        errors.setdefault(net, []).append(result["eval"]["ten_view"]["top1_err"])
        trained.setdefault(net, []).append(ends.training_err[result["run"]])
    nets = ("relu-xavier", "relu-he", "lrelu-he", "prelu-he")
    for what, found, places in (("ten-view", errors, 2), ("training", trained, 1)):
        cells = [mean_and_spread(found[net], places) for net in nets]
        assert f"| {what} | 200 | {' | '.join(cells)} |" in told
    xavier, relu, lrelu, prelu = (errors[net] for net in nets)
    ahead = mean_interval([a - b for a, b in zip(relu, prelu, strict=True)])
    assert (f"PReLU stays {ahead.mean:.2f} points ahead of ReLU (95 % interval {ahead.low:.2f} to "
            f"{ahead.high:.2f})") in told  # fmt: skip
    assert f"LReLU is {lrelu[0] - prelu[0]:.2f} points behind PReLU of the same seed" in told
    leaving = [ends.departure[f"small14-{net}-epochs36-width0.25-s0"] for net in nets[:2]]
    assert (f"Xavier ends {xavier[0] - relu[0]:.2f} points behind He: it leaves ln(classes) at "
            f"step {leaving[0]:,.0f}, He at {leaving[1]:,.0f}") in told  # fmt: skip


@pytest.mark.parametrize("folder", ["longer", "classes200"])
def test_what_is_told_of_slopes_after_more_steps_is_in_their_records(folder):
    told = text_of(FURTHER)
    slopes = pd.read_csv(REFERENCE / folder / "slopes.csv")
    slopes = slopes.pivot(index="run", columns="layer", values="mean")
    means = slopes.mean()
    assert f"end between {means.min():.2f} and {means.max():.2f}, and over" in told
    convs = slopes[[layer for layer in slopes if layer.startswith("conv")]]
    paper = [published()["table1"][layer][1] for layer in convs]
    alike = [f"{spearmanr(own, paper).statistic:.2f}" for own in convs.to_numpy()]
    assert f"the paper's is {', '.join(alike[:-1])} and {alike[-1]}" in told
    falls = [-spearmanr(range(len(paper)), own).statistic for own in (*convs.to_numpy(), paper)]
    seen = mean_interval(falls[:-1], 0.95)
    assert (f"(rank correlation {seen.mean:.2f}, 95 % interval {seen.low:.2f} to {seen.high:.2f}; "
            f"the paper's {falls[-1]:.2f})") in told  # fmt: skip


def test_what_is_told_of_the_order_of_slopes_after_fewer_steps_is_in_their_records():
    told, paper = text_of(FURTHER), published()["table1"]

    def alike(means):
        own, theirs = zip(*((means[k], paper[k][1]) for k in means if k.startswith("conv")),
                          strict=True)  # fmt: skip
        return f"{spearmanr(own, theirs).statistic:.2f}"

    name = "small14-prelu-he-classes50-epochs36-width0.25-s{}"
    folders = [REFERENCE / ("quarter/runs" if seed < 3 else "seeds") / name.format(seed)
               for seed in range(5)]  # fmt: skip
    slopes = [record.load_slopes(folder) for folder in folders]
    found = [alike({layer: own.mean() for layer, own in net.items()}) for net in slopes]
    assert f"order already ({found[0]}, {found[1]} and {found[2]} with the paper's)" in told
    assert f"rank correlations of {min(found)} to {max(found)} after 3,500" in text_of(README)
    means = [np.mean([net[layer].mean() for net in slopes[:3]])
             for layer in slopes[0] if layer.startswith("conv")]  # fmt: skip
    assert max(means) - min(means) < 0.05
    wide = pd.read_csv(REFERENCE / "wide" / "slopes.csv").set_index("layer")["mean"]
    assert f"(rank correlation {alike(wide.to_dict())} over the conv layers)" in told


def test_what_is_told_of_raw_input_is_in_its_records():
    told, folder = text_of(FURTHER), REFERENCE / "raw"
    starts = pd.read_csv(folder / "starts.csv").assign(wide=lambda rows: rows.width == 1)
    ratios = (starts.gradient / starts.decay).map(lambda x: f"{x:#.2g}".rstrip("."))
    ratios.index = pd.MultiIndex.from_frame(starts[["net", "crop", "input", "wide"]])
    columns = [(224, "raw", True), (56, "raw", True), (56, "raw", False),
               (56, "normalised", True), (56, "normalised", False)]  # fmt: skip
    for net, title in (("small14", "small14"), ("b", "B"), ("small30", "small30")):
        cells = [ratios[(net, *column)] for column in columns]
        assert f"| {title} | {' | '.join(cells)} |" in told
    ends, errors = pd.read_csv(folder / "ends.csv").set_index("run"), {}
    for path in sorted(folder.glob("*.json")):
        result = record.read_json(path)
        net = (result["model"], result["init"])
        errors.setdefault(net, []).append(result["eval"]["ten_view"]["top1_err"])
        assert result["status"] == ("stalled" if net == ("small30", "xavier") else "converged")

    def ended(net, key):
        values = [ends[key][run] for run in ends.index if run.startswith(net)]
        *others, last = [f"{x:.2f}" if key == "center_err" else f"{x:,.0f}" for x in values]
        return f"{', '.join(others)} and {last}" if others else last

    he, xavier = "-relu-he_backward", "-relu-xavier"
    assert (f"at steps {ended('b' + he, 'first')} with He, {ended('b' + xavier, 'first')} with "
            f"Xavier; 2 % below for good at {ended('b' + he, 'departure')}, and at "
            f"{ended('b' + xavier, 'departure')}") in told  # fmt: skip
    assert (f"at {ended('b' + he, 'center_err')} % with He, at {ended('b' + xavier, 'center_err')} "
            "% with Xavier") in told  # fmt: skip
    [stays], [leaves] = (ends[ends.index.str.startswith("small30" + net)].itertuples()
                         for net in (xavier, he))  # fmt: skip
    assert math.isinf(stays.departure)
    assert (f"in all of {stays.steps:,} steps, seed 0; He left it by step {leaves.departure:,.0f} "
            f"for good, so that is {stays.steps / leaves.departure:.1f} times") in told  # fmt: skip
    assert (f"steps {ended('small14' + he, 'departure')} with He and "
            f"{ended('small14' + xavier, 'departure')} with Xavier") in told  # fmt: skip
    pair = [errors["small14", init] for init in ("he_backward", "xavier")]
    assert " % and ".join(map(mean_and_spread, pair)) in told
    seen = mean_interval([a - b for a, b in zip(*pair, strict=True)])
    assert (f"He's {seen.mean:.1f} points more (95 % interval {seen.low:.1f} to {seen.high:.1f})"
            ) in told  # fmt: skip
    seen = mean_interval([a - b for a, b in zip(*pair, strict=True)], 0.9)
    assert f"(90 % interval {seen.low:.1f} to {seen.high:.1f}, within 0.6 points" in told


def test_that_relu_is_behind_in_every_epoch_is_in_the_record():
    assert "it errs more at the end of every epoch" in text_of(README)
    [note] = record.read_json(REFERENCE / "quarter" / "convergence" / "verdict.json")["notes"]
    counts = re.findall(r"(\d+) of (\d+)", note)
    assert len(counts) == 4
    assert all(ahead == epochs for ahead, epochs in counts)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [("bias_weight", "it is {} % smaller (95 % interval {} to {})"),
     ("within", "within layers {} % ({} to {})")],
)  # fmt: skip
def test_what_is_told_of_blocks_of_the_fisher_matrix_is_in_its_record(kind, sentence):
    told = text_of(README)
    parts = record.read_json(REFERENCE / "quarter" / "fisher" / "measured.json")["parts"]
    energy = {run: math.log10(part["found"]["fisher"][kind]["energy"])
              for part in parts for run in part["asked"]["runs"]}  # fmt: skip
    less = [energy[run] - energy[run.replace("-relu-", "-prelu-")]
            for run in energy if "-relu-" in run]  # fmt: skip
    seen = mean_interval(less)
    smaller = [f"{100 - 100 * 10**-x:.0f}" for x in (seen.mean, seen.low, seen.high)]
    assert sentence.format(*smaller) in told


def test_what_is_told_of_lrelus_usual_slope_is_in_its_records():
    told, errors = text_of(FURTHER), {}
    name = "small14-{}-classes50-epochs36-{}width0.25-s{}"
    kinds = [("relu", "", "slope", 5), ("lrelu", "slope0.01-", "slope", 5),
             ("lrelu", "", "quarter/runs", 3), ("relu", "", "quarter/runs", 3)]  # fmt: skip
    for act, more, folder, seeds in kinds:
        runs = [REFERENCE / folder / name.format(f"{act}-he", more, seed) for seed in range(seeds)]
        results = [record.read_json(Path(f"{run}.json")) if folder == "slope" else
                   record.read_result(run) for run in runs]  # fmt: skip
        found = [result["eval"]["ten_view"]["top1_err"] for result in results]
        errors[act, more, folder] = found
    relu, usual, ours, ledgers = errors.values()
    assert f"| {' | '.join(map(mean_and_spread, (relu, usual, ours)))} |" in told
    pairs = [a - b for a, b in zip(relu, usual, strict=True)]
    less, narrow = mean_interval(pairs), mean_interval(pairs, 0.9)
    interval = f"95 % interval {less.low:.2f} to {less.high:.2f}"
    assert f"{less.mean:.2f} points lower ({interval})" in told
    assert f"90 % interval is {narrow.low:.2f} to {narrow.high:.2f}" in told
    before = mean_interval(pairs[:3])
    assert f"({before.mean:.2f}, {before.low:.2f} to {before.high:.2f})" in told
    # Each slope beside ReLU of the same machine.
    gains = [a - b for a, b in zip(ledgers, ours, strict=True)]
    gain = mean_interval([a - b for a, b in zip(gains, pairs[:3], strict=True)])
    assert (f"worth {gain.mean:.2f} points more than the usual one (95 % interval {gain.low:.2f} "
            f"to {gain.high:.2f})") in told  # fmt: skip
    short = text_of(README)
    assert f"errs {less.mean:.2f} points less than ReLU ({interval}, five seeds)" in short
    assert f"beside ReLU's, the slope of 0.25 is worth {gain.mean:.1f} points more" in short
    ends = pd.read_csv(REFERENCE / "slope" / "ends.csv").departure.tolist()
    *first, last = ends[:5]
    assert (f"at steps {', '.join(map(str, first))} and {last}; ReLU at the same, but for "
            f"{ends[9]} in the last") in told  # fmt: skip
    assert ends[5:9] == first
    first, second, third = (f"{a - b:.2f}" for a, b in zip(relu[:3], ledgers, strict=True))
    assert f"at {mean_and_spread(ledgers)}. By seed that is {first}, {second} and {third} " in told


def test_what_is_told_of_two_further_seeds_is_in_their_records():
    told, name = text_of(FURTHER), "small14-{}-he-classes50-epochs36-width0.25-s{}"
    acts = ("relu", "lrelu", "prelu_shared", "prelu")
    errors, means = ({act: [] for act in acts} for _ in range(2))
    for act, seed in itertools.product(errors, range(5)):
        folder = REFERENCE / ("quarter/runs" if seed < 3 else "seeds") / name.format(act, seed)
        further = act == "relu" and seed > 2
        result = (record.read_json(REFERENCE / "slope" / f"{folder.name}.json") if further else
                  record.read_result(folder))  # fmt: skip
        errors[act].append(result["eval"]["ten_view"]["top1_err"])
        slopes = record.load_slopes(folder) if act.startswith("prelu") else {}
        means[act].append([own.mean() for layer, own in slopes.items() if layer.startswith("conv")])
    for title, seeds in (("0 to 2", slice(3)), ("3 and 4", slice(3, 5)), ("all five", slice(5))):
        cells = [mean_and_spread(values[seeds]) for values in errors.values()]
        assert f"| {title} | {' | '.join(cells)} |" in told
    relu, leaky, shared, wise = errors.values()

    def interval(values, places=2, level=0.95):
        seen = mean_interval(list(values), level)
        return [f"{x:.{places}f}" for x in (seen.mean, seen.low, seen.high)]

    def pairs(left, right, level=0.95):
        return interval([a - b for a, b in zip(left, right, strict=True)], level=level)

    seen = pairs(wise, shared)
    assert "are {} points better than channel-wise ones (95 % interval {} to {}".format(
        *seen) in told  # fmt: skip
    rounded = [f"{float(x):.1f}" for x in seen]
    assert "they are {} better ({} to {})".format(*rounded) in text_of(README)
    ahead = [x for other in (wise, shared, leaky) for x in pairs(relu, other)]
    assert ("channel-wise slopes by {} points (95 % interval {} to {}), channel-shared by {} ({} "
            "to {}), LReLU by {} ({} to {})").format(*ahead) in told  # fmt: skip
    alike = pairs(leaky, wise, 0.9)
    assert "errs {} points more (90 % interval {} to {}, within 0.6".format(*alike) in told
    assert -0.6 < float(alike[1]) < float(alike[2]) < 0.6
    gain = pairs(leaky, shared)
    assert "{} points better than LReLU (95 % interval {} to {})".format(*gain) in told
    rounded = [f"{float(x):.1f}" for x in gain]
    assert "adds {} points where a layer shares one ({} to {})".format(*rounded) in text_of(README)
    falls = interval(map(fall_with_depth, means["prelu"]))
    assert "rank correlation {} (95 % interval {} to {}".format(*falls) in told
    leads = [interval(map(stand_out, means[act]), 3) for act in ("prelu_shared", "prelu")]
    assert "shared by a layer by {} ({} to {}), channel-wise by {} ({} to {})".format(
        *leads[0], *leads[1]) in told  # fmt: skip
    assert min(own[0] for act in ("prelu_shared", "prelu") for own in means[act]) > 0


def test_what_is_told_of_the_fisher_matrix_with_five_seeds_is_in_its_records():
    told, name = text_of(FURTHER), "small14-{}-he-classes50-epochs36-width0.25-s{}"
    parts = record.read_json(REFERENCE / "quarter" / "fisher" / "measured.json")["parts"]
    further = record.read_json(REFERENCE / "seeds" / "fisher.json")
    assert all(part["asked"]["settings"] == further["settings"] for part in parts)
    found = {run: part["found"] for part in parts for run in part["asked"]["runs"]}
    found |= further["found"]

    def less(value):
        each = [value(found[name.format("relu", s)]) - value(found[name.format("prelu", s)])
                for s in range(5)]  # fmt: skip
        return each, mean_interval(each)

    each, seen = less(fisher.condition)
    assert max(each) < 0
    assert seen.high < fisher.CONDITIONED
    larger = (
        f"by {-seen.mean:.3f} powers of ten (95 % interval {-seen.high:.3f} to {-seen.low:.3f})"
    )
    assert larger in told
    _, seen = less(fisher.log_between)
    assert seen.low < 0 < fisher.SMALLER < seen.high
    assert f"smaller by {seen.mean:.3f} powers of ten ({seen.low:.3f} to {seen.high:.3f})" in told
    for kind, sentence in (("within", "it is {} % smaller ({} to {}), between"),
                           ("bias_weight", "weights {} % ({} to {}).")):  # fmt: skip
        _, seen = less(lambda one, kind=kind: math.log10(one["fisher"][kind]["energy"]))
        shares = [f"{100 - 100 * 10**-x:.0f}" for x in (seen.mean, seen.low, seen.high)]
        assert sentence.format(*shares) in told


def test_what_is_told_of_longer_trainings_is_in_their_records():
    told, errors = text_of(FURTHER), {}
    for path in sorted((REFERENCE / "longer").glob("*.json")):
        result = record.read_json(path)
        name = f"{result['act']} {result['init']}"
        errors.setdefault(name, []).append(result["eval"]["ten_view"]["top1_err"])
    cells = [mean_and_spread(errors[f"{act} he"]) for act in ("relu", "lrelu", "prelu")]
    assert f"| 108 | {mean_and_spread(errors['relu xavier'])} | {' | '.join(cells)} |" in told
    assert all(cell.endswith("(3)") for cell in cells)
    for one, other, level in (
        ("relu xavier", "relu he", 0.95), ("relu he", "prelu he", 0.95),
        ("lrelu he", "prelu he", 0.9),
    ):  # fmt: skip
        pairs = zip(errors[one], errors[other], strict=True)
        seen = mean_interval([a - b for a, b in pairs], level)
        assert f"{seen.mean:.2f}" in told
        assert f"{seen.low:.2f} to {seen.high:.2f})" in told
    # And of wide ones.
    names = [f"small14-{net}-classes50-epochs36-s0"
             for net in ("relu-xavier", "relu-he", "lrelu-he", "prelu-he")]  # fmt: skip
    results = [record.read_json(REFERENCE / "wide" / f"{name}.json") for name in names]
    found = [f"{result['eval']['ten_view']['top1_err']:.2f} (1)" for result in results]
    assert f"| ten-view | 1 | {' | '.join(found)} |" in told
    less = []
    for result, name in zip(results, names, strict=True):
        narrow = REFERENCE / "quarter" / "runs" / name.replace("-s0", "-width0.25-s0")
        less.append(record.read_result(narrow)["eval"]["ten_view"]["top1_err"]
                    - result["eval"]["ten_view"]["top1_err"])  # fmt: skip
    assert f"are {min(less):.1f} to {max(less):.1f} points of error with the same seed" in told
    wide = pd.read_csv(REFERENCE / "wide" / "ends.csv").set_index("run").loc[names]
    trained = [f"{error:.1f} (1)" for error in wide.training_err]
    assert f"| training | 1 | {' | '.join(trained)} |" in told
    late, early = wide.departure[:2]
    assert f"for {late:.0f} steps here too, where He leaves it at {early:.0f}" in told
    slopes = pd.read_csv(REFERENCE / "wide" / "slopes.csv")["mean"]
    assert f"between {slopes.min():.2f} and {slopes.max():.2f}, from 0.25" in told
    ends = pd.read_csv(REFERENCE / "longer" / "ends.csv")
    for title in ("ReLU", "LReLU", "PReLU"):
        own = ends[ends.run.str.startswith(f"small14-{title.lower()}-he-")].mean(numeric_only=True)
        less = own.center_err - own.training_err
        line = rf"\b{title} (errs )?in {own.training_err:.0f} %,? \(?{less:.0f} (points )?less"
        assert re.search(line, told)
