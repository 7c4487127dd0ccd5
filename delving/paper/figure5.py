"""Figure 5: wrongly classified images from the three classes with the highest top-5 error."""

from delving.artefact import Asked, Shown, published
from delving.paper.figure4 import draw_pictures, list_pictures
from delving.paper.table7 import WRONG, class_errors, ensembles_of, pictures_of


def show(asked: Asked) -> Shown:
    pictures, errors = pictures_of(asked), class_errors(ensembles_of(asked)[0])
    worst = list(dict.fromkeys(one["label"] for one in pictures["wrong"]))
    ours = ", ".join(f"{pictures['titles'][c]} {errors[c]:.0f} %" for c in worst)
    paper = ", ".join(
        f"{name} {error} %" for name, error in published()["figure6"]["worst"].items()
    )
    return Shown(
        "Figure 5. Images classified wrongly, of the three worst classes",
        f"{len(pictures['wrong'])} validation images of the three classes with the highest top-5 "
        "error (ties: top-1 error) by the first seed's ensemble: the wrongly classified images "
        f"whose true label ranks lowest, up to {WRONG} per class; those right in the top 5 only if "
        "a class has no others. Above each its true label, below the five likeliest "
        "classes with their probabilities; orange: the likeliest, which is wrong; green: the true "
        "one.",
        figure=draw_pictures(pictures["wrong"], pictures),
        data=list_pictures(pictures["wrong"], pictures),
        notes=[f"The worst classes and their top-5 errors: {ours}; the paper's: {paper}."],
    )
