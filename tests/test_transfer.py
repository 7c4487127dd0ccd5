"""Runs go from one machine to another in one archive: the same records, and nothing else."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from calling import killed_at
from fabricate import make_planned, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from delving import record
from delving.asked import measured_of
from delving.detect.naming import Detection, save_about
from delving.measured import save_measured
from delving.plan import make_plan
from delving.schema import Detect
from delving.transfer import MANIFEST, VERSION, export_runs, import_runs, read_archive

WORDS = ["scale=smoke"]
SLOPES = {"conv1": [0.25], "fc1": [0.1, 0.2]}


@pytest.fixture
def there(tmp_path, monkeypatch):
    """The outputs/smoke of a machine with finished runs and a measurement of some of them."""
    place = tmp_path / "there"
    place.mkdir()
    monkeypatch.chdir(place)
    plan = make_plan(["fisher", "figure1"], WORDS)
    for artefact in ("fisher", "figure1"):
        make_planned(plan, artefact, lambda arm, seed: {"slopes": SLOPES})
    for runs in plan.arms["fisher"].values():
        for run in runs:
            save_measured(plan, "fisher", [run], {"of": run}, 1.0)
    return place / "outputs" / "smoke"


@pytest.fixture
def archive(there, tmp_path):
    export_runs(there, [], tmp_path / "runs.zip")
    return tmp_path / "runs.zip"


@pytest.fixture
def here(tmp_path):
    return str(tmp_path / "here")


def changed(archive, change):
    """The archive after `change(files)`; its manifest stays unless `change` alters it too."""
    with zipfile.ZipFile(archive) as old:
        files = {name: old.read(name) for name in old.namelist()}
    change(files)
    with zipfile.ZipFile(archive, "w") as new:
        for name, data in files.items():
            new.writestr(name, data)
    return archive


def signed(files):
    """Adds a matching manifest, as someone tampering with an archive would."""
    files.pop(MANIFEST, None)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files[MANIFEST] = json.dumps({"version": VERSION, "files": hashes}).encode()


def a_run(files):
    return next(name for name in files if name.endswith("result.json"))


# --- there and back ---
def test_records_arrive_byte_for_byte(there, archive, here, tmp_path):
    moved = import_runs(archive, here)
    runs = sorted(p.name for p in (there / "runs").iterdir())
    assert moved.new == [*(["smoke/fisher"]), *(f"smoke/runs/{run}" for run in runs)]
    for run in runs:
        for name in ("result.json", "log.jsonl", "slopes.json"):
            if (there / "runs" / run / name).exists():
                arrived = tmp_path / "here" / "smoke" / "runs" / run / name
                assert arrived.read_bytes() == (there / "runs" / run / name).read_bytes()


def test_scores_by_other_settings_than_the_runs_own_arrive_too(there, here, tmp_path):
    """Those of `delving eval precision=fp32` and of several scales, which have other names."""
    run = sorted((there / "runs").iterdir())[0]
    for name in ("ten_view-fp32", "dense@40+56", "dense@40+56-fp32"):
        record.write_json(run / "eval" / f"{name}.json", {"top1_err": 50.0})
    export_runs(there, [run.name], tmp_path / "one.zip")
    import_runs(tmp_path / "one.zip", here)
    came = tmp_path / "here" / "smoke" / "runs" / run.name / "eval"
    assert {path.name for path in came.iterdir()} >= {
        "ten_view-fp32.json", "dense@40+56.json", "dense@40+56-fp32.json"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "name", "file"), [(os, "replace", "runs"), (Path, "unlink", "lock")]
)
def test_an_import_that_was_killed_leaves_nothing_once_it_is_done_again(
    archive, here, tmp_path, owner, name, file
):
    """Killed as a run is put into its place, or once all measurements are in theirs."""

    def moment(path, *_):
        return file in (Path(path).name, Path(path).parent.name)

    import_runs(archive, str(tmp_path / "whole"))
    killed_at(owner, name, lambda: import_runs(archive, here), moment)
    import_runs(archive, here)
    ours, theirs = (snapshot(root) for root in (Path(here), tmp_path / "whole"))
    assert {file: data for file, (data, _) in ours.items()} == {
        file: data for file, (data, _) in theirs.items()
    }
    assert not list(Path(here).glob(".*"))


def test_a_scale_may_lie_on_another_disk(archive, here, tmp_path, monkeypatch):
    real = os.replace

    def across(path, to):
        if ".import." in str(path) and ".import." not in str(to):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(path, to)

    import_runs(archive, str(tmp_path / "whole"))
    monkeypatch.setattr(os, "replace", across)
    import_runs(archive, here)
    ours, theirs = (snapshot(root) for root in (Path(here), tmp_path / "whole"))
    assert {file: data for file, (data, _) in ours.items()} == {
        file: data for file, (data, _) in theirs.items()
    }
    assert not list(Path(here).rglob(".*"))


def test_what_arrived_is_finished_and_measured_for_a_reproduction(archive, here):
    import_runs(archive, here)
    plan = make_plan(["fisher", "figure1"], [*WORDS, f"output_root={here}"])
    assert plan.missing() == []
    assert not plan.refused
    names = [run for runs in plan.arms["fisher"].values() for run in runs]
    assert measured_of(plan, "fisher") == {(run,): {"of": run} for run in names}


def test_the_same_runs_are_the_same_archive(there, archive, tmp_path):
    export_runs(there, [], tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_files_that_macos_puts_beside_others_keep_no_run(there, archive, tmp_path):
    before = archive.read_bytes()
    for run in sorted((there / "runs").iterdir()):
        (run / "eval").mkdir(exist_ok=True)
        (run / "eval" / "._ten_view.json").write_bytes(b"\0\5\x16\7")
    export_runs(there, [], tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == before


def test_neither_the_time_nor_the_disks_order_is_in_an_archive(archive):
    with zipfile.ZipFile(archive) as found:
        assert {info.date_time for info in found.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        *names, last = found.namelist()
    assert last == MANIFEST
    assert names == sorted(names, key=PurePosixPath)


def test_an_archive_that_was_packed_anew_with_its_folders_arrives_too(archive, here):
    def add_folders(files):
        files |= {"smoke/": b"", "smoke/runs/": b""}

    assert import_runs(changed(archive, add_folders), here).new


def test_no_weights_and_no_place_leave(whole, tmp_path):
    export_runs(whole.parents[1], [whole.name], tmp_path / "one.zip")
    with zipfile.ZipFile(tmp_path / "one.zip") as found:
        names = found.namelist()
        config = found.read(f"smoke/runs/{whole.name}/config.yaml").decode()
    assert not [name for name in names if "checkpoint" in name or "safetensors" in name]
    assert f"smoke/runs/{whole.name}/eval/center.hits.npz" in names
    assert f"smoke/runs/{whole.name}/eval/center.npz" not in names
    assert str(whole.parents[2]) not in config


def test_only_the_named_runs_leave_with_what_rests_on_them_alone(there, tmp_path, here):
    first = sorted(p.name for p in (there / "runs").iterdir())[0]
    assert export_runs(there, [first], tmp_path / "one.zip").names == [first]
    assert import_runs(tmp_path / "one.zip", here).new == ["smoke/fisher", f"smoke/runs/{first}"]
    assert list(measured_here(here)) == [(first,)]


def measured_here(here):
    return measured_of(make_plan(["fisher"], [*WORDS, f"output_root={here}"]), "fisher")


def test_measurements_of_several_machines_come_together(there, tmp_path, here):
    """Each machine has trained and measured some of the runs."""
    prelu, relu = "small14-prelu-he-s0", "small14-relu-he-s0"
    for run in (prelu, relu):
        export_runs(there, [run], tmp_path / f"{run}.zip")
        moved = import_runs(tmp_path / f"{run}.zip", here)
        assert (moved.new[0], moved.others) == ("smoke/fisher", [])
    assert measured_here(here) == {(run,): {"of": run} for run in (relu, prelu)}


def test_what_was_measured_here_stays(there, archive, here, delving):
    """What another machine has measured of the same runs may differ in its last digits."""
    import_runs(archive, here)
    plan = make_plan(["fisher"], [*WORDS, f"output_root={here}"])
    save_measured(plan, "fisher", ["small14-relu-he-s0"], {"of": "here"}, 1.0)
    moved = import_runs(archive, here)
    assert (moved.new, moved.others) == ([], ["smoke/fisher"])
    assert measured_here(here)["small14-relu-he-s0",] == {"of": "here"}
    code, said, _ = delving("runs", "import", archive, "--output-root", here)
    assert code == 0
    assert "smoke/fisher: the measurement that is here stays" in said


def test_a_second_import_changes_nothing(archive, here, tmp_path):
    first = import_runs(archive, here)
    before = snapshot(tmp_path / "here")
    moved = import_runs(archive, here)
    assert (moved.new, moved.there) == ([], first.new)
    assert snapshot(tmp_path / "here") == before


# --- detections ---
def make_detection(there, run, told=None):
    """A finished detection of a run that found nothing."""
    folder = there / "detections" / f"{run}-shapes_voc"
    result = {
        "detection": folder.name, "run": run, "scale": "smoke", "model": "small14", "act": "relu",
        "init": "he", "seed": 0, "data": "shapes_voc", "train_images": 4, "test_images": 2,
        "steps": 1, "params": 1000, "chance": None, "train_loss": 1.0, "status": "converged",
        "proposals": {"method": "grid", "per_image": 9.0, "recall": None}, "seconds": 1.0,
        "images_per_second": 4.0, "testing": 1.0, "device": "cpu", "eval": {"voc2007": {
            "map": 0.0, "ap": {}}},
    }  # fmt: skip
    record.write_json(folder / "result.json", result | (told or {}))
    record.write_json(folder / "pictures.json", [])
    save_about(Detection(run, "", "smoke", 0, "fp32", Detect(data="shapes_voc")), folder)
    return folder.name


def test_a_runs_own_detections_leave_with_it(there, tmp_path, here):
    first, second, *_ = sorted(p.name for p in (there / "runs").iterdir())
    detection, _ = make_detection(there, first), make_detection(there, second)
    export_runs(there, [first], tmp_path / "one.zip")
    moved = import_runs(tmp_path / "one.zip", here)
    assert moved.new == [f"smoke/detections/{detection}", "smoke/fisher", f"smoke/runs/{first}"]


@pytest.mark.parametrize("key", ["detection", "run"])
def test_a_detection_whose_result_is_anothers_does_not_leave(there, tmp_path, key):
    first, second, *_ = sorted(p.name for p in (there / "runs").iterdir())
    name = make_detection(there, first, {key: second})
    exported = export_runs(there, [], tmp_path / "x.zip")
    assert exported.left_out == {name: f"{name}: its result.json is another's"}
    assert not [file for file in read_archive(tmp_path / "x.zip") if "/detections/" in file]


# --- refused ---
def test_a_run_that_is_not_there_or_not_finished_does_not_leave(there, tmp_path):
    with pytest.raises(ValueError, match="no finished run nosuch"):
        export_runs(there, ["nosuch"], tmp_path / "x.zip")
    with pytest.raises(ValueError, match="no finished run at all"):
        export_runs(tmp_path, [], tmp_path / "x.zip")
    (there / "runs" / "begun").mkdir()
    with pytest.raises(ValueError, match=r"runs/begun is not finished"):
        export_runs(there, ["begun"], tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize("file", ["result.json", "config.yaml", "slopes.json", "env.json"])
def test_a_damaged_run_does_not_leave_and_keeps_no_other(there, here, tmp_path, delving, file):
    broken, *others = sorted(there.glob(f"runs/*/{file}"))
    broken.write_text("{")
    with pytest.raises(ValueError, match=f"{broken.parent.name}.*{file}"):
        export_runs(there, [broken.parent.name], tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()
    code, out, _ = delving("runs", "export", "scale=smoke", "--to", tmp_path / "x.zip",
                           "--output-root", there.parent)  # fmt: skip
    assert code == 1
    assert re.search(f"left out: .*{broken.parent.name}.*{file}", out)
    arrived = {name.split("/")[2] for name in import_runs(tmp_path / "x.zip", here).new
               if "/runs/" in name}  # fmt: skip
    assert arrived == {path.parent.name for path in others}


def test_where_every_run_is_damaged_there_is_no_archive(there, tmp_path):
    for path in there.glob("runs/*/result.json"):
        path.write_text("{")
    with pytest.raises(ValueError, match=r"result\.json"):
        export_runs(there, [], tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_a_file_that_cannot_be_read_keeps_no_other_run(there, tmp_path):
    first, *others = sorted(path.parent for path in there.glob("runs/*/result.json"))
    hits = next(first.glob("eval/*.hits.npz"))
    hits.unlink()
    hits.symlink_to(tmp_path / "gone")
    exported = export_runs(there, [], tmp_path / "x.zip")
    assert exported.names == [folder.name for folder in others]
    assert list(exported.left_out) == [first.name]


@pytest.mark.parametrize("file", ["log.jsonl", "hits"])
def test_a_damaged_log_or_damaged_hits_stay_behind(there, tmp_path, file):
    first, *_ = sorted(path.parent for path in there.glob("runs/*/result.json"))
    spoiled = first / file if file == "log.jsonl" else next(first.glob("eval/*.hits.npz"))
    spoiled.write_bytes(b"")
    assert list(export_runs(there, [], tmp_path / "x.zip").left_out) == [first.name]


def test_a_damaged_measurement_keeps_no_run(there, tmp_path):
    broken = next(iter(there.glob("*/measured.json")))
    broken.write_text("{")
    exported = export_runs(there, [], tmp_path / "x.zip")
    assert len(exported.names) == len(list(there.glob("runs/*/result.json")))
    assert list(exported.left_out) == [broken.parent.name]
    there_now = read_archive(tmp_path / "x.zip")
    assert f"{there.name}/{broken.parent.name}/measured.json" not in there_now


def test_another_run_of_the_same_name_is_kept(archive, here, tmp_path):
    import_runs(archive, here)
    path = next((tmp_path / "here").rglob("result.json"))
    record.write_json(path, record.read_json(path) | {"seconds": 1.5})
    before = snapshot(tmp_path / "here")
    with pytest.raises(ValueError, match="holds another: move it away first"):
        import_runs(archive, here)
    assert snapshot(tmp_path / "here") == before


def test_an_unfinished_run_of_the_same_name_is_kept(archive, here, there, tmp_path):
    name = next((there / "runs").iterdir()).name
    mine = tmp_path / "here" / "smoke" / "runs" / name
    record.write_text(mine / "config.yaml", "")
    with pytest.raises(ValueError, match="holds an unfinished one"):
        import_runs(archive, here)
    assert [p.name for p in mine.parent.iterdir()] == [name]


def tampered(files):
    files[a_run(files)] += b" "


def lacking(files):
    del files[a_run(files)]


def unlisted(files):
    files["smoke/runs/x-s0/result.json"] = b"{}"


def without_manifest(files):
    del files[MANIFEST]


def of_another_version(files):
    signed(files)
    files[MANIFEST] = files[MANIFEST].replace(b'"version": 2', b'"version": 3')


def of_an_earlier_version(files):
    signed(files)
    files[MANIFEST] = files[MANIFEST].replace(b'"version": 2', b'"version": 1')


def elsewhere(files):
    files["smoke/../x/result.json"] = b"{}"
    signed(files)


def a_checkpoint(files):
    files["smoke/runs/x-s0/checkpoint/model.safetensors"] = b""
    signed(files)


def of_another_seed(files):
    name = a_run(files)
    files[name] = json.dumps(json.loads(files[name]) | {"seed": 7}).encode()
    signed(files)


def without_result(files):
    del files[a_run(files)]
    signed(files)


def without_config(files):
    del files[a_run(files).replace("result.json", "config.yaml")]
    signed(files)


def with_a_longer_name(files):
    files[f"{a_run(files)}.exe"] = b""
    signed(files)


def another_of_an_artefact(files):
    files["smoke/fisher/figure.png"] = b""
    signed(files)


def of_another_scale(files):
    moved = {name.replace("smoke/", "cpu/", 1): data for name, data in files.items()}
    files.clear()
    files.update(moved)
    signed(files)


def of_no_scale(files):
    files["huge/runs/x-s0/result.json"] = b"{}"
    signed(files)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (tampered, "is not as its manifest has it"),
        (lacking, "is not as its manifest has it"),
        (unlisted, "is not as its manifest has it"),
        (without_manifest, "manifest.json is missing"),
        (of_another_version, "version 3, known is 2"),
        (of_an_earlier_version, "version 1, known is 2"),
        (elsewhere, "a name that leads elsewhere"),
        (a_checkpoint, "is no file of a run"),
        (of_another_seed, "its seed is '7' in result.json, . elsewhere"),
        (without_result, "no result.json, so no finished run"),
        (without_config, "no config.yaml, so no finished run"),
        (with_a_longer_name, "is no file of a run"),
        (another_of_an_artefact, "is no file of a run"),
        (of_another_scale, "its scale is 'smoke' in result.json, 'cpu' elsewhere"),
        (of_no_scale, "is no file of a run"),
    ],
)
def test_a_damaged_archive_is_refused_and_nothing_of_it_is_kept(
    archive, here, tmp_path, change, named
):
    changed(archive, change)
    with pytest.raises(ValueError, match=named):
        import_runs(archive, here)
    assert not [p for p in (tmp_path / "here").rglob("*") if p.is_file()]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=3))
def test_random_changes_are_refused_or_change_nothing(there, tmp_path, changes):
    archive = tmp_path / "one.zip"
    if not archive.exists():
        export_runs(there, [min(p.name for p in (there / "runs").iterdir())], archive)
    data = bytearray(archive.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    other, target = tmp_path / "other.zip", tmp_path / "target"
    shutil.rmtree(target, ignore_errors=True)
    other.write_bytes(data)
    try:
        import_runs(other, str(target))
    except ValueError:
        assert not [p for p in target.rglob("*") if p.is_file()]
        return
    whole = tmp_path / "whole"
    if not whole.exists():
        import_runs(archive, str(whole))
    ours, theirs = ({n: b for n, (b, _) in snapshot(place).items()} for place in (target, whole))
    assert ours == theirs


def test_no_zip_is_refused(tmp_path, here):
    (tmp_path / "x.zip").write_bytes(io.BytesIO(b"no zip").getvalue())
    with pytest.raises(ValueError, match="not a zip"):
        import_runs(tmp_path / "x.zip", here)


# --- the commands ---
def test_the_commands_say_what_they_did(delving, there, here, tmp_path):
    to = tmp_path / "out.zip"
    code, out, _ = delving("runs", "export", "scale=smoke", "--to", to,
                           "--output-root", there.parent)  # fmt: skip
    assert code == 0
    assert f"{to}: " in out
    code, out, _ = delving("runs", "import", to, "--output-root", here)
    assert code == 0
    assert "0 there already" in out
    code, out, _ = delving("runs", "import", to, f"output_root={tmp_path / 'third'}")
    assert (code, "0 there already" in out) == (0, True)
    assert [*(tmp_path / "third").glob("smoke/runs/*/result.json")]
    code, out, _ = delving("runs", "import", to, "scale=smoke", "--output-root", here)
    assert (code, f"{to}: 0 new" in out) == (0, True)
    code, _, err = delving("runs", "import", to, "scale=cpu", "--output-root", tmp_path / "4th")
    assert (code, f"scale=cpu: {to} is of scale=smoke" in err) == (2, True)
    assert not [*(tmp_path / "4th").glob("*/runs/*")]
    code, _, err = delving("runs", "import", tmp_path / "nosuch.zip", "--output-root", here)
    assert code == 2
    assert "nosuch.zip: not there" in err
    code, _, err = delving("runs", "export", "scale=cpu", "--output-root", here)
    assert code == 2
    assert "no finished run at all" in err


def test_a_run_may_be_named_by_its_folder_and_the_scale_told_beside(delving, there, tmp_path):
    folder, to = next((there / "runs").iterdir()), tmp_path / "one.zip"
    code, out, _ = delving("runs", "export", folder, "scale=smoke", "--to", to)
    assert (code, f"{to}: 1 run" in out) == (0, True)


def test_runs_that_are_named_need_no_scale(delving, there, tmp_path):
    name, to = next((there / "runs").iterdir()).name, tmp_path / "one.zip"
    code, out, _ = delving("runs", "export", name, name, "--to", to, "--output-root", there.parent)
    assert (code, out.startswith(f"{to}: 1 run,")) == (0, True)
    shutil.copytree(there, there.parent / "cpu")
    other = there.parent / "cpu" / "runs" / name
    other.rename(other.with_name("other"))
    code, _, err = delving("runs", "export", name, "other", "--output-root", there.parent)
    assert code == 2
    assert "an archive is of one scale" in err


def test_an_empty_zip_is_named(tmp_path, here):
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    with pytest.raises(ValueError, match=r"empty\.zip: an empty zip"):
        import_runs(tmp_path / "empty.zip", here)
