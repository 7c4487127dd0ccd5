"""Figure 6: the top-5 error of each class, ascending, by the ensemble."""

import numpy as np
import pandas as pd

from delving.artefact import Asked, Shown, published
from delving.paper.table7 import class_errors, ensembles_of, pictures_of
from delving.plot import BLUE, new_figure


def show(asked: Asked) -> Shown:
    errors = class_errors(ensembles_of(asked)[0])
    titles, order = pictures_of(asked)["titles"], np.argsort(errors, kind="stable")
    order = [c for c in order if not np.isnan(errors[c])]
    figure, ((panel,),) = new_figure(1, 1, size=(5.4, 2.8))
    panel.bar(np.arange(1, len(order) + 1), errors[order], color=BLUE, width=0.8)
    panel.set(xlabel="classes, ascending", ylabel="top-5 error (%)", xlim=(0.2, len(order) + 0.8))
    panel.set_ylim(0, max(1.0, 1.1 * np.nanmax(errors)))
    zero, paper = int((errors == 0).sum()), published()["figure6"]["zero_error_classes"]
    return Shown(
        "Figure 6. The top-5 error of each class",
        "By the first seed's ensemble on the validation images, in ascending order.",
        figure=figure,
        data=pd.DataFrame({"class": [titles[c] for c in order], "top5_err": errors[order]}),
        notes=[
            f"Classes without error: {zero} of {len(order)}; the paper's: {paper} of 1000.",
            f"With {len(errors)} classes a guess is right in the top 5 in "
            f"{min(100.0, 500 / len(errors)):.0f} % of cases.",
        ],
    )
