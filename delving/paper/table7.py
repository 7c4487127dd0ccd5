"""Table 7: the ensemble of six models; what it says of each image also feeds Figures 4 to 7.

ours: the ensemble is scored on the validation images, the paper's on the test set, whose labels are
not public.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from PIL import Image

from delving.artefact import (
    POINTS,
    Asked,
    Claim,
    Run,
    Shown,
    accuracy_claim,
    mean_and_spread,
    printed,
    published,
)
from delving.data.augment import resize_whole
from delving.data.images import Images, evenly, to_base64
from delving.ensemble import average, summarise
from delving.evaluate import rank_labels
from delving.judge import compare_images, judge_better
from delving.probe import open_images

PROTOCOL = "dense"
TEAMS = {
    "in_competition": {"msra_spp": "ILSVRC 14: MSRA, SPP-nets", "vgg": "ILSVRC 14: VGG",
                       "googlenet": "ILSVRC 14: GoogLeNet"},
    "post_competition": {"vgg_v5": "VGG (arXiv v5)", "baidu": "Baidu",
                         "prelu_nets": "PReLU-nets (six models)"},
}  # fmt: skip
GAIN = 26  # percent less than GoogLeNet's, in the paper's abstract; rounded, so 25.5 or more
RIGHT, WRONG, WORST = 12, 4, 3  # pictures: right ones; wrong ones a class; their classes
SEED = re.compile(r"-s\d+$")  # of a run's name
SIDE = 96  # pixels of a picture's shorter side, at most


def teams(arms: dict[str, list[Run]]) -> list[list[Run]]:
    """One ensemble per seed for which all six models are there."""
    seeds = [run.seed for run in arms["c_prelu"]]
    found = [[run for arm in arms.values() for run in arm if run.seed == seed] for seed in seeds]
    return [team for team in found if len(team) == len(arms)]


def measure(asked: Asked, *team: Run) -> dict:
    """An ensemble (see ensemble.average), and images that it classifies correctly and wrongly."""
    probabilities, labels, _ = average([run.folder for run in team], PROTOCOL)
    return {
        "ensemble": _measure_team(team, probabilities, labels),
        "pictures": _choose_pictures(
            open_images(team[0].folder, *asked.surroundings), probabilities, labels
        ),
    }


def ensembles_of(asked: Asked) -> list[dict]:
    """What was measured of the ensembles, in the order of their seeds; ValueError without any."""
    if "table7" not in asked.measured:
        raise ValueError("table7: no ensemble was measured; it takes a finished run of each of its "
                         "six models, with scores")  # fmt: skip
    return [one["ensemble"] for one in asked.measured["table7"].values()]


def pictures_of(asked: Asked) -> dict:
    """The images that the first ensemble chose."""
    return next(iter(asked.measured["table7"].values()))["pictures"]


def _measure_team(team: Sequence[Run], probabilities: np.ndarray, labels: np.ndarray) -> dict:
    ranks, classes = rank_labels(probabilities, labels), probabilities.shape[1]
    misses = {run.name: ~run.hits(PROTOCOL, 5) for run in team} | {"ensemble": ranks >= 5}
    folders = [run.folder for run in team]
    return summarise(folders, PROTOCOL, (probabilities, labels)) | {
        "per_class": {name: _by_class(miss, labels, classes) for name, miss in misses.items()},
        "hits": {"top1": _bits(ranks < 1), "top5": _bits(ranks < 5)},
    }


def _by_class(misses: np.ndarray, labels: np.ndarray, classes: int) -> list[float | None]:
    """The top-5 error of each class, percent; None for a class without images."""
    found = [misses[labels == c] for c in range(classes)]
    return [round(100 * float(own.mean()), 4) if own.size else None for own in found]


def class_errors(ensemble: dict, name: str = "ensemble") -> np.ndarray:
    """(classes,) top-5 errors of the ensemble or a member, percent; nan without test images."""
    return np.array(ensemble["per_class"][name], dtype=float)


def _bits(hits: np.ndarray) -> str:
    return np.packbits(hits).tobytes().hex()


def hits_of(ensemble: dict, k: int) -> np.ndarray:
    """(images,) bool, as Run.hits."""
    packed = np.frombuffer(bytes.fromhex(ensemble["hits"][f"top{k}"]), np.uint8)
    return np.unpackbits(packed, count=ensemble["images"]).astype(bool)


def against(ensemble: dict, run: Run) -> str:
    """What the images say of the top-5 errors of an ensemble and a net."""
    of = "this ensemble and this net"
    return compare_images(hits_of(ensemble, 5), run.hits(PROTOCOL, 5), of=of)


def _choose_pictures(images: Images, probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """Right: the first right image in each of some classes, spread over all. Wrong: in the three
    classes with the highest top-5 error (ties: top-1), the images whose own label ranks lowest."""
    ranks = rank_labels(probabilities, labels)
    of_class = [np.flatnonzero(labels == c) for c in range(len(images.classes))]
    spread = (of_class[c] for c in evenly(len(of_class), RIGHT))
    right = [own[ranks[own] == 0][:1] for own in spread]
    error = [(np.mean(ranks[own] >= 5), np.mean(ranks[own] >= 1)) if own.size else (-1.0, -1.0)
             for own in of_class]  # fmt: skip
    worst = sorted(range(len(of_class)), key=lambda c: error[c], reverse=True)[:WORST]
    wrong = [own[np.argsort(-ranks[own], kind="stable")][:WRONG] for own in
             (of_class[c] for c in worst)]  # fmt: skip

    def tell(i: int) -> dict:
        best = np.argsort(-probabilities[i], kind="stable")[:5]
        return {
            "name": images.names[i],
            "label": int(labels[i]),
            "rank": int(ranks[i]),
            "top5": [[int(c), round(float(probabilities[i, c]), 4)] for c in best],
            "jpeg": to_base64(_small(images.load(i)), quality=92),
        }

    return {
        "classes": images.classes,
        "titles": images.titles,
        "right": [tell(i) for own in right for i in own],
        "wrong": [tell(i) for own in wrong for i in own if ranks[i] > 0],
    }


def _small(image: Image.Image) -> Image.Image:
    return image if min(image.size) <= SIDE else Image.fromarray(resize_whole(image, SIDE))


def show(asked: Asked) -> Shown:
    ensembles = ensembles_of(asked)
    return Shown(
        "Table 7. The ensemble of six models",
        "Top-5 errors in percent, for ours top-1 too. The paper's are on the test set of ImageNet; "
        "ours are on validation images, dense testing at three scales, probabilities averaged over "
        "the six models; mean ± standard deviation over seeds (number of ensembles). Human "
        "performance as printed.",
        table=_tabulate(ensembles),
        claims=_claims(asked, ensembles),
        notes=["The six models are those of Table 6, B with ReLU and C with ReLU."],
    )


def _tabulate(ensembles: list[dict]) -> pd.DataFrame:
    paper = published()
    rows = [("human (Russakovsky et al.)", printed(paper["text"]["human_top5"], 1), "-", "-")]
    for when, titles in TEAMS.items():
        rows += [(title, printed(paper["table7"][when][key]), "-", "-")
                 for key, title in titles.items()]  # fmt: skip
    rows[-1] = (*rows[-1][:2], *_cells(ensembles))
    for place, name in enumerate(ensembles[0]["members"]):
        nets = [list(ensemble["members"].values())[place] for ensemble in ensembles]
        rows.append((f"  member {SEED.sub('', name)}", "-", *_cells(nets)))
    columns = ["", "top-5, paper (test)", "top-5, ours (val)", "top-1, ours (val)"]
    return pd.DataFrame(rows, columns=columns)


def _cells(errors: Sequence[dict]) -> tuple[str, str]:
    top1, top5 = ([one[key] for one in errors] for key in ("top1_err", "top5_err"))
    return mean_and_spread(top5), mean_and_spread(top1)


def _claims(asked: Asked, ensembles: list[dict]) -> list[Claim]:
    claims = [_beats_members(asked, ensembles)]
    if asked.scale == "paper":
        claims += _against_the_world(asked, ensembles)
    return claims


def _beats_members(asked: Asked, ensembles: list[dict]) -> Claim:
    """Judged by top-5 errors, the only ones that the paper prints of the ensemble."""
    best = [min(e["members"], key=lambda name: e["members"][name]["top5_err"]) for e in ensembles]
    found = [e["members"][name]["top5_err"] - e["top5_err"]
             for e, name in zip(ensembles, best, strict=True)]  # fmt: skip
    runs = {run.name: run for run in asked.runs}
    images = None
    if len(found) == 1:
        images = against(ensembles[0], runs[best[0]])
    finding = judge_better(
        found,
        delta=POINTS,
        noise=asked.noise(lambda run: run.error("ten_view", 5)),
        images=images,
    )
    rule = (
        "top-5 error by dense, the best member's minus the ensemble's, one difference per "
        "ensemble: the 95 % interval over seeds lies above 0"
    )
    claim = "the ensemble beats every one of its members"
    return accuracy_claim(claim, rule, runs=members_of(asked, ensembles), finding=finding)


def members_of(asked: Asked, ensembles: list[dict]) -> list[Run]:
    """All nets of all ensembles: a claim on an ensemble rests on each of them."""
    names = [name for one in ensembles for name in one["runs"]]
    return [Run(asked.root / "runs" / name) for name in names]


def _against_the_world(asked: Asked, ensembles: list[dict]) -> list[Claim]:
    paper = published()
    human, googlenet = paper["text"]["human_top5"], paper["table7"]["in_competition"]["googlenet"]
    noise = asked.noise(lambda run: run.error("ten_view", 5))
    limits = {
        f"below human performance, {human} % top-5": human,
        f"{GAIN} % below GoogLeNet's {googlenet} %": (1 - (GAIN - 0.5) / 100) * googlenet,
    }
    return [
        accuracy_claim(
            f"the ensemble is {claim}",
            "the limit minus the top-5 error on the validation images (the paper's is on the test "
            "set), one difference per ensemble: the 95 % interval over seeds lies above 0",
            runs=members_of(asked, ensembles),
            finding=judge_better([limit - e["top5_err"] for e in ensembles], delta=0.0,
                                 noise=noise),
            delta=0.0,
        )
        for claim, limit in limits.items()
    ]  # fmt: skip
