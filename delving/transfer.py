"""Moves finished runs between machines as one archive: `delving runs export` and `import`.

Weights stay where they are: what tables, figures and verdicts need of a run is a few kilobytes, and
what was measured of its weights goes along.
"""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from delving import config as configs
from delving import record
from delving.beside import folder_beside
from delving.curves import check_end, read_counts
from delving.data.zips import ZipReader, open_checked
from delving.detect.naming import load_about
from delving.detect.record import read_detection, read_pictures
from delving.groups import choices
from delving.lock import clear_up, holding_when_free
from delving.measured import FILE, add_parts, by_runs, parts_within, read_parts
from delving.reference import OF_DETECTION, OF_RUN, copy_detection, copy_run
from delving.words import nearest, shown

MANIFEST = "manifest.json"
VERSION = 2
KINDS = {"runs": (*OF_RUN, "config.yaml"), "detections": OF_DETECTION}
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,120}"
UNDATED = (1980, 1, 1, 0, 0, 0)


@dataclass
class Moved:
    """What an import did, by names: what is new, what was there already, and the artefacts that
    have other measurements of the same runs here, which stay."""

    new: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


@dataclass
class Exported:
    """The runs in an archive, and {run, detection or artefact: why} of what is damaged and not in
    it."""

    names: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def export_runs(root: Path, names: Sequence[str], to: Path) -> Exported:
    """Writes the archive `to` of finished runs below `root` (outputs/<scale>), all or those named,
    with their detections and the measurements made of them.

    The same runs give the same bytes. What is damaged stays behind, unless it was named: on a
    machine that is about to go away it must not hold back the rest.

    Raises:
        ValueError: a named run that is not there, not finished or damaged, or none at all.
    """
    finished = sorted(p.parent.name for p in root.glob("runs/*/result.json"))
    lacking = [name for name in names if name not in finished]
    chosen = sorted(set(names)) or finished
    if lacking and (root / "runs" / lacking[0]).is_dir():
        raise ValueError(f"{root / 'runs' / lacking[0]} is not finished")
    if lacking or not chosen:
        told = f"{lacking[0]}{nearest(lacking[0], finished)}" if lacking and finished else "at all"
        raise ValueError(f"{root} has no finished run {told}")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / root.name
        exported = Exported()
        for name in chosen:
            with _leaving_out(exported, name, place / "runs" / name):
                _check_run(root / "runs" / name, root.name)
                copy_run(root / "runs" / name, place / "runs" / name)
                exported.names.append(name)
        if exported.left_out and (names or not exported.names):
            raise ValueError(next(iter(exported.left_out.values())))
        for folder in sorted(path.parent for path in root.glob("detections/*/result.json")):
            with _leaving_out(exported, folder.name, place / "detections" / folder.name):
                if read_detection(folder)["run"] in exported.names:
                    _check_detection(folder)
                    copy_detection(folder, place / "detections" / folder.name)
        for artefact in choices("paper"):
            with _leaving_out(exported, artefact, place / artefact):
                if parts := parts_within(root / artefact / FILE, exported.names):
                    add_parts(place / artefact / FILE, parts)
        record.write_bytes(to, _pack(Path(scratch)))
    return exported


@contextmanager
def _leaving_out(exported: Exported, name: str, made: Path) -> Iterator[None]:
    """Notes what is damaged instead of stopping at it, and removes what was `made` of it."""
    try:
        yield
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        shutil.rmtree(made, ignore_errors=True)
        exported.left_out[name] = str(error)


def _pack(folder: Path) -> bytes:
    files = {path.relative_to(folder).as_posix(): path.read_bytes()
             for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files[MANIFEST] = json.dumps({"version": VERSION, "files": hashes}, indent=1).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, UNDATED), data, zipfile.ZIP_DEFLATED, 9)
    return file.getvalue()


def import_runs(archive: Path, output_root: str, scale: str = "*") -> Moved:
    """Puts the runs of an archive where they belong below output_root, each whole or not at all,
    and measurements of them beside those that are there.

    Raises:
        ValueError: the archive is damaged or no archive, holds what it should not, runs of another
            `scale` or a run where another of its name is here; nothing of it is kept then.
    """
    files = read_archive(archive)
    others = sorted({name.partition("/")[0] for name in files} - {scale})
    if others and scale != "*":
        raise ValueError(f"scale={scale}: {archive} is of scale={others[0]}")
    groups: dict[str, dict[str, bytes]] = {}
    for name, data in files.items():
        its, kind, *rest = name.split("/")
        key = f"{its}/{kind}/{rest[0]}" if kind in KINDS else f"{its}/{kind}"
        groups.setdefault(key, {})["/".join(rest[1:] if kind in KINDS else rest)] = data
    moved, root = Moved(), Path(output_root)
    with folder_beside(root / "import") as scratch:
        made = {key: _unpack(scratch / key, parts, key) for key, parts in groups.items()}
        runs = {key: folder for key, folder in made.items() if key.count("/") == 2}
        new = {key: folder for key, folder in runs.items() if not _is_there(root / key, folder)}
        parts = {key: _new_parts(root / key / FILE, folder / FILE)
                 for key, folder in made.items() if key not in runs}  # fmt: skip
        for key, folder in new.items():
            _put(folder, root / key)
        for key, (lacking, _) in parts.items():
            clear_up(root / key)  # in case a process died after adding all
            if lacking:
                with holding_when_free(root / key, lambda told: None):  # others measure meanwhile
                    add_parts(root / key / FILE, lacking)
    moved.new = sorted([*new, *(key for key, (lacking, _) in parts.items() if lacking)])
    moved.there = sorted(set(made) - set(moved.new))
    moved.others = sorted(key for key, (_, differ) in parts.items() if differ)
    return moved


def _put(folder: Path, place: Path) -> None:
    """Moves a folder to where nothing is, whole, even to another disk: a scale may be a link."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(folder, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with folder_beside(place) as scratch:
            os.replace(shutil.copytree(folder, scratch / "run"), place)


def _new_parts(place: Path, file: Path) -> tuple[list[dict], bool]:
    """The parts in `file` that `place` lacks, and whether it has others on the same runs."""
    there, brought = (by_runs(read_parts(path)) for path in (place, file))
    lacking = [part for runs, part in brought.items() if runs not in there]
    differ = (part[key] != there.get(runs, part)[key] for runs, part in brought.items()
              for key in ("asked", "found"))  # fmt: skip
    return lacking, any(differ)


def read_archive(archive: Path) -> dict[str, bytes]:
    """{name: bytes} of an archive whose manifest lists exactly what is in it, with its hashes.

    Raises:
        ValueError: names the archive and what is wrong with it.
    """
    names = [info.filename for info in open_checked(archive) if not info.is_dir()]
    read = ZipReader({name: (archive, name) for name in names})
    try:
        files = {name: read(name) for name in names}
    except OSError as error:
        raise ValueError(f"{archive}: {error}") from error
    where = f"{archive}: {MANIFEST}"
    if MANIFEST not in files:
        raise ValueError(f"{where} is missing: it is no archive of `delving runs export`")
    manifest = record.parse_json(files.pop(MANIFEST), Path(where))
    record.expect(manifest, {"version": int, "files": dict}, where)
    if manifest["version"] != VERSION:
        raise ValueError(f"{where}: version {manifest['version']}, known is {VERSION}")
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    if hashes != manifest["files"]:
        odd = [name for name in {**hashes, **manifest["files"]}
               if hashes.get(name) != manifest["files"].get(name)]  # fmt: skip
        raise ValueError(f"{archive}: {shown(odd[0])} is not as its manifest has it")
    strange = [name for name in files if not _belongs(name)]
    if strange:
        raise ValueError(f"{archive}: {shown(strange[0])} is no file of a run")
    return files


def _belongs(name: str) -> bool:
    scale, _, rest = name.partition("/")
    kind, _, rest = rest.partition("/")
    if scale not in choices("scale"):
        return False
    if kind in choices("paper"):
        return rest == FILE
    folder, _, file = rest.partition("/")
    patterns = [re.escape(p).replace(r"\*", "[a-z_@0-9+-]+") for p in KINDS.get(kind, ())]
    known = any(re.fullmatch(pattern, file) for pattern in patterns)
    return known and re.fullmatch(NAME, folder) is not None and ".." not in folder


def _unpack(folder: Path, parts: dict[str, bytes], key: str) -> Path:
    """Writes files into a folder of their own and checks that they are what they should be."""
    for name, data in parts.items():
        record.write_bytes(folder / name, data)
    kind = key.split("/")[1]
    if kind == "runs":
        _check_run(folder, key.split("/")[0])
    elif kind == "detections":
        _check_detection(folder)
    else:
        read_parts(folder / FILE, key)
    return folder


def _check_run(folder: Path, scale: str) -> None:
    for name in ("result.json", "config.yaml"):
        if not (folder / name).exists():
            raise ValueError(f"{folder.name}: no {name}, so no finished run")
    result, config = record.read_result(folder), configs.load(folder / "config.yaml")
    for path in (*folder.glob("env.json"), *folder.glob("eval/[!.]*.json")):
        record.read_keys(path)
    record.load_slopes(folder)
    read_counts(folder)
    check_end(folder)
    for protocol in result["eval"]:
        record.load_hits(folder, protocol)
    told = {group: getattr(config, group).name for group in ("model", "act", "init")}
    told |= {"run": folder.name, "scale": scale, "seed": config.seed}
    for key, value in told.items():
        if result[key] != value:
            raise ValueError(f"{folder.name}: its {key} is {shown(result[key])!r} in result.json, "
                             f"{value!r} elsewhere")  # fmt: skip


def _check_detection(folder: Path) -> None:
    if not (folder / "result.json").exists():
        raise ValueError(f"{folder.name}: no result.json, so no finished detection")
    result, about = read_detection(folder), load_about(folder / "config.yaml")
    if result["eval"]:  # else it diverged, and found nothing to be drawn
        read_pictures(folder)
    if (result["detection"], result["run"]) != (folder.name, about.run):
        raise ValueError(f"{folder.name}: its result.json is another's")


def _is_there(place: Path, folder: Path) -> bool:
    """Whether the same result is at `place` already.

    Raises:
        ValueError: another one is, or an unfinished one.
    """
    if not place.exists():
        return False
    if not (place / "result.json").exists():
        raise ValueError(f"{place} holds an unfinished one: move it away first")
    if (place / "result.json").read_bytes() != (folder / "result.json").read_bytes():
        raise ValueError(f"{place} holds another: move it away first")
    return True
