"""Any words at all end with 0, or with 2 and one line that names the word to blame."""

import time

import pytest
from calling import call
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from delving.config import SEEDS, WORDS, compose, expand
from delving.groups import GROUPS, choices
from delving.words import cut, shown

NAMES = [*GROUPS, *WORDS, *SEEDS]
QUICK = settings(max_examples=60,
                 suppress_health_check=list(HealthCheck))  # fmt: skip
THOROUGH = settings(QUICK, max_examples=2000)

SECONDS = 2  # of CPU time: most calls take a hundredth of a second, composing up to half a second

# --- what is typed ---
SIGNS = "\"'`[]{}()<>$@+~!%^&*|,.:;=?#\\/-_ \t\n\r\0\x1b\x85\u2028\u202e\udcffé漢😀٣½019eExnaif"
TOKENS = [
    "${seed}", "${oc.env:HOME}", "$HOME", "nan", "-inf", "1e400", "-1e30", "9" * 400, "0x10", "1_0",
    "null", "None", "true", "???", "..", "0..4", "4..0", "1,2", "[1,2],[3]", "choice(1,2)",
    "choice(", "glob(*)", "range(3)", "range(0,1,0)", "shuffle(1,2)", "sort(2,1)", "int(x)",
    "tag(a,1)", "interval(0,1)", "[" * 60, "{" * 60, "(" * 60, "[[1]]", "{a:1}", "[{a: 1}]", "''",
    "!!python/name:os.system", "&a", "*a", "x" * 6000, "1," * 3000, "a=b", "../..", "~", "@x", "+1",
]  # fmt: skip
nasty = st.one_of(
    st.sampled_from(TOKENS), st.text(SIGNS, max_size=12), st.text(max_size=6),
    st.lists(st.sampled_from(TOKENS) | st.text(SIGNS, max_size=3), max_size=3).map("".join),
    st.integers().map(str), st.floats().map(repr),
)  # fmt: skip


def edit(key, place, how):
    """A key with one slip in it."""
    place %= len(key)
    before, there, after = key[:place], key[place], key[place + 1 :]
    return {
        "drop": before + after, "double": before + there + there + after,
        "swap": before + after[:1] + there + after[1:], "other": before + "q" + after,
    }[how]  # fmt: skip


SLIPS = ["drop", "double", "swap", "other"]
near = st.builds(edit, st.sampled_from(NAMES), st.integers(0, 40), st.sampled_from(SLIPS))
real = st.sampled_from(NAMES)
marked = st.builds("{}{}{}".format, st.sampled_from(["+", "++", "~", "@", "hydra.", "", " "]), real,
                   st.sampled_from(["", "@x", "@a:b", "[0]", ".", " ", "/a"]))  # fmt: skip
anything = st.text(SIGNS, max_size=12) | st.text(max_size=8)
bad_words = st.builds("{}={}".format, st.one_of(near, marked, anything), nasty) | anything
PLAIN = ["1", "7", "8,8", "[8,16]", "0.5", "0.25,0.5", "true", "null", "14", "16", "28", "auto",
         "large", "cpu", "dense", "scaled",
         *(name for group in GROUPS for name in choices(group))]  # fmt: skip
fitting = st.builds("{}={}".format, real, st.sampled_from(PLAIN))
words = st.one_of(bad_words, bad_words, fitting, st.builds("{}={}".format, real, nasty))
# Words that are never refused, whatever stands beside them.
GOOD = ["seed=3", "train.lr=0.02", "eval.dense_s=8,12", "data.root=a b,c=d", "init=xavier",
        "output_root=~/x", "train.switch=", "device=cpu", "seed=5"]  # fmt: skip
beside = st.lists(st.sampled_from(GOOD), max_size=2)


def timed(*words):
    """(exit code, stdout, stderr, seconds of CPU time) of a command in this process."""
    started = time.process_time()
    return (*call(*words), time.process_time() - started)


def names(message, word):
    """Whether a message tells which word it is about: by itself, or by its key."""
    key = word.partition("=")[0]
    told = [shown(word), repr(cut(word)), f"no {cut(key)!r}", *([key] if key in NAMES else [])]
    # An error is printed in one line, with single spaces.
    return any(" ".join(text.split()) in message for text in told)


def check(word, good):
    code, out, err, seconds = timed("show", "scale=smoke", *good, "--", word)
    assert code in (0, 2)
    assert seconds < SECONDS
    assert "Traceback" not in out + err
    if code == 0:
        assert (err, word.partition("=")[0] in NAMES) == ("", True)
        assert "total" in out
    else:
        assert out == ""
        assert err.startswith("delving: ")
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1
        assert names(err, word)


@pytest.fixture(scope="module", autouse=True)
def warm():
    assert call("show", "scale=smoke")[0] == 0


@QUICK
@given(words, beside)
@example("seed=" + "[" * 3000, [])
@example("train.lr=" + "9" * 5000, [])
@example("act=relu\nact=prelu", [])
@example("data.root=\0", [])
@example("model=vgg19", [])
@example("model.width=90", [])
@example("data.classes=100000", [])
def test_a_word_is_taken_or_refused_in_one_line_that_names_it(word, good):
    check(word, good)


@pytest.mark.long
@pytest.mark.tally("a random override: one line that names it, no traceback, no hang", 2000)
@THOROUGH
@given(words, beside)
def test_each_of_many_words_is_taken_or_refused_in_one_line_that_names_it(word, good):
    check(word, good)


@pytest.mark.long
@pytest.mark.tally("a random list of overrides: exit 0 or 2", 2000)
@THOROUGH
@given(st.lists(words, max_size=5))
def test_many_words_together_end_with_0_or_2_and_one_line(several):
    code, out, err, seconds = timed("show", "scale=smoke", "--", *several)
    assert code in (0, 2)
    assert seconds < SECONDS
    assert "Traceback" not in out + err
    assert len(err.splitlines()) == (code == 2)
    assert code == 0 or any(names(err, word) for word in several)


# --- sweeps ---
calls = ["choice({})", "range({})", "sort({})", "shuffle({})", "glob([{}])", "int({})", "tag(a,{})"]
parts = st.lists(st.sampled_from([*PLAIN, *TOKENS]) | st.integers(-3, 9).map(str), min_size=1,
                 max_size=4).map(",".join)  # fmt: skip
listed = parts | st.builds(str.format, st.sampled_from(calls), parts)
spans = st.builds("{}..{}".format, st.integers(-2, 40), st.integers(-2, 40))
sweeping = st.builds("{}={}".format, real, listed | spans)


def check_runs(word):
    started = time.process_time()
    try:
        runs = expand(["scale=smoke", word], limit=60)
    except ValueError as error:
        runs, refusal = [], str(error)
        told = names(refusal, word) or "at most 60" in refusal
    assert time.process_time() - started < SECONDS
    assert runs or (told and len(refusal.splitlines()) == 1)
    for run in [runs[0], runs[-1]] if runs else []:
        assert compose(run).scale == "smoke" or word.startswith("scale=")


@settings(QUICK, max_examples=30)
@given(sweeping)
@example("model=small14,small22")
@example("scale=cpu")
def test_a_sweep_is_refused_by_name_or_makes_runs_that_compose(word):
    check_runs(word)


@pytest.mark.long
@pytest.mark.tally("a random sweep: refused by name, or its runs compose", 2000)
@THOROUGH
@given(sweeping)
def test_each_of_many_sweeps_is_refused_by_name_or_makes_runs_that_compose(word):
    check_runs(word)


# --- what was meant ---
@pytest.mark.parametrize("key", NAMES)
def test_a_single_slip_anywhere_in_a_key_suggests_that_key(key):
    for place in range(len(key)):
        for how in SLIPS:
            typo = edit(key, place, how)
            if typo in NAMES:
                continue
            with pytest.raises(ValueError, match="did you mean") as refusal:
                compose([f"{typo}=1"])
            meant = str(refusal.value).partition("did you mean ")[2].rstrip("?").split(" or ")
            assert key in meant, typo


@pytest.mark.parametrize("group", GROUPS)
def test_a_slip_in_a_choice_of_six_letters_or_more_suggests_it(group):
    for name in [name for name in choices(group) if len(name) > 5 and not name[-1].isdigit()]:
        for place in range(len(name)):
            typo = edit(name, place, "double")
            with pytest.raises(ValueError, match=f"did you mean {name}"):
                compose([f"{group}={typo}"])
