"""Words that stand for several runs: Hydra's sweeps and `0..4`, counted before they expand."""

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delving.config import compose, expand
from delving.groups import choices

some = settings(max_examples=50)


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("seed=0..4", "0 1 2 3 4"), ("seed=3..3", "3"), ("seed=0..2,7", "0 1 2 7"),
        ("seed=5,0..1,9", "5 0 1 9"), ("seed=0..1,3..4", "0 1 3 4"), ("seed= 0..1 , 4", "0 1 4"),
        ("data.workers=-1..2", "-1 0 1 2"), ("seed=3,1", "3 1"), ("act=relu,prelu", "relu prelu"),
        ("train.lr=0.01,0.02", "0.01 0.02"), ("train.lr=1e-3,1", "0.001 1"),
        ("train.flip=true,false", "true false"), ("model.depth=null,20", "null 20"),
        ("precision=fp32,bf16", "fp32 bf16"), ("init.range=raw,scaled", "raw scaled"),
        ("model=small14,small30", "small14 small30"), ("model=small22,b", "small22 b"),
        ("act=choice(relu,prelu)", "relu prelu"), ("seed=choice(4)", "4"),
        ("seed='1','2'", "1 2"), ("seed=int(1.5),2", "1 2"), ("seed=tag(a,choice(1,2))", "1 2"),
        ("seed=range(3)", "0 1 2"), ("seed=range(1,8,3)", "1 4 7"), ("seed=range(3,0,-1)", "3 2 1"),
        ("train.lr=range(0.1,0.4,0.1)", "0.1 0.2 0.3"), ("seed=sort(3,1,2)", "1 2 3"),
        ("seed=sort(range(1,4),reverse=true)", "3 2 1"),
        ("act=glob(*)", " ".join(choices("act"))),
        ("act=glob([p*,r*],exclude=*shared)", "prelu relu"),
        ("train.s=[8,8],[8,16]", "[8,8] [8,16]"), ("train.switch=[],[0.5]", "[] [0.5]"),
        ("eval.protocols=[center],[center,dense]", "[center] [center,dense]"),
        ("eval.protocols=choice(center,dense)", "center dense"),
        ("family.small.epochs=1,2", "1 2"), ("family.large.s=[8,8],[8,16]", "[8,8] [8,16]"),
        ("eval.dense_s=sort(12,8)", "8 12"), ("eval.dense_s=choice([8],[8,12])", "[8] [8,12]"),
    ],
)  # fmt: skip
def test_a_sweep_is_told_one_by_one_in_its_order(word, values):
    key = word.partition("=")[0]
    found = expand([word])
    assert found == [[f"{key}={value}"] for value in values.split()]
    compose(["scale=smoke", *found[-1]])


@pytest.mark.parametrize(
    "word",
    ["seed=3", "act=relu", "train.s=8,16", "train.s=[8,16]", "eval.protocols=center,dense",
     "train.switch=0.5,0.8", "train.switch=", "eval.dense_s=8,12,15", "model=small22",
     "data.root=a,b", "data.root=0..4", "data.root=choice(a,b)", "output_root=x(y),z",
     "data.root=[a],[b]", "model.layers=[{conv1: '3x3, 4'},{fc1: classes}]"],
)  # fmt: skip
def test_what_is_one_value_stays_as_it_is(word):
    assert expand([word]) == [[word]]


def test_layers_are_swept_in_brackets():
    nets = [f"[{{conv1: '3x3, {n}'}},{{fc1: classes}}]" for n in (4, 8)]
    found = expand(["model.layers=" + ",".join(nets)])
    layers = [compose(["scale=smoke", *words]).model.layers for words in found]
    assert layers == [[{"conv1": f"3x3, {n}"}, {"fc1": "classes"}] for n in (4, 8)]


def test_words_keep_their_order_and_the_last_is_fastest():
    found = expand(["scale=smoke", "act=relu,prelu", "train.s=8,16", "seed=0..1"])
    assert found == [["scale=smoke", f"act={act}", "train.s=8,16", f"seed={seed}"]
                     for act in ("relu", "prelu") for seed in (0, 1)]  # fmt: skip
    assert expand([]) == [[]]


@some
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=3))
def test_the_product_is_that_of_nested_loops(spans):
    keys = ("train.batch", "data.workers", "seed")[: len(spans)]
    lots = [range(low, low + more + 1) for low, more in spans]
    found = expand([f"{k}={low}..{low + more}" for k, (low, more) in zip(keys, spans, strict=True)])
    assert found == [[f"{k}={n}" for k, n in zip(keys, chosen, strict=True)]
                     for chosen in itertools.product(*lots)]  # fmt: skip


def test_of_a_key_given_twice_the_last_word_counts():
    assert expand(["seed=0..4", "act=relu", "seed=7,8"]) == [
        ["act=relu", "seed=7"], ["act=relu", "seed=8"]
    ]  # fmt: skip
    depths = ["model.depth=30", "model=small22", "model.depth=26,27"]
    assert [compose(words).model.depth for words in expand(depths)] == [26, 27]


def test_shuffled_values_are_all_there_in_an_order_that_their_word_gives():
    word = "seed=shuffle(range(30))"
    found = expand([word])
    assert found == expand([word])
    assert found != expand(["seed=range(30)"])
    assert sorted(found) == sorted(expand(["seed=range(30)"]))
    assert len(expand(["act=shuffle(relu,prelu)"])) == 2


# --- how many ---
@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["seed=0..1000"], "1,001"), (["seed=0..999999999999"], "1,000,000,000,000"),
        (["seed=range(1000000000)"], "1,000,000,000"), (["seed=range(0,1e300)"], "10^300"),
        (["seed=0..99999999999999999999999999999999999999"], "10^38"),
        (["seed=shuffle(range(100000000000))"], "100,000,000,000"),
        (["train.lr=range(0,1,1e-9)"], "1,000,000,000"), 
        ([f"{key}=1..100" for key in ("seed", "train.batch", "data.workers")], "1,000,000"),
        ([f"{key}=1..1{20 * '0'}" for key in ("seed", "train.batch")], "10^40"),
        (["seed=0..500", "act=glob(*)"], "2,004"),
    ],
)  # fmt: skip
def test_too_many_runs_are_counted_and_not_made(words, count):
    started = time.process_time()
    with pytest.raises(ValueError, match="runs") as refusal:
        expand(words)
    assert time.process_time() - started < 1  # a guard against making them
    assert count in str(refusal.value)


def test_the_limit_is_the_callers_and_what_meets_it_passes():
    assert len(expand(["seed=0..4"], limit=5)) == 5
    with pytest.raises(ValueError, match="5 runs; at most 4"):
        expand(["seed=0..4"], limit=4)
    with pytest.raises(ValueError, match="1 runs; at most 0"):
        expand(["seed=0"], limit=0)


# --- what is refused ---
@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("seed=4..0", "write 0..4"), ("seed=1,4..0", "counts down"), ("seed=range(4,1)", "seed="),
        ("seed=range(0,4,0)", "step other than 0"), ("seed=range(nan,1)", "finite"),
        ("seed=range(0,inf)", "finite"), ("seed=,", "seed=,"), ("seed=1,", "seed=1,"),
        ("act=glob(x*)", "act=glob(x*)"), ("act=glob([1])", "act=glob"),
        ("seed=glob(*)", "seed=glob"), ("seed=choice()", "seed="),
        ("seed=interval(0,1)", "seed=interval(0,1)"), ("seed=choice(1,choice(2))", "seed="),
        ("seed=0..2..4", "seed=0..2..4"), ("seed=0.5..2", "seed=0.5..2"), ("seed=0..", "seed=0.."),
        ("seed=json(1)", "seed="), ("seed=range(a,b)", "seed="), ("seed=(1", "seed=(1"),
        ("seed=choice(" * 20, "nested"), ("seed=" + "1," * 5000, "longer"),
        ("trian.lr=0.1,0.2", "did you mean train.lr"), ("sed=0..4", "did you mean seed"),
        ("act=relu,prleu", "did you mean prelu"), ("act=0..2", "act=0: choose from"),
        ("model=small14,small13", "model=small13: choose from"), ("model.name=a,b", "model=..."),
        ("train.lr=0.01,fast", "train.lr=fast"), ("train.lr=0..2", "train.lr=0"),
        ("train.lr=${seed},1", "interpolation"), ("train.s=[8,8],8", "train.s=[8]"),
        ("train.s=[8,8],[16,8]", "train.s=[16, 8]"), ("train.s=shuffle([8,16])", "random"),
        ("eval.dense_s=8..12", "eval.dense_s"), ("precision=fp32,fp8", "precision=fp8"),
        ("reproduce.seeds.large=0,1", "a setting of `delving reproduce`"),
        ("family.small.epochs=1,x", "family.small.epochs=x"),
        ("device=cpu,cuda", "device=cpu,cuda"), ("seed=1,-1", "seed=-1"), ("act", "not key=value"),
    ],
)  # fmt: skip
def test_a_sweep_that_is_none_is_refused_naming_it(word, words):
    with pytest.raises(ValueError, match=r"\S") as refusal:
        expand(["scale=smoke", word])
    assert words in str(refusal.value)
    assert word.partition("=")[0] in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    "word",
    ["seed=0..4", "seed=1,2", "act=relu,prelu", "model=small14,small30", "train.lr=0.1,0.2",
     "precision=fp32,bf16", "seed=range(4)", "act=glob(*)", "train.s=[8,8],[8,16]",
     "eval.protocols=choice(center,dense)"],
)  # fmt: skip
def test_where_one_run_is_composed_a_sweep_is_refused_with_the_way_to_several(word):
    with pytest.raises(ValueError, match=r"-m") as refusal:
        compose([word])
    assert word in str(refusal.value)
