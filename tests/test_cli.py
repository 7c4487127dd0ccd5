"""The command line: exit codes, messages, what is printed and what is imported."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from calling import call
from PIL import Image

from delving import cli, exits, record
from delving.config import compose, to_yaml
from delving.groups import choices
from delving.naming import name_run
from delving.signals import Interrupted, counted, heeding_signals

SMOKE = ["scale=smoke", "device=cpu", "precision=fp32", "data.workers=0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An output root with one finished run, made by the command."""
    root = tmp_path_factory.mktemp("outputs")
    assert call("train", *SMOKE, "train.epochs=1", f"output_root={root}")[0] == 0
    return root


RUN = "small14-prelu-he-epochs1-precisionfp32-s0"


# --- cheap commands stay cheap ---
@pytest.mark.parametrize("words", [["--help"], ["list"], ["train", "--help"], ["list", "runs"]])
def test_help_and_list_import_nothing_heavy(words, tmp_path):
    code = (
        "import sys; from delving import cli\n"
        f"sys.argv = ['delving', *{words!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as end: print('code', end.code)\n"
        "heavy = 'torch torchvision hydra omegaconf numpy PIL matplotlib pandas pydantic'.split()\n"
        "print('heavy', [name for name in heavy if name in sys.modules])\n"
    )
    if words == ["list", "runs"]:
        code = code.replace(" numpy", "")  # reading records needs it
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-2:] == ["code 0", "heavy []"], done.stderr


def test_a_plan_does_without_torchs_compiler(tmp_path):
    """Which torchvision loads, in as long as all else takes."""
    code = (
        "import sys; from delving import cli\n"
        "sys.argv = 'delving reproduce all scale=smoke --plan output_root=out'.split()\n"
        "try: cli.main()\n"
        "except SystemExit as end: print('code', end.code)\n"
        "import delving.work\n"
        "print('heavy', {'torchvision', 'torch._dynamo'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-2:] == ["code 0", "heavy set()"], done.stderr


def test_the_module_is_the_console_script():
    done = subprocess.run([sys.executable, "-m", "delving", "list", "modles"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("delving: list modles: choose from models")


def test_list_names_everything_in_conf(delving):
    code, out, _ = delving("list")
    assert code == 0
    for group in ("model", "act", "init", "data", "scale"):
        for name in choices(group):
            assert f"\n  {name:14} " in out, f"{group}={name}"


@pytest.mark.parametrize("what", ["models", "acts", "inits", "data", "scales"])
def test_list_of_one_kind_shows_that_kind_alone(delving, what):
    code, out, _ = delving("list", what)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line[0] != " "] == [what]


def test_list_runs_tells_finished_from_unfinished(delving, root, tmp_path):
    assert delving("list", "runs", "--output-root", tmp_path)[:2] == (0, "")
    _, out, _ = delving("list", "runs", "--output-root", root)
    assert delving("list", "runs", f"output_root={root}")[1] == out != ""
    [line] = out.splitlines()
    assert RUN in line
    assert "ten_view" in line
    record.write_text(tmp_path / "smoke" / "runs" / "x-s0" / "config.yaml", "")
    assert "x-s0  unfinished" in delving("list", "runs", "--output-root", tmp_path)[1]
    record.write_json(tmp_path / "smoke" / "runs" / "x-s0" / "result.json", {})
    record.write_text(tmp_path / "smoke" / "runs" / "x-s0" / "config.yaml", "foo: [")
    assert "x-s0  BROKEN: " in delving("list", "runs", "--output-root", tmp_path)[1]


@pytest.mark.parametrize(
    "words",
    [["list", "runs", "output_root="], ["plot-slopes", "--output-root="],
     ["doctor", "output_root="], ["eval", "small14-prelu-he-s0", "output_root="],
     ["reproduce", "figure1", "output_root="]],
)  # fmt: skip
def test_an_output_root_without_a_folder_is_refused(delving, words):
    """It would be this folder, and `list runs` would say nothing."""
    code, out, err = delving(*words)
    assert (code, out) == (2, "")
    assert "output_root=: no folder is named" in err


@pytest.mark.parametrize(
    "command",
    [[], ["train"], ["eval"], ["show"], ["list"], ["data"], ["data", "prepare"], ["data", "verify"],
     ["data", "preview"], ["doctor"], ["reproduce"], ["compare-init"], ["plot-slopes"],
     ["plot-curves"], ["ensemble"]],
)  # fmt: skip
def test_every_command_explains_itself(delving, command):
    for option in ("--help", "-h"):
        code, out, err = delving(*command, option)
        assert (code, err) == (0, "")
        assert "Usage: delving" in out


# --- bad input ---
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "model=d"], "model=d: choose from a, b, c"),
        (["bench", "rectifier", "act=relu"], "bench rectifier: act=relu: it measures PReLU, and"),
        (["bench", "rectifier", "atc=relu"], "there is no 'atc'; did you mean act"),
        (["estimate", "act=relu"], "itself; `delving train ... --plan` tells the time"),
        (["compare-init", "init=he"], "init=he: compare-init takes inits=he,xavier"),
        (["reproduce", "table2", "launcher=slurm"], "launcher=slurm: of `delving train -m`. Jobs"),
        (["reproduce", "table2", "scale=paper"], "data=imagenet needs data.root=..."),
        (
            ["reproduce", "table2", "scale=paper", "data.root=/no/where"],
            "/no/where: there is no such",
        ),
        (
            ["reproduce", "detection", "scale=paper", "detect.root=/no/where"],
            "detect.root=/no/where: neither VOCdevkit/VOC2007/ nor",
        ),
        (["reproduce", "detection", "scale=paper", "detect.root=~no.such"], "detect.root=~no.such"),
        (["compare-init", "model=e"], "model=e: choose from a, b, c,"),
        (["compare-init", "model=b", "depth=22"], "depth=22 model=b: compare-init takes one of"),
        (["compare-init", "depth=13"], "depth=13: a number of conv and fc layers, from 14 to"),
        (["compare-init", "depht=30"], "there is no 'depht'; did you mean depth?"),
        (["compare-init", "inits=he,he"], "inits=he,he: each once"),
        (["compare-init", "init.std=1"], "init.std=1: only of inits=gaussian, not of he,xavier"),
        (["compare-init", "depth=030"], "depth=030: a number of conv and fc layers, from 14 to"),
        (["compare-init", "depth=³⁰"], "depth=³⁰: a number of conv and fc layers, from 14 to"),
        (
            ["compare-init", "model.depth=20"],
            "model.depth=20: compare-init takes depth=N or model=",
        ),
        (
            ["compare-init", "scale=smoke", "data=folder", "data.root=/nowhere"],
            "data.root=/nowhere: there is no such",
        ),
        (["estimate", "table1", "--tflops", "nan"], "--tflops nan: must be a finite number"),
        (["estimate", "table1", "--loader", "inf"], "--loader inf: must be a finite number"),
        (["reproduce", "figure3", "--minutes", "nan"], "--minutes nan: must be a number"),
        (["show", "init.std=0.5"], "init.std=0.5: init=gaussian's; he has its own"),
        (["train", "scale=smoke", "train.lr=1e-308"], "train.lr=1e-308: must be a finite number"),
        (["compare-init", "30"], "30 is not key=value; did you mean depth=30?"),
        (["train", "--scale=smoke"], "No such option: --scale (write scale=...)"),
        (["train", "--train.lr", "1"], "No such option: --train.lr (write train.lr=...)"),
        (["train", "act=PReLU"], "did you mean prelu?"),
        (["reproduce", "Table2"], "did you mean table2?"),
        (["train", "data.root=/"], "data.root=/: no generated images. Of real ones say which: "),
        (["plot-curves", "some-run", "--to", "x.csv"], "x.csv: a picture ends in .png or .svg"),
        (["train", "output_root="], "output_root="),
        (["train", "scale=smoke", "data.train_images=3"], "data.train_images=3: one or more of"),
        (["train", "train.lr=nan"], "train.lr=nan"),
        (["train", "trian.lr=1"], "train.lr"),
        (["train", "train.epochs=-1"], "train.epochs=-1"),
        (["show", "act=prlu"], "prelu"),
        (["show", "lr"], "key=value"),
        (["train", "scale=quarter"], "data=tiny_imagenet needs data.root="),
        (["train", "data=folder", "data.root=nowhere"], "nowhere"),
        (["train", "scale=smoke", "device=abacus"], "device=abacus"),
        (["show", "device=gpu"], "device=gpu"),
        (["plot-curves", "output_root=x"], "name at least one run"),
        (["eval", "no-such-run"], "there is no run 'no-such-run'"),
        (["list", "modles"], "choose from models"),
        (["data", "verify", "data=imagnet"], "did you mean imagenet"),
        (["trian"], "trian"),
        (["train", "--sede", "3"], "--sede"),
        (["eval"], "RUN"),
        (["data", "verfy"], "verfy"),
    ],
)
def test_bad_input_ends_with_two_and_a_line_that_names_it(
    delving, monkeypatch, tmp_path, words, said
):
    monkeypatch.chdir(tmp_path)
    code, out, err = delving(*words)
    assert code == 2
    assert said.lower() in err.lower()
    assert err.startswith("delving: ")
    assert len(err.splitlines()) == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_where_it_went_wrong_wherever_it_stands(monkeypatch, capsys):
    for words in (["--debug", "show", "model=d"], ["show", "model=d", "--debug"]):
        monkeypatch.setattr(sys, "argv", ["delving", *words])
        with pytest.raises(SystemExit, match="2"):
            cli.main()
        told = capsys.readouterr().err
        assert told.startswith("Traceback (most recent call last):\n")
        assert told.splitlines()[-1].startswith("delving: model=d")


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("bad"), 2), (RuntimeError("failed"), 1), (Interrupted(signal.SIGUSR1), 75),
     (Interrupted(signal.SIGTERM), 143)],
)  # fmt: skip
def test_debug_changes_no_exit_code(error, code, capsys):
    def command():
        raise error

    assert exits.exit_code(command) == exits.exit_code(command, debug=True) == code
    assert capsys.readouterr().err.count("Traceback") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_that_a_library_makes_another_error_of_keeps_its_code(number, capsys):
    """As Python does when the signal comes while a class is being created."""

    def command():
        try:
            signal.raise_signal(number)
        except BaseException as error:
            raise RuntimeError("Error calling __set_name__") from error

    before = signal.signal(number, signal.SIG_DFL)  # under nohup HUP is ignored, by delving too
    try:
        assert exits.exit_code(command) == (75 if number == signal.SIGUSR1 else 128 + number)
    finally:
        signal.signal(number, before)
    assert signal.Signals(number).name in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_a_library_swallows_ends_the_training_that_follows():
    """OmegaConf wraps any Exception in one of its own; what is raised in __del__ is lost."""

    class Dying:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def command():
        Dying()
        with heeding_signals() as heard:
            raise Interrupted(counted(heard), "there")

    assert exits.exit_code(command) == 143
    assert not issubclass(Interrupted, Exception)


@pytest.mark.parametrize(("words", "there"), [(["foo"], "train"), (["data", "foo"], "prepare")])
def test_a_command_that_resembles_none_is_refused_with_what_there_is(delving, words, there):
    code, _, err = delving(*words)
    assert code == 2
    told, _, choices = err.strip().partition(": choose from ")
    assert told == "delving: No such command 'foo'"
    assert there in choices.split(", ")


def test_debug_prints_a_traceback_and_without_it_there_is_none():
    command = [sys.executable, "-m", "delving", "list", "modles"]
    debug = subprocess.run([*command, "--debug"], capture_output=True, text=True)
    assert debug.returncode == 2
    assert "Traceback" in debug.stderr
    assert "choose from models" in debug.stderr


def test_a_checkpoint_of_another_model_ends_with_two_and_overwrites_nothing(
    delving, root, tmp_path
):
    whole = root / "smoke" / "runs" / RUN
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        data = (whole / "checkpoint" / name).read_bytes()
        record.write_bytes(tmp_path / "run" / "checkpoint" / name, data)
    text = (whole / "config.yaml").read_text().replace("width: 0.0625", "width: 0.125")
    record.write_text(tmp_path / "run" / "config.yaml", text)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = delving("eval", tmp_path / "run", f"output_root={root}")
    assert code == 2
    assert "its checkpoint is of another model" in err
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("bad"), 2), (RuntimeError("broken"), 1), (OSError("disk full"), 1),
        (Interrupted(signal.SIGTERM, "x"), 143), (Interrupted(signal.SIGINT, "x"), 130),
        (Interrupted(signal.SIGHUP, "x"), 129),
        (Interrupted(signal.SIGUSR1, "x"), 75), (Interrupted(signal.SIGUSR2, "x"), 75),
    ],
)  # fmt: skip
def test_exit_codes_are_those_of_the_contract(delving, monkeypatch, error, code):
    def fail(*_):
        raise error

    monkeypatch.setattr("delving.config.compose", fail)
    found, _, err = delving("show")
    assert found == code
    assert err.startswith("delving: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143)])
def test_a_signal_beside_any_run_ends_with_its_code_too(delving, monkeypatch, number, code):
    """As while libraries are imported or a plan is made."""

    def told(*_):
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr("delving.config.compose", told)
    before = signal.getsignal(number)
    found, _, err = delving("show")
    assert (found, signal.getsignal(number)) == (code, before)
    assert err == f"delving: {number.name}: stopped here; the same command does what is left\n"


def test_a_bare_interruption_ends_with_130_without_a_traceback(delving, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("delving.config.compose", interrupt)
    code, _, err = delving("show")
    assert code == 130
    assert "Traceback" not in err


def test_an_interrupted_command_says_how_to_go_on(delving, monkeypatch, root, tmp_path):
    from delving.display import Display

    def interrupt(self, event):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Display, "_on_tick", interrupt)
    [data] = (root / "data").iterdir()
    words = ["train", *SMOKE, f"output_root={tmp_path}", f"data.root={data}"]
    code, _, err = delving(*words)
    assert code == 143
    assert "the same command goes on from there" in err
    monkeypatch.undo()
    monkeypatch.setattr(Display, "_on_tick", lambda self, event: None)
    code, out, _ = delving(*words)
    assert code == 0
    assert "Continues after step 1." in out


def test_a_second_interruption_leaves_a_save_where_it_is(delving, monkeypatch, root, tmp_path):
    from delving.display import Display

    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGINT)

    def replace(source, target, move=os.replace):
        if os.path.basename(target) == "manifest.json":
            interrupt()
        move(source, target)

    monkeypatch.setattr(Display, "_on_tick", interrupt)
    monkeypatch.setattr(os, "replace", replace)
    [data] = (root / "data").iterdir()
    words = ["train", *SMOKE, "train.epochs=0.4", f"output_root={tmp_path}", f"data.root={data}"]
    code, _, err = delving(*words)
    assert (code, err) == (130, "delving: interrupted\n")
    assert not list(tmp_path.rglob("checkpoint*/.*"))
    monkeypatch.undo()
    assert delving(*words)[0] == 0


# --- train and eval ---
def test_train_opens_with_what_it_is_and_closes_with_the_errors(delving, root, tmp_path):
    [data] = (root / "data").iterdir()
    code, out, _ = delving("train", *SMOKE, "train.epochs=0.4", f"output_root={tmp_path}",
                           f"data.root={data}")  # fmt: skip
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("small14 at width 1/16 on 96 generated images (scale smoke).")
    assert sum(line.lstrip().startswith("ten_view: top-1 ") for line in lines) == 1
    assert "result.json" in lines[-1]


def test_train_reports_a_finished_run(delving, root):
    code, out, _ = delving("train", *SMOKE, "train.epochs=1", f"output_root={root}")
    assert code == 0
    assert out.startswith("Finished earlier")
    assert "ten_view: top-1 " in out


@pytest.mark.parametrize("several", [[], ["-m"]])
def test_what_is_finished_is_reported_on_a_read_only_disk_too(delving, root, monkeypatch, several):
    def refuse(folder):
        raise ValueError(f"{folder} takes no files (Read-only file system)")

    monkeypatch.setattr("delving.disk._try_to_write", refuse)
    words = ["train", *several, *SMOKE, "train.epochs=1", f"output_root={root}"]
    code, out, err = delving(*words)
    assert (code, err) == (0, "")
    assert "ten_view" in out
    code, out, err = delving(*words, "seed=1")
    assert (code, out) == (2, "")
    assert "runs cannot be written: " in err


def test_a_diverged_training_is_done_not_failed(delving, root, tmp_path):
    [data] = (root / "data").iterdir()
    code, out, _ = delving("train", *SMOKE, "train.lr=1e30", f"output_root={tmp_path}",
                           f"data.root={data}")  # fmt: skip
    assert code == 0
    assert "DIVERGED" in out
    assert "diverged after" in out


def test_eval_takes_a_name_and_another_protocol(delving, root):
    code, out, _ = delving("eval", RUN, "protocol=center", f"output_root={root}")
    folder = root / "smoke" / "runs" / RUN
    assert code == 0
    assert "center: top-1 " in out
    assert {"center.json", "center.npz"} <= {p.name for p in (folder / "eval").iterdir()}


@pytest.mark.parametrize("word", ["train.lr=1", "protocol=tenview", "protcol=center", "model=c"])
def test_eval_refuses_what_would_be_another_run(delving, root, word):
    code, _, err = delving("eval", RUN, word, f"output_root={root}")
    assert code == 2
    assert word.split("=")[1] in err
    assert "protocol" in err


# --- show, data, doctor ---
def test_show_as_json_has_exactly_the_contracts_keys(delving):
    code, out, _ = delving("show", "model=c", "scale=paper", "precision=fp32", "--json")
    card = json.loads(out)
    assert code == 0
    assert list(card) == ["model", "depth", "params", "multiply_adds", "layers", "deviations"]
    for row in card["layers"]:
        assert list(row) == ["name", "notation", "output", "params", "multiply_adds"]
    assert (card["model"], card["depth"]) == ("c", 22)
    assert card["deviations"] == ["train.lr 0.003 (paper: 0.01)"]
    for total in ("params", "multiply_adds"):
        assert card[total] == sum(row[total] for row in card["layers"])


def test_compare_init_of_a_run_that_fails_has_failed_and_was_not_asked_wrongly(
    delving, monkeypatch, tmp_path
):
    monkeypatch.setattr("delving.compare.work_runs", lambda *given: {"a-run": "why"})
    code, _, err = delving("compare-init", "scale=smoke", f"output_root={tmp_path}")
    assert (code, err) == (1, "delving: a-run: why\n")


@pytest.mark.parametrize(
    ("words", "classes"),
    [(["data=cifar100"], 100), (["data.classes=null"], 14), (["data=folder"], 1000)],
)
def test_show_counts_the_data_sets_own_classes(delving, words, classes):
    _, out, _ = delving("show", "scale=smoke", *words, "--json")
    assert json.loads(out)["layers"][-1]["output"] == str(classes)


def test_show_prints_layers_totals_and_deviations(delving):
    code, out, _ = delving("show", "model=small14", "scale=quarter")
    assert code == 0
    assert "small14: 14 conv and fc layers" in out
    assert "deviations from the paper's recipe:\n" in out
    assert "data.crop 56 (paper: 224)" in out
    for name in ("conv1", "pool1", "spp", "fc3", "total"):
        assert f"\n{name:10} " in out
    _, out, _ = delving("show", "scale=paper", "precision=fp32", "train.lr=0.01")
    assert out.splitlines()[-1] == "the paper's recipe"


def test_list_tells_what_a_hash_in_a_name_stands_for(delving, tmp_path):
    words = ["train.lr=0.02", "data.crop=35", "train.epochs=3", "train.weight_decay=0.001",
             "model.width=0.5"]  # fmt: skip
    for more in ([], words):
        config = compose(["scale=smoke", "act=relu", *more])
        folder = tmp_path / "smoke" / "runs" / name_run(config)
        record.write_text(folder / "config.yaml", to_yaml(config))
    code, out, _ = delving("list", "runs", "--output-root", tmp_path)
    hashed, whole = sorted(out.splitlines())
    assert code == 0
    assert hashed.endswith("  unfinished  (crop35 epochs3 lr0.02 weight_decay0.001 width0.5)")
    assert whole.endswith("small14-relu-he-s0  unfinished")


def test_preview_draws_two_pictures(delving, root):
    code, out, _ = delving("data", "preview", "scale=smoke", f"output_root={root}")
    assert code == 0
    pictures = out.split()
    assert [p.split("/")[-1] for p in pictures] == ["shapes.png", "shapes-augmented.png"]
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 200
            assert len(set(picture.convert("L").resize((64, 64)).get_flattened_data())) > 30


def test_prepare_counts_what_there_is(delving, root):
    code, out, _ = delving("data", "prepare", "scale=smoke", f"output_root={root}")
    assert code == 0
    assert out == "shapes: 96 training and 24 validation images of 4 classes\n"


def test_doctor_tells_versions_devices_data_and_disk(delving, root, tmp_path):
    code, out, _ = delving("doctor", "--output-root", root)
    assert code == 0
    found = [line.split()[0] for line in out.splitlines()]
    assert found == ["python", "packages", "operators", "device", "kernels", "loading", "sharing",
                     "proposals", "shapes", "disk"]  # fmt: skip
    assert "compiled operators load" in out
    assert "missing" not in out
    assert "-4x96+24" in out
    assert "not generated yet" in delving("doctor", "--output-root", tmp_path / "none")[1]
    assert "not generated yet" in delving("doctor", f"output_root={tmp_path / 'none'}")[1]
    assert "doctor gpu: it takes output_root=... alone" in delving("doctor", "gpu")[2]
    assert not (tmp_path / "none").exists()


def test_doctor_tells_whether_memory_can_be_shared(delving, monkeypatch, tmp_path):
    def told():
        [line] = [one for one in delving("doctor")[1].splitlines() if one.startswith("sharing")]
        return line

    monkeypatch.setattr("delving.data.memory.MEMORY", tmp_path)
    assert f"of batches in {tmp_path}, " in told()
    monkeypatch.setattr("delving.data.memory.MEMORY", tmp_path / "none")
    assert told().endswith(f"none: {tmp_path / 'none'}: No such file or directory")
