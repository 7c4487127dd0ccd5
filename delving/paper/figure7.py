"""Figure 7: each class's top-5 error by the ensemble against that of a single net, A with ReLU.

ours: Figure 7 compares the ensemble with A with ReLU, which errs most in the paper's Table 6; the
authors' system of 2014, with which the paper compares, is not available. It is named beforehand: a
weakest member picked by its test errors would err more than the ensemble by chance alone.
"""

import numpy as np
import pandas as pd

from delving.artefact import Asked, Claim, Shown, accuracy_claim, published
from delving.judge import judge_better
from delving.paper.table7 import against, class_errors, ensembles_of, members_of, pictures_of
from delving.plot import BLUE, RED, new_figure

FALLS, MORE = 0.2, 5.0  # the smallest effects that count: points of top-5 error; percent of classes


def show(asked: Asked) -> Shown:
    ensembles, titles = ensembles_of(asked), pictures_of(asked)["titles"]
    reduced = reduction(ensembles[0])
    order = [c for c in np.argsort(reduced, kind="stable") if not np.isnan(reduced[c])]
    return Shown(
        "Figure 7. What the ensemble changes, class by class",
        "Each class's top-5 error by A with ReLU minus that by the ensemble of which it is a "
        "member, of the first seed, in ascending order: positive means reduced.",
        figure=_draw(reduced[order]),
        data=pd.DataFrame({"class": [titles[c] for c in order], "reduced": reduced[order]}),
        claims=_claims(asked, ensembles),
        notes=[_count(reduced)],
    )


def reduction(ensemble: dict) -> np.ndarray:
    """(classes,) points by which the ensemble's top-5 error is smaller than that of its member A
    with ReLU, the first in conf/paper/table7.yaml; nan for a class without test images."""
    return class_errors(ensemble, ensemble["runs"][0]) - class_errors(ensemble)


def _draw(reduced: np.ndarray):
    figure, ((panel,),) = new_figure(1, 1, size=(5.4, 2.8))
    colors = np.where(reduced < 0, RED, BLUE)
    panel.bar(np.arange(1, len(reduced) + 1), reduced, color=colors, width=0.8)
    panel.axhline(0, color="#555555", lw=0.6)
    panel.set(xlabel="classes, ascending", ylabel="top-5 error reduced by (points)",
              xlim=(0.2, len(reduced) + 0.8))  # fmt: skip
    return figure


def _count(reduced: np.ndarray) -> str:
    ours = [int((reduced > 0).sum()), int((reduced == 0).sum()), int((reduced < 0).sum())]
    paper = published()["figure7"]
    theirs = [paper[key] for key in ("reduced", "unchanged", "increased")]
    return (
        f"Reduced, unchanged, increased in {', '.join(map(str, ours))} classes; the paper's, "
        f"against its system of 2014: {', '.join(map(str, theirs))}."
    )


def _claims(asked: Asked, ensembles: list[dict]) -> list[Claim]:
    reduced = [r[~np.isnan(r)] for r in map(reduction, ensembles)]
    members = members_of(asked, ensembles)
    more = [100 * float((r > 0).mean() - (r < 0).mean()) for r in reduced]
    return [
        accuracy_claim(
            "the mean error falls",
            "top-5 error averaged over classes, that of A with ReLU minus the ensemble's, one "
            "difference per ensemble: the 95 % interval over seeds lies above 0",
            runs=members,
            finding=judge_better(
                [float(r.mean()) for r in reduced],
                delta=FALLS,
                noise=asked.noise(lambda run: run.error("ten_view", 5)),
                images=against(ensembles[0], members[0]) if len(ensembles) == 1 else None,
            ),
            delta=FALLS,
        ),
        accuracy_claim(
            "more classes are reduced than increased",
            "percent of classes reduced minus percent increased, one difference per ensemble: the "
            "95 % interval over seeds lies above 0",
            runs=members,
            finding=judge_better(more, delta=MORE, unit="percent of classes"),
            delta=MORE,
        ),
    ]
