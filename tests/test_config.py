"""Everything in conf/ composes, every slip is refused by name, a run's name is its meaning."""

import importlib
import itertools
import math
import re
from collections import Counter

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from delving import groups
from delving.config import KEYS, TEXTS, WORDS, amend, compose, load, to_yaml
from delving.groups import GROUPS, choices
from delving.naming import deviations, name_run
from delving.schema import NEUTRAL, check_families, differences, leaves

few = settings(max_examples=4)
many = settings(max_examples=200)
NETS = ("model", "act", "init", "scale")


def pairwise():
    """Choices of model, act, init and scale such that any two of them meet in some choice."""
    everything = list(itertools.product(*map(choices, NETS)))
    missing = {p for c in everything for p in itertools.combinations(zip(NETS, c, strict=True), 2)}
    picked = []
    while missing:
        pairs = {c: set(itertools.combinations(zip(NETS, c, strict=True), 2)) for c in everything}
        best = max(everything, key=lambda c: len(pairs[c] & missing))
        missing -= pairs[best]
        picked.append(best)
    return picked


def words(choice):
    return [f"{group}={name}" for group, name in zip(NETS, choice, strict=True)]


# --- what composes ---
@pytest.mark.parametrize("choice", pairwise(), ids="-".join)
def test_every_file_in_conf_composes_with_every_other(choice):
    composed = compose(words(choice))
    model, act, init, scale = choice
    assert (composed.model.name, composed.act.name) == (model, act)
    assert (composed.init.name, composed.scale) == (init, scale)
    assert not any("${" in str(value) for _, value, _ in leaves(composed))


@pytest.mark.long
@pytest.mark.parametrize("scale", choices("scale"))
def test_the_whole_product_of_conf_composes_under_names_of_its_own(scale):
    product = list(itertools.product(*map(choices, NETS[:3])))
    names = [name_run(compose(words((*choice, scale)))) for choice in product]
    assert len(set(names)) == len(product)


@pytest.mark.parametrize("group", ["data", "train", "eval"])
def test_every_other_group_composes(group):
    for name in choices(group):
        compose([f"{group}={name}"])
    for name in choices("data") if group == "data" else []:
        assert compose([f"data={name}"]).data.name == name


def test_a_new_file_in_conf_is_found_unedited(own_conf):
    text = (own_conf / "model" / "small14.yaml").read_text()
    (own_conf / "model" / "mine.yaml").write_text(text.replace("name: small14", "name: mine"))
    (own_conf / "model" / "._mine.yaml").write_bytes(b"\0\5\x16\7")  # as macOS makes them
    assert "mine" in choices("model")
    assert "._mine" not in choices("model")
    assert compose(["model=mine"]).model.name == "mine"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [("name: small14", "name: other", "name: other; must be mine"),
     ("name: small14", "name:  'mine'  # ours", None),
     ("family: small", "family: huge", "family: huge; must be small or large"),
     ("family: small", 'family: "large"', None)],
)  # fmt: skip
def test_a_file_of_another_name_or_family_is_told(own_conf, old, new, told):
    text = (own_conf / "model" / "small14.yaml").read_text()
    text = text.replace("name: small14", "name: mine") if "name" not in old else text
    (own_conf / "model" / "mine.yaml").write_text(text.replace(old, new))
    if not told:
        assert compose(["model=mine"]).model.name == "mine"
        return
    with pytest.raises(ValueError, match=f"^conf/model/mine.yaml: {told}$"):
        compose(["model=mine"])


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ("[{conv1: '7x7, 64'}, gap, {fc1: classes}]", "7x7, 64, /2; gap is not one"),
        ("{conv1: '7x7, 64', fc1: classes}", "a mapping; model.layers is a list of {name: "),
        ("[{conv1: '7x7, 9'}, {spp: {3,1}}, {fc1: classes}]", 'written in quotes, "{3,1}"'),
        ("[{conv1: '7x7, 64'}, {spp: '{3,1}'}]", "the last is to be an fc, not spp"),
        ("[{stem: '7x7, 64'}, {fc1: classes}]", "the first is to be a conv, not stem"),
        ("[{conv1: '7x7, 64'}, {conv1: '2x2, 4'}, {fc1: classes}]", "conv1 is there twice"),
        ("[{conv-1: '7x7, 64'}, {fc1: classes}]", "conv-1: a name is letters, and a number after"),
        ("[{conv1: 7.5}, {fc1: classes}]", "conv1: 7.5 is no notation"),
        ("[]", "1 to 200 of them, not 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_list_of_layers_is_told_of_the_layer(own_conf, layers, told):
    (own_conf / "model" / "mine.yaml").write_text(f"name: mine\nlayers: {layers}\n")
    with pytest.raises(ValueError, match=re.escape(told)):
        compose(["model=mine"])


def test_a_description_is_the_opening_comment_or_else_the_artefacts_own(own_conf):
    (own_conf / "act" / "elu.yaml").write_text("# ELU.      # conf/act/elu.yaml\nname: elu\n")
    assert groups.describe("act", "elu") == "ELU."
    (own_conf / "paper" / "table5.yaml").write_text("place: 90\n")
    own = importlib.import_module("delving.paper.table5").__doc__.splitlines()[0]
    assert groups.describe("paper", "table5") == own
    (own_conf / "paper" / "table9.yaml").write_text("place: 91\n")  # without a file of its name
    assert groups.describe("paper", "table9") == ""


def test_scales_are_listed_from_small_to_large_and_described():
    assert choices("scale") == ["smoke", "cpu", "quarter", "paper"]
    for group in GROUPS:
        for name in choices(group):
            assert len(groups.describe(group, name)) > 10, f"conf/{group}/{name}.yaml says nothing"


def test_without_words_it_is_the_cpu_scale_on_generated_images():
    usual = compose()
    assert (usual.scale, usual.data.name, usual.seed) == ("cpu", "shapes", 0)
    assert (usual.model.name, usual.act.name, usual.init.name) == ("small14", "prelu", "he")


SMALL = {"train.epochs": 75, "train.s": [8, 8], "eval.protocols": ["ten_view"]}
LARGE = {"train.epochs": 80, "train.s": [8, 16], "eval.protocols": ["ten_view", "dense"]}


@pytest.mark.parametrize(
    ("model", "wanted"),
    [("small14", SMALL), ("small30", SMALL), ("a", LARGE), ("b", LARGE), ("c", LARGE)],
)
def test_the_paper_scale_is_the_papers_recipe(model, wanted):
    wanted = wanted | {
        "train.batch": 128, "train.lr": 0.01, "train.momentum": 0.9, "train.weight_decay": 5e-4,
        "train.dropout": 0.5, "train.switch": [], "train.warmup": 0, "train.flip": True,
        "train.color": 0.1, "data.crop": 224, "model.width": 1, "model.stem_stride": None,
        "act.slope": 0.25, "init.range": "raw", "eval.ten_view_s": 8, "eval.dense_s": [8, 12, 15],
        "data.name": "imagenet", "data.classes": None, "init.name": "he_backward",
    }  # fmt: skip
    composed = compose(["scale=paper", f"model={model}", "train.lr=0.01"])  # paper.yaml has 0.003
    found = {key: value for key, value, _ in leaves(composed)}
    assert {key: found[key] for key in wanted} == wanted
    crop = composed.data.crop
    assert [k * crop // 7 for k in composed.eval.dense_s] == [256, 384, 480]


@pytest.mark.parametrize("scale", choices("scale"))
def test_both_arms_of_a_comparison_differ_in_nothing_else(scale):
    def knobs(*overrides):
        return compose([f"scale={scale}", *overrides])

    def apart(a, b):
        return set(differences(knobs(*a), knobs(*b)))

    assert apart(["act=relu"], ["act=prelu"]) == {"act.name", "act.slope"}
    assert apart(["act=lrelu"], ["act=prelu"]) == {"act.name"}
    assert apart(["init=he"], ["init=xavier"]) == {"init.name"}


def test_small_n_is_small14_with_another_depth():
    deeper = compose(["model=small22"])
    assert (deeper.model.name, deeper.model.depth) == ("small22", 22)
    assert deeper.model.layers == compose(["model=small14"]).model.layers


@pytest.mark.parametrize(
    ("first", "last"),
    [("model=small22", "model=c"), ("act=relu", "act=prelu"), ("seed=1", "seed=2"),
     ("model=c", "model=small22"), ("train.lr=0.1", "train.lr=0.2"), ("device=cpu", "device=auto")],
)  # fmt: skip
def test_of_two_words_for_a_key_the_last_counts_wholly(first, last):
    assert compose(["scale=smoke", first, last]) == compose(["scale=smoke", last])


def test_a_word_said_again_counts_where_it_was_said_last():
    assert compose(["model.depth=30", "model=small22", "model.depth=26"]).model.depth == 26
    assert compose(["model.depth=30", "model=small22"]).model.depth == 22


# --- lists ---
@pytest.mark.parametrize("text", ["8,12", "[8,12]", "[8, 12]"])
def test_lists_may_go_without_brackets(text):
    assert compose([f"eval.dense_s={text}"]).eval.dense_s == [8, 12]


def test_a_list_of_one_needs_no_brackets_and_none_means_empty():
    assert compose(["eval.protocols=dense"]).eval.protocols == ["dense"]
    assert compose(["train.switch=0.5"]).train.switch == [0.5]
    assert compose(["train.switch="]).train.switch == []


@pytest.mark.parametrize("word", ["train.lr=0.1,0.2", "seed=1,2", "model=a,b", "seed=0..4"])
def test_a_list_is_refused_where_one_value_belongs(word):
    with pytest.raises(ValueError, match=word.split("=")[0]):
        compose([word])


# --- what is refused ---
NO_TEXTS = [key for key in WORDS if key not in TEXTS]
NEEDED = [
    key
    for key, f in WORDS.items()
    if "None" not in str(f.type) and key not in (*GROUPS, *(f"{g}.name" for g in GROUPS))
]


@pytest.mark.parametrize(
    ("key", "value"),
    [*((key, "{a: 1}") for key in NO_TEXTS), *((key, "null") for key in NEEDED)],
)
def test_of_a_value_of_a_wrong_kind_it_is_told_what_there_may_be(key, value):
    what = "true or false" if WORDS[key].type is bool else WORDS[key].metadata["check"][0]
    what = what([{"a": 1} if value == "{a: 1}" else None]) if callable(what) else what
    with pytest.raises(ValueError, match=f"^{key}=.*: must be {re.escape(what)}$"):
        compose([f"{key}={value}"])


def test_no_value_is_told_as_it_was_typed():
    with pytest.raises(ValueError, match=r"^output_root=null: must be a path"):
        compose(["output_root=null"])


def misspell(word, place, kind):
    place %= len(word)
    if kind == "drop":
        return word[:place] + word[place + 1 :]
    if kind == "double":
        return word[:place] + word[place] + word[place:]
    return word[:place] + word[place : place + 2][::-1] + word[place + 2 :]


typos = st.builds(
    misspell, st.sampled_from(sorted(KEYS)), st.integers(0, 40),
    st.sampled_from(["drop", "double", "swap"]),
)  # fmt: skip


@many
@given(typos)
@example("learning_rate")
@example("train.learning_rate")
@example("lr")
@example("")
def test_a_misspelt_key_is_refused_by_name_with_advice(typo):
    assume(typo not in KEYS and typo not in GROUPS)
    with pytest.raises(ValueError, match=r"did you mean|there is ") as refusal:
        compose([f"{typo}=1"])
    assert repr(typo) in str(refusal.value)


@many
@given(st.data())
def test_a_single_slip_in_a_knob_suggests_that_knob(data):
    key = data.draw(st.sampled_from([k for k in sorted(KEYS) if len(k.split(".")[-1]) > 4]))
    typo = misspell(key, data.draw(st.integers(key.find(".") + 1, len(key) - 2)), "swap")
    assume(typo not in KEYS and typo not in GROUPS)
    with pytest.raises(ValueError, match="did you mean") as refusal:
        compose([f"{typo}=1"])
    assert key in str(refusal.value).partition("did you mean")[2]


@many
@given(st.sampled_from(GROUPS), st.data())
def test_a_misspelt_choice_is_refused_by_name_with_the_choices(group, data):
    names = choices(group)
    name = data.draw(st.sampled_from(names))
    typo = misspell(
        name, data.draw(st.integers(0, 40)), data.draw(st.sampled_from(["drop", "double"]))
    )
    assume(typo not in names and not typo.startswith("small"))
    with pytest.raises(ValueError, match="choose from") as refusal:
        compose([f"{group}={typo}"])
    assert f"{group}={typo}" in str(refusal.value)
    assert all(choice in str(refusal.value) for choice in names)


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("scale=papr", "paper"), ("act=prlu", "prelu"), ("init=xaver", "xavier"),
        ("lr=0.1", "train.lr"), ("epochs=3", "train.epochs"), ("root=x", "data.root"),
        ("model=small13", "did you mean small14?"), ("model=small2000", "at most 1,000"),
        ("model.name=a", "model="), ("act.name=relu", "act="),
        ("trian.lr=1", "train.lr"), ("precision=fp16", "bf16"), ("init.range=norm", "normalised"),
        ("eval.protocols=tenview", "ten_view"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_word_and_says_what_to_write(word, advice):
    with pytest.raises(ValueError, match=re.escape(word.partition("=")[0])) as refusal:
        compose([word])
    assert advice in str(refusal.value)


@pytest.mark.parametrize(
    "word",
    [
        "train.lr=nan", "train.lr=inf", "train.lr=-inf", "train.lr=0", "train.lr=-0.1",
        "train.lr=", "train.lr=null", "train.lr=fast", "train.epochs=-1", "train.epochs=0",
        "train.epochs=nan", "train.batch=0", "train.batch=-128", "train.batch=1.5",
        "train.batch=many", "train.micro_batch=0", "train.dropout=1", "train.dropout=-0.1",
        "train.switch=0.8,0.5", "train.switch=0,0.5", "train.switch=0.5,1", "train.switch=0.5,nan",
        "train.s=16,8", "train.s=8", "train.s=6,8", "train.s=8,9,10", "train.momentum=1",
        "train.weight_decay=-1", "train.weight_decay=nan", "train.warmup=1", "train.flip=maybe",
        "train.flip=2",
        "train.color=-0.1", "data.crop=30", "data.crop=0", "data.crop=-7", "data.classes=1",
        "data.classes=0", "data.train_images=0", "data.workers=-2", "data.cache_gb=-1",
        "seed=-1", "seed=1.5", "seed=one", "seed=null", "model.width=0", "model.width=nan",
        "model.stem_stride=0", "act.slope=nan", "act.slope=inf", "init.std=0", "precision=fp16",
        "eval.protocols=", "eval.protocols=[]", "eval.dense_s=", "eval.dense_s=6", "eval.batch=0",
        "eval.every=0", "eval.images=0", "eval.ten_view_s=6", "model.depth=0",
    ],
)  # fmt: skip
def test_an_impossible_value_is_refused_naming_its_key(word):
    with pytest.raises(ValueError, match=word.split("=")[0]):
        compose([word])


@pytest.mark.parametrize("word", ["foo", "", "lr", "~train", "--lr", "model"])
def test_a_word_that_is_no_assignment_is_refused(word):
    with pytest.raises(ValueError, match="not key=value"):
        compose([word])


@pytest.mark.parametrize(
    "word",
    ["+train.lr=1", "++foo=1", "family=1", "family.small=1", "hydra.run.dir=x", "schema=1",
     "hydra/launcher=x", "model@act=a", "train.=1", ".lr=1"],
)  # fmt: skip
def test_hydras_own_syntax_opens_no_back_door(word):
    with pytest.raises(ValueError, match="there is no"):
        compose([word])


@pytest.mark.parametrize(
    "word",
    ["train.lr=${seed}", "data.root=${oc.env:HOME}", "output_root=a/${scale}", "seed=${now:%S}"],
)
def test_interpolations_are_refused(word):
    with pytest.raises(ValueError, match=r"interpolation"):
        compose([word])


@pytest.mark.parametrize(
    ("model", "word", "own"),
    [("small14", "family.large.epochs=2", "family.small.epochs"),
     ("c", "family.small.s=[8,8]", "family.large.s")],
)  # fmt: skip
def test_a_word_on_the_other_family_of_nets_is_refused_where_it_would_do_nothing(model, word, own):
    words = ["scale=smoke", f"model={model}", word]
    with pytest.raises(ValueError, match=re.escape(own)):
        check_families(words, [compose(words)])
    assert compose(words) == compose(words[:2])  # a reproduction has nets of both
    check_families(words, [compose(["scale=smoke", f"model={name}"]) for name in ("small14", "c")])


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("scale/smoke.yaml", "  batch: 32", "  bacth: 32"),
        ("scale/smoke.yaml", "train:", "trian:"),
        ("act/prelu.yaml", "slope:", "slop:"),
        ("model/small14.yaml", "family: small", "famly: small"),
        ("init/he.yaml", "name: he", "nam: he"),
    ],
)
def test_a_typo_in_a_yaml_is_refused_naming_the_key(own_conf, file, old, new):
    text = (own_conf / file).read_text()
    assert old in text
    (own_conf / file).write_text(text.replace(old, new, 1))
    key = new.strip().partition(":")[0]
    with pytest.raises(ValueError, match=key):
        compose(["scale=smoke", "model=small14", "act=prelu", "init=he"])


def test_an_impossible_value_in_a_yaml_is_refused_naming_the_key(own_conf):
    file = own_conf / "scale" / "smoke.yaml"
    file.write_text(file.read_text().replace("crop: 28", "crop: 29"))
    with pytest.raises(ValueError, match=r"data\.crop=29"):
        compose(["scale=smoke"])


# --- save and load ---
@few
@given(
    scale=st.sampled_from(choices("scale")), model=st.sampled_from(choices("model")),
    seed=st.integers(0, 2**31), lr=st.floats(1e-6, 10), root=st.sampled_from(["null", "a/b", "07"]),
    switch=st.sampled_from(["", "0.25", "0.1,0.9"]),
)  # fmt: skip
def test_a_configuration_survives_saving_and_loading(tmp_path_factory, scale, model, seed, lr, root,
                                                     switch):  # fmt: skip
    saved = compose([f"scale={scale}", f"model={model}", f"seed={seed}", f"train.lr={lr!r}",
                     f"data.root={root}", f"train.switch={switch}"])  # fmt: skip
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    path.write_text(to_yaml(saved))
    assert load(path) == saved
    assert "${" not in path.read_text()
    assert (saved.train.lr, saved.seed) == (lr, seed)


def test_a_saved_configuration_names_every_knob(tmp_path):
    text = to_yaml(compose(["scale=smoke"]))
    for key in KEYS:
        assert f"{key.split('.')[-1]}:" in text


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [("momentum:", "momentun:", "momentun"), ("seed: 0", "seed: -3", "seed"),
     ("crop: 28", "crop: wide", "crop")],
)  # fmt: skip
def test_a_saved_configuration_that_does_not_fit_is_refused(tmp_path, old, new, named):
    path = tmp_path / "config.yaml"
    text = to_yaml(compose(["scale=smoke"]))
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=named):
        load(path)


def test_a_missing_saved_configuration_is_refused_by_its_path(tmp_path):
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load(tmp_path / "config.yaml")


# --- the run's name ---
@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "small14-prelu-he-s0"),
        (["act=relu", "seed=3"], "small14-relu-he-s3"),
        (["model=c", "init=xavier"], "c-prelu-xavier-s0"),
        (["model=small22"], "small22-prelu-he-s0"),
        (["train.lr=0.02"], "small14-prelu-he-lr0.02-s0"),
        (["train.lr=2e-2"], "small14-prelu-he-lr0.02-s0"),
        (["train.lr=0.005"], "small14-prelu-he-s0"),
        (["train.epochs=3", "train.lr=0.02", "data.crop=35"],
         "small14-prelu-he-crop35-epochs3-lr0.02-s0"),
        (["train.lr=0.02", "data.crop=35", "train.epochs=3"],
         "small14-prelu-he-crop35-epochs3-lr0.02-s0"),
        (["train=jittered"], "small14-prelu-he-s8_16-s0"),
        (["data=tiny_imagenet"], "small14-prelu-he-tiny_imagenet-s0"),
        (["data=folder", "data.root=some/where/pets"], "small14-prelu-he-folder-pets-s0"),
        (["data=folder", "data.root=my pets/"], "small14-prelu-he-folder-mypets-s0"),
        (["data=folder", "data.root=pets/a/.."], "small14-prelu-he-folder-pets-s0"),
        (["data=folder", "data.root=犬"], "small14-prelu-he-folder-1e82f9b0-s0"),
    ],
)  # fmt: skip
def test_a_run_is_named_by_its_meaning(overrides, name):
    assert name_run(compose(["scale=smoke", *overrides])) == name


def test_the_runs_of_a_sweep_are_named_without_reading_conf_for_each(monkeypatch):
    """A thousand seeds are planned in seconds."""
    first, *others = (compose(["scale=smoke", "act=relu", f"seed={seed}"]) for seed in range(3))
    assert name_run(first) == "small14-relu-he-s0"
    monkeypatch.setattr(groups, "choices", lambda group: pytest.fail(f"{group} is read again"))
    monkeypatch.setattr(groups, "_read", lambda path: pytest.fail(f"{path} is read again"))
    assert [name_run(config) for config in others] == ["small14-relu-he-s1", "small14-relu-he-s2"]


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_a_scales_limits_are_on_generated_images_alone(scale):
    def limits(*words):
        data = compose([f"scale={scale}", *words]).data
        return data.classes, data.train_images, data.val_images

    assert None not in limits()
    assert limits("data=folder") == (None, None, None)
    assert limits("data=folder", "data.val_images=5") == (None, None, 5)
    assert limits("data=shapes") == limits()


@pytest.mark.parametrize("scale", choices("scale"))
def test_a_scales_own_values_are_no_part_of_a_name(scale):
    usual = compose([f"scale={scale}"])
    assert name_run(usual) == f"small14-prelu-{usual.init.name}-s0"


@pytest.mark.parametrize(
    "word",
    ["device=cpu", "data.workers=3", "output_root=elsewhere", "data.root=there", "eval.batch=7",
     "train.micro_batch=8", "data.cache_gb=1", "train.log_every=1", "train.checkpoint_minutes=1"],
)  # fmt: skip
def test_where_and_how_fast_is_no_part_of_a_name(word):
    assert name_run(compose(["scale=smoke", word])) == "small14-prelu-he-s0"


def test_a_long_name_ends_in_a_hash_and_still_in_the_seed():
    long = ["scale=smoke", "train.lr=0.0213", "train.epochs=3.75", "train.weight_decay=0.00012",
            "train.momentum=0.85", "data.crop=35"]  # fmt: skip
    name = name_run(compose([*long, "seed=12"]))
    assert len(name) <= 60
    assert name.startswith("small14-prelu-he-")
    assert name.endswith("-s12")
    assert name == name_run(compose(["scale=smoke", "seed=12", *reversed(long[1:])]))
    other = name_run(compose([*long[:-1], "data.crop=42", "seed=12"]))
    assert other != name


meanings = st.fixed_dictionaries(
    {
        "train.lr": st.sampled_from([0.01, 0.02, 0.002]),
        "train.epochs": st.sampled_from([2, 3]),
        "train.momentum": st.sampled_from([0.9, 0.99]),
        "train.flip": st.booleans(),
        "eval.dense_s": st.sampled_from(["8,12,15", "8,12", "8"]),
        "seed": st.integers(0, 2),
    }
)


@settings(max_examples=5)
@given(meanings, meanings)
def test_another_meaning_has_another_name_and_the_same_has_the_same(one, other):
    names = [name_run(compose(["scale=smoke", *(f"{k}={v}" for k, v in m.items())]))
             for m in (one, other)]  # fmt: skip
    assert (names[0] == names[1]) == (one == other)
    assert all("/" not in name and " " not in name for name in names)


def test_the_last_parts_of_meaningful_knobs_are_unique():
    meaningful = [key for key in KEYS if key not in NEUTRAL and not key.endswith(".name")]
    assert max(Counter(key.split(".")[-1] for key in meaningful).values()) == 1


# --- deviations ---
PAPERS = [("prelu", model) for model in choices("model")] + [("relu", "small14"), ("relu", "c")]


@pytest.mark.parametrize(("act", "model"), PAPERS)
def test_nothing_deviates_at_the_papers_scale(act, model):
    words = ["scale=paper", f"model={model}", f"act={act}", "seed=4", "train.lr=0.01"]
    assert deviations(compose(words)) == []


@pytest.mark.parametrize(
    ("scale", "keys"),
    [
        ("quarter", "model.stem_stride init.name init.range data.name data.crop train.epochs "
                    "train.warmup train.switch"),
        ("cpu", "model.width model.stem_stride init.name init.range data.name data.crop "
                "train.epochs train.batch train.switch"),
        ("smoke", "model.width data.train_images data.classes train.batch"),
    ],
)  # fmt: skip
def test_a_scales_deviations_are_listed_with_both_values(scale, keys):
    lines = deviations(compose([f"scale={scale}"]))
    listed = [line.split()[0] for line in lines]
    assert set(keys.split()) <= set(listed)
    assert all("(paper: " in line for line in lines)
    assert not set(listed) & {"seed", "scale", "device"}


def test_an_override_is_a_deviation():
    assert deviations(compose(["scale=paper", "train.lr=0.02"])) == ["train.lr 0.02 (paper: 0.01)"]
    few = compose(["scale=paper", "data.classes=50", "model.stem_stride=1"])
    told = {"model.stem_stride 1 (paper: as listed)", "data.classes 50 (paper: all)"}
    assert told <= set(deviations(few))


# --- scoring with other words ---
@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(compose(["scale=smoke", "train.lr=0.02"])))
    return path


def test_scoring_may_change_protocol_device_and_place(saved):
    amended = amend(saved, ["protocol=center,dense", "device=cpu", "data.root=x", "eval.dense_s=8"])
    assert amended.eval.protocols == ["center", "dense"]
    assert (amended.device, amended.data.root, amended.eval.dense_s) == ("cpu", "x", [8])
    assert amended.train.lr == 0.02
    assert amend(saved, []) == load(saved)


@pytest.mark.parametrize(
    "word", ["train.lr=0.5", "model=c", "act.slope=0.1", "seed=1", "data.crop=35", "protocl=dense"]
)
def test_scoring_may_not_make_it_another_run(saved, word):
    with pytest.raises(ValueError, match="protocol") as refusal:
        amend(saved, [word])
    assert word in str(refusal.value)


def test_what_scoring_takes_is_told_once_each(saved):
    with pytest.raises(ValueError, match="protocol and") as refused:
        amend(saved, ["act=relu"])
    told = str(refused.value).partition("protocol and ")[2].split(", ")
    assert len(told) == len(set(told))
    assert "eval.batch" in told


@pytest.mark.parametrize("word", ["protocol=tenview", "eval.batch=0", "protocol=", "eval.batch=x"])
def test_scoring_refuses_impossible_values(saved, word):
    with pytest.raises(ValueError, match=r"eval\."):
        amend(saved, [word])


def test_defaults_are_finite():
    for key, value, _ in leaves(compose(["scale=paper"])):
        assert not isinstance(value, float) or math.isfinite(value), key
