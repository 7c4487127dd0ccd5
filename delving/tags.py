"""Collects the `assumed:` and `ours:` tags of the source into the README's two lists.

`python -m delving.tags README.md` writes them between their markers.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

TAG = re.compile(r"(?:^\s*|# |\. |\"\"\")(assumed|ours): (.*)")
TITLES = {"assumed": "assumptions", "ours": "deviations"}


def collect(kind: str) -> list[str]:
    """One markdown line per tag of a kind: its paragraph and the file it stands in."""
    root = Path(__file__).parent
    lines = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root.parent).as_posix()
        texts = paragraphs(path.read_text(encoding="utf-8").splitlines(), kind)
        lines += [f"- {text} ([{name}]({name}))" for text in texts if path != Path(__file__)]
    return lines


def paragraphs(lines: list[str], kind: str) -> Iterator[str]:
    """The texts of a kind's tags: to the end of the comment, or of the docstring's paragraph."""
    for number, line in enumerate(lines):
        found = TAG.search(line)
        if not found or found[1] != kind:
            continue
        before, comment = line[: found.start(1)], "#" in line[: found.start(1)]
        parts = [found[2].removesuffix('"""')]
        one_line = found[2].endswith('"""') or (comment and before.split("#")[0].strip())
        if not one_line:
            parts += _continued(lines[number + 1 :], comment)
        text = " ".join(" ".join(parts).split())
        yield text[:1].upper() + text[1:].rstrip(". \"'") + "."


def _continued(lines: list[str], comment: bool) -> Iterator[str]:
    for line in lines:
        text = line.strip()
        ends = not text.startswith("#") if comment else text in ("", '"""')
        if ends or TAG.search(text):
            return
        yield text.lstrip("# ").removesuffix('"""')
        if text.endswith('"""'):
            return


def refresh(readme: str) -> str:
    """The README with both lists as the source has them now."""
    for kind, title in TITLES.items():
        block = f"<!-- {title} -->\n" + "\n".join(collect(kind)) + f"\n<!-- end {title} -->"
        pattern = rf"<!-- {title} -->.*?<!-- end {title} -->"
        readme = re.sub(pattern, lambda _, block=block: block, readme, flags=re.S)
    return readme


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(refresh(target.read_text(encoding="utf-8")), encoding="utf-8")
