"""Table 6: single models, dense testing at several scales."""

from delving.artefact import Asked, Shown, published
from delving.paper.table5 import MODELS, claims, tabulate

OTHERS = {
    "in_competition": {"msra": "ILSVRC 14: MSRA (top-5 on the test set)",
                       "vgg": "ILSVRC 14: VGG (test set)", "googlenet": "ILSVRC 14: GoogLeNet"},
    "post_competition": {"vgg_v2": "VGG (arXiv v2)", "vgg_v5": "VGG (arXiv v5)",
                         "baidu": "Baidu"} | MODELS,
}  # fmt: skip


def show(asked: Asked) -> Shown:
    paper = published()["table6"]
    blocks = [(titles, paper[when]) for when, titles in OTHERS.items()]
    return Shown(
        "Table 6. Single models, dense testing at several scales",
        "Errors in percent on the validation images, dense testing at three scales combined: the "
        "paper's table with its other systems as printed, and ours (number of nets).",
        table=tabulate(asked, blocks, "dense"),
        claims=claims(asked, "dense"),
    )
