"""The README's generated blocks say what source and results say now."""

from pathlib import Path

import pytest

from delving.readme import BLOCKS, collect, paragraphs, refresh

README = Path(__file__).parent.parent / "README.md"


def test_the_readme_is_fresh():
    text = README.read_text(encoding="utf-8")
    assert refresh(text) == text, "stale: run `make readme`"


@pytest.mark.parametrize("title", BLOCKS)
def test_every_block_has_its_place_and_is_not_empty(title):
    text = README.read_text(encoding="utf-8")
    block = text.partition(f"<!-- {title} -->")[2].partition(f"<!-- end {title} -->")[0]
    assert len(block.strip().splitlines()) >= 3


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
    ],
)  # fmt: skip
def test_a_tag_reaches_to_the_end_of_its_comment_or_paragraph(lines, texts):
    assert list(paragraphs(lines, "assumed")) == texts


def test_each_tag_names_its_file():
    assert all(
        line.startswith("- ") and line.endswith((".py))", ".yaml))")) for line in collect("assumed")
    )
