"""ImageNet's meta.mat, read by scipy in its own process: some damaged files crash scipy.

`python -m delving.data.mat FILE` prints the synsets as JSON.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

from delving.launched import child

SECONDS, BYTES = 60, 4 * 2**30  # the process's limits


def read_synsets(path: Path) -> dict[str, list[str]]:
    """{ILSVRC2012_ID in digits: [WordNet id, its names]}; ValueError if the file is not a devkit's
    meta.mat."""
    command = child("delving.data.mat", str(path))
    try:
        done = subprocess.run(**command, capture_output=True, timeout=SECONDS)
        found = json.loads(done.stdout) if done.returncode == 0 else {}
    except (subprocess.TimeoutExpired, ValueError):
        found = {}
    if not found:
        what = "synsets with ILSVRC2012_ID, WNID and words"
        raise ValueError(f"{path}: not the devkit's: it has no {what}")
    return found


def main() -> None:
    from scipy.io import loadmat

    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    rows = loadmat(sys.argv[1], squeeze_me=True, variable_names=["synsets"])["synsets"]
    print(json.dumps({str(int(row["ILSVRC2012_ID"])): [_word(row["WNID"]), _word(row["words"])]
                      for row in rows}))  # fmt: skip


def _word(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"no word: {value!r}")
    return value


if __name__ == "__main__":
    main()
