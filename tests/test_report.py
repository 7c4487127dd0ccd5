"""The page of a scale: complete, in order, escaped, offline, and as a browser shows it."""

import base64
import csv
import html
import io
import json
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from delving.draw import to_markdown
from delving.report import (
    MARKS,
    label,
    ledger_markdown,
    ledger_rows,
    names_shown,
    tell_trainings,
    tie,
    write_report,
)
from delving.words import duration

ORDER = ["figure1", "table1", "table2", "figure2", "convergence"]
HOSTILE = """<script>alert(1)</script> "quoted" 'too' & <img src=http://evil.test/x> {{ 7 * 7 }}"""
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="518.4pt" height="200pt" viewBox="0 0 518 200">'
    '<defs><path id="m" d="M0 0H9"/></defs><use href="#m"/></svg>'
)
TABLE = [["rectifier", "paper top-1", "ours top-1"], ["ReLU", "33.82", "40.6 ± 5.3"],
         ["LReLU", "–", "not run"]]  # fmt: skip
ABOUT = {
    "scale": "cpu",
    "headline": "Narrow nets on generated images",
    "machine": {"torch": "2.11.0", "CPU": "2 cores"},
    "seconds": {"planned": {"trainings": 600, "drawing": 12}, "used": {"trainings": 700.4}},
    "deviations": ["crop 28 instead of 224"],
    "failed": [{"run": "small30-relu-xavier-s2", "error": "loss is nan"}],
    "trainings": 34,
    "shared": "tables 4 to 7 share six nets",
    "paper": "He et al., 2015. https://arxiv.org/abs/1502.01852",
    "made": "delving 0.1.0",
}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def claim(text, verdict, **more):
    told = {"rule": f"rule of {text}", "delta": 0.6, "evidence": f"evidence of {text}"}
    return {"claim": text, "verdict": verdict, "trainings": 3, **told, **more}


def put(folder, name, *, claims=(), **more):
    """An artefact folder with a verdict.json of these claims."""
    told = {"artefact": name, "scale": folder.name, "title": f"{label(name)}. Title of {name}",
            "caption": f"caption of {name}", "notes": [f"note of {name}"],
            "command": f"delving reproduce {name}", "runs": [f"run-of-{name}"]}  # fmt: skip
    (folder / name).mkdir(parents=True, exist_ok=True)
    text = json.dumps({**told, "claims": list(claims), **more})
    (folder / name / "verdict.json").write_text(text, encoding="utf-8")
    return folder / name


def put_table(folder, rows):
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def png(width=800):
    data = io.BytesIO()
    Image.new("RGB", (width, 300), "white").save(data, "png")
    return data.getvalue()


@pytest.fixture
def folder(tmp_path):
    """outputs/cpu with four of ORDER's artefacts, made in another order."""
    folder = tmp_path / "cpu"
    put_table(put(folder, "table2", claims=[
        claim("PReLU beats ReLU", "reproduced"), claim("LReLU is as ReLU", "not_reproduced")]),
        TABLE)  # fmt: skip
    (put(folder, "figure1") / "figure.svg").write_text(SVG, encoding="utf-8")
    (put(folder, "figure2", claims=[claim("He is first", "inconclusive")]) / "figure.png"
     ).write_bytes(png())  # fmt: skip
    put(folder, "convergence", claims=[claim("He converges", "reproduced")],
        runs=[f"small30-s{seed}" for seed in range(20)])  # fmt: skip
    return folder


class Page(HTMLParser):
    """A page's elements as (tag, attributes), its ids in order, and its visible text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())
        self.ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.open.append("")

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def report(folder, **about):
    return Page(write_report(folder, ORDER, {**ABOUT, **about}))


def test_everything_told_stands_on_the_page(folder):
    text = report(folder).text
    for name in ("table2", "figure1", "figure2"):
        for told in ("Title of", "caption of", "note of", "delving reproduce"):
            assert f"{told} {name}" in text
        assert f"run-of-{name}" in text
    for told in ("rule of He is first", "evidence of He is first", "Delta: 0.6", "Trainings: 3",
                 "Narrow nets on generated images", "2 cores", "crop 28 instead of 224",
                 "small30-relu-xavier-s2", "loss is nan", "https://arxiv.org/abs/1502.01852",
                 "delving 0.1.0", "40.6 ± 5.3", "33.82"):  # fmt: skip
        assert told in text


def test_artefacts_follow_the_papers_order_after_the_ledger(folder):
    ids = report(folder).ids
    found = [name for name in ids if name in ("ledger", "deviations", "failed", *ORDER)]
    assert found == ["deviations", "failed", "ledger", "figure1", "table2", "figure2",
                     "convergence"]  # fmt: skip


def test_an_absent_artefact_is_named(folder):
    assert "Not made at this scale: Table 1." in report(folder).text
    why = report(folder, left_out={"table1": "its nets get no training"}).text
    assert "Not made at this scale: Table 1 (its nets get no training)." in why
    put(folder, "table1")
    assert "Not made at" not in report(folder).text


def test_artefacts_made_by_other_settings_than_the_headlines_are_named(folder):
    assert "different settings" not in report(folder).text
    put(folder, "figure1", command="delving reproduce figure1 scale=cpu model.width=0.5")
    page = report(folder)
    assert "different settings" in page.text
    assert "Figure 1: scale=cpu model.width=0.5" in page.text


def test_the_runs_of_all_artefacts_that_are_there_are_counted_once(folder):
    put(folder, "figure1", runs=["a", "b"])
    put(folder, "table1", runs=["b", "c"])
    put(folder, "figure2", runs=[], detections=["d", "a"])
    order = ["figure1", "table1", "figure6", "figure2"]
    assert names_shown(folder, order) == ["a", "b", "c"]
    assert names_shown(folder, order, "detections") == ["a", "d"]


@pytest.mark.parametrize(
    ("trainings", "detectors", "told"),
    [(1, None, "1 training"), (2, 0, "2 trainings"), (3, 1, "3 trainings and 1 detector made of"
      " them"), (31, 6, "31 trainings and 6 detectors made of them")],
)  # fmt: skip
def test_detectors_are_counted_beside_trainings(folder, trainings, detectors, told):
    assert tell_trainings(trainings, detectors) == told
    about = ABOUT | {"trainings": trainings, "detectors": detectors}
    page = write_report(folder, ORDER, about).read_text(encoding="utf-8")
    assert f"They rest on {told}" in page.replace("\xa0", " ")


def test_every_link_has_its_place(folder):
    page = report(folder)
    links = [a["href"] for a in page.all("a")]
    assert "#table2" in links
    assert {link.removeprefix("#") for link in links} <= set(page.ids)


def test_the_ledger_counts_verdicts_and_trainings(folder):
    text = report(folder).text
    assert (
        "4 claims: 2 yes, 1 no, 1 inconclusive. They rest on 34 trainings "
        "(tables 4 to 7 share six nets)." in text
    )


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_on_drawings_no_claim_is_called_reproduced(folder, scale):
    page = report(folder, scale=scale)
    assert "holds on generated images?" in page.text
    assert "✓ yes" in page.text
    assert "✗ no" in page.text
    assert "reproduced" not in page.text.replace("Delving Deep into Rectifiers, reproduced", "")


def test_at_a_small_scale_other_images_are_not_called_generated(folder):
    page = report(folder, scale="cpu", data="folder")
    assert "holds at this scale?" in page.text
    assert "generated images?" not in page.text


@pytest.mark.parametrize("scale", ["quarter", "paper"])
def test_on_real_images_a_verdict_is_called_one(folder, scale):
    text = report(folder, scale=scale).text
    assert "generated images?" not in text
    assert "2 reproduced, 1 not reproduced, 1 inconclusive" in text
    assert "✗ not reproduced" in text


@pytest.mark.parametrize(
    ("text", "tied"),
    [
        ("7.2 points, 95 % interval 4 to 10, n = 3: above 0",
         "7.2~points, 95~% interval 4 to 10, n~=~3: above 0"),
        ("McNemar p < 0.0001", "McNemar p~<~0.0001"),
        ("12,500 images of 50 classes", "12,500~images of 50~classes"),
        ("epochs=36 seeds.large=3 runs=2 x", "epochs=36 seeds.large=3 runs=2 x"),
    ],
)  # fmt: skip
def test_a_number_and_its_unit_stay_in_a_line(text, tied):
    assert tie(text) == tied.replace("~", "\xa0")


def test_all_text_is_escaped(tmp_path):
    folder = tmp_path / "cpu"
    hostile = claim(HOSTILE, "reproduced", rule=HOSTILE, evidence=HOSTILE, delta=HOSTILE)
    put_table(put(folder, "table1", title=HOSTILE, caption=HOSTILE, notes=[HOSTILE],
                  command=HOSTILE, runs=[HOSTILE], claims=[hostile]),
              [["a", HOSTILE], [HOSTILE, HOSTILE]])  # fmt: skip
    rows = {"planned": {HOSTILE: 1}, "used": {}}
    page = report(folder, headline=HOSTILE, machine={HOSTILE: HOSTILE}, deviations=[HOSTILE],
                  failed=[{"run": HOSTILE, "error": HOSTILE}], paper=HOSTILE, made=HOSTILE,
                  shared=HOSTILE, seconds=rows, scale=HOSTILE)  # fmt: skip
    assert not page.all("script")
    assert not page.all("img")
    assert page.text.count(HOSTILE) >= 20
    assert not any(key.startswith("on") for _, a in page.elements for key in a)


CONTROL = "a\x1b]0;x\x07\x00b\u202ec\nd"


def test_control_characters_are_printed_as_escapes(tmp_path):
    folder, plain = tmp_path / "cpu", r"a\x1b]0;x\x07\x00b\u202ec\nd"
    hostile = claim(CONTROL, "reproduced", rule=CONTROL, evidence=CONTROL, delta=CONTROL)
    put_table(put(folder, "table1", title=CONTROL, caption=CONTROL, notes=[CONTROL],
                  command=CONTROL, runs=[CONTROL], claims=[hostile]),
              [["a", "b\x1b"], ["\x1b", "c"]])  # fmt: skip
    page = report(folder, headline=CONTROL, machine={CONTROL: CONTROL}, deviations=[CONTROL],
                  failed=[{"run": CONTROL, "error": CONTROL}], paper=CONTROL, made=CONTROL,
                  shared=CONTROL, seconds={"planned": {CONTROL: 1}}, scale=CONTROL)  # fmt: skip
    source = (folder / "report.html").read_text(encoding="utf-8")
    lines = [
        *ledger_markdown(folder, ORDER, "cpu"),
        to_markdown(pd.DataFrame({CONTROL: [CONTROL]})),
    ]
    for text in (source, *lines):
        assert not set(text) & set("\x1b\x07\x00\u202e")
    assert page.text.count(plain) >= 18
    assert lines[-1] == f"| {plain} |\n|---|\n| {plain} |\n"


def test_the_page_loads_nothing_and_may_run_nothing(folder):
    page = report(folder)
    loads = [a[key] for _, a in page.elements for key in ("src", "srcset", "data") if key in a]
    assert len(loads) == 2
    assert all(load.startswith("data:image/") for load in loads)
    assert [a["href"] for a in page.all("link")] == ["data:,"]
    assert not page.all("script")
    source = (folder / "report.html").read_text(encoding="utf-8")
    style = source.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    [policy] = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_a_figure_is_its_svg_as_it_is(folder):
    (folder / "figure1" / "figure.png").write_bytes(png())
    [image, _] = report(folder).all("img")
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).decode() == SVG
    assert image["width"] == "691"  # 518.4 points
    assert "Figure 1. Title of figure1" in image["alt"]


def test_the_png_steps_in_for_a_large_svg_and_for_none(folder):
    (folder / "figure1" / "figure.svg").write_text(SVG + " " * 500_000, encoding="utf-8")
    [alone, none] = report(folder).all("img")
    assert alone["src"].startswith("data:image/svg+xml;")
    assert none["src"].startswith("data:image/png;")
    assert none["width"] == "480"  # 800 dots at 160 to the inch
    (folder / "figure1" / "figure.png").write_bytes(png())
    assert all(a["src"].startswith("data:image/png;") for a in report(folder).all("img"))


def test_columns_of_numbers_align(folder):
    heads = [a.get("class") for a in report(folder).all("th") if a.get("scope") == "col"]
    assert heads[-3:] == [None, "number", None]  # names, numbers and a dash, words


def test_uneven_and_empty_tables_are_shown_as_they_are(folder):
    put_table(folder / "table2", [["a", "b"], ["1"], ["2", "3", "spare"]])
    put_table(put(folder, "table1"), [])
    assert "spare" in report(folder).text


def test_planned_and_used_time_are_summed(folder):
    text = report(folder).text
    assert "trainings 10.0 min 11.7 min drawing 12 s – total 10.2 min 11.7 min" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0, "0 s"), (59, "59 s"), (90, "1.5 min"), (5400, "1 h 30 min")],
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


def test_many_runs_are_folded_and_few_are_not(folder):
    few, many, deviations = [], [], []
    page = report(folder)
    for a in page.all("details"):
        (deviations if "id" in a else few if "open" in a else many).append(a)
    assert (len(few), len(many), len(deviations)) == (3, 1, 1)


def test_the_same_files_give_the_same_page_and_leave_nothing_else(folder):
    first = write_report(folder, ORDER, ABOUT).read_bytes()
    before = sorted(folder.rglob("*"))
    assert write_report(folder, ORDER, ABOUT).read_bytes() == first
    assert sorted(folder.rglob("*")) == before
    assert folder / "report.html" in before


def test_little_known_is_enough(tmp_path):
    folder = put(tmp_path / "smoke", "table1").parent
    (folder / "table1" / "verdict.json").write_text('{"claims": [], "title": null}')
    page = Page(write_report(folder, ORDER, {}))
    assert "Scale smoke ." in page.text
    assert "0 claims: 0 yes, 0 no, 0 inconclusive." in page.text
    assert "None" not in page.text


@pytest.mark.parametrize("text", [
    "{", "[]", '{"claims": 3}', '{"claims": [], "runs": "a"}', '{"claims": ["a"]}',
    '{"claims": [{"claim": "a"}]}', '{"claims": [{"claim": "a", "verdict": ["reproduced"]}]}',
    '{"claims": [{"claim": "a", "verdict": "reproduced", "evidence": 3}]}',
])  # fmt: skip
def test_a_damaged_verdict_is_named(folder, text):
    (folder / "table2" / "verdict.json").write_text(text)
    with pytest.raises(ValueError, match=r"table2.verdict\.json"):
        write_report(folder, ORDER, ABOUT)
    assert not (folder / "report.html").exists()


def test_a_damaged_table_is_named(folder):
    table = next(folder.glob("*/table.csv"))
    table.write_bytes(b"a,b\n\x80,1\n")
    with pytest.raises(ValueError, match=rf"{table} is damaged: 'utf-8'"):
        write_report(folder, ORDER, ABOUT)


def test_ledger_rows_are_the_claims_in_order(folder):
    rows = ledger_rows(folder, ORDER)
    told = [(row["artefact"], row["claim"], row["verdict"]) for row in rows]
    assert told == [("table2", "PReLU beats ReLU", "reproduced"),
                    ("table2", "LReLU is as ReLU", "not_reproduced"),
                    ("figure2", "He is first", "inconclusive"),
                    ("convergence", "He converges", "reproduced")]  # fmt: skip


def test_evidence_of_several_parts_is_a_list_of_them(folder):
    told = (
        "A: 3 points, n = 1; over images (these two nets only): 2; B: 1 point",
        "He left by step 400; Xavier never",
    )
    claims = [claim("a", "reproduced") | {"evidence": evidence} for evidence in told]
    put(folder, "table1", claims=claims)
    page = write_report(folder, ORDER, ABOUT).read_text(encoding="utf-8")
    listed = [found.strip() for found in re.findall(r"<li>(.*?)</li>", page, re.DOTALL)]
    a = "A: 3\xa0points, n\xa0=\xa01; over images (these two nets only): 2"
    assert {a, "B: 1\xa0point"} <= set(listed)
    assert "<p>He left by step 400; Xavier never</p>" in page


def test_the_markdown_ledger_gives_the_first_part_of_long_evidence(folder):
    put(folder, "table1", claims=[claim("a", "reproduced") | {"evidence": "one: 1; two: 2"}])
    assert ledger_markdown(folder, ORDER, "cpu")[2].endswith("| one: 1 … |")


def test_the_ledger_as_markdown(folder):
    put(folder, "table1", claims=[claim("a | b\nc <i>", "reproduced")])
    lines = ledger_markdown(folder, ORDER, "cpu")
    assert lines[:3] == [
        "| artefact | claim | holds on generated images? | evidence |",
        "|---|---|---|---|",
        "| Table 1 | a \\| b c &lt;i&gt; | ✓ yes | evidence of a \\| b c &lt;i&gt; |",
    ]
    assert "✗ not reproduced" in ledger_markdown(folder, ORDER, "quarter")[4]
    assert len(set(MARKS.values())) == 3


# A page around the report, 360 pixels wide: the report's own policy forbids scripts inside it.
LOOK = """<!DOCTYPE html><title>look</title><iframe src="%s" width="360" height="800"></iframe>
<pre></pre><script>
onload = () => {
  const [inside, page] = [frames[0], frames[0].document];
  const all = (what) => [...page.querySelectorAll(what)];
  console.warn("the console is heard");
  document.querySelector("pre").textContent = JSON.stringify({
    images: all("img").map((image) => image.naturalWidth),
    sections: all("section").map((section) => section.id),
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    width: inside.innerWidth, scripts: all("script").length,
    loads: inside.performance.getEntriesByType("resource").map((entry) => entry.name)
      .filter((name) => !name.startsWith("data:")),
  });
};
</script>"""


def browse(path, profile):
    """(the page's elements after its scripts, what was said on the console), by Chromium."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom",
               "--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage",
               "--allow-file-access-from-files", "--enable-logging=stderr", "--v=0",
               f"--user-data-dir={profile}", path.as_uri()]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, encoding="utf-8", start_new_session=True)  # fmt: skip
    try:
        dom, log = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):  # ends helpers that outlive it
            os.killpg(process.pid, signal.SIGKILL)
    return dom, [line for line in log.splitlines() if ":CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome")
def test_a_browser_shows_it_on_a_phone_without_complaint(folder, tmp_path):
    wide = [["scale s", *(f"column {i}" for i in range(20))], ["256", *["12.34 ± 0.56"] * 20]]
    long = "small30-relu-xavier-" + "x" * 90
    put_table(put(folder, "table1", title=f"{HOSTILE} {long}", runs=[long],
                  claims=[claim(HOSTILE + long, "inconclusive")]), wide)  # fmt: skip
    write_report(folder, ORDER, ABOUT)
    (tmp_path / "look.html").write_text(LOOK % "cpu/report.html", encoding="utf-8")
    dom, console = browse(tmp_path / "look.html", tmp_path / "profile")
    seen = json.loads(html.unescape(dom.partition("<pre>")[2].partition("</pre>")[0]))
    assert [line for line in console if "the console is heard" not in line] == []
    assert len(console) == 1
    assert len(seen["images"]) == 2
    assert all(width > 0 for width in seen["images"])
    assert set(ORDER) <= set(seen["sections"])
    assert (seen["width"], seen["overflow"]) == (360, 0)
    assert (seen["scripts"], seen["loads"]) == (0, [])
