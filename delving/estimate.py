"""`delving estimate`: hours, memory and disk of artefacts before anything is started."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from delving import config as configs
from delving.bench.rounds import round_off, seconds_each
from delving.bench.training import Bench, build_for, memory_of
from delving.build import images_at_once
from delving.checkpoint import KEPT
from delving.cost import (
    FORWARDS,
    FP32,
    HALF,
    count_images,
    count_there,
    describe_net,
    reckon_delivery,
    reckon_memory,
)
from delving.data.sources import SIZES
from delving.device import release_memory
from delving.evaluate import name_protocols
from delving.net import CROP, Net, map_side
from delving.plan import Plan, images_of, make_plan
from delving.schema import Config, Detect

STEPS, SECONDS = 20, 30.0  # of a probe: the number of steps, or as many as fit into the time
COPIES = 2  # of the parameters in a checkpoint: weights and momentum
# An operation's time on whole images and their RoIs, relative to that on the small crops of the
# scales below paper.
LARGER = 0.4
VOC_TEST, PROPOSALS = 4952, 2000  # images; proposals of each, as many as selective search finds
DETECTION = " detection"  # after a run's name: what the run's detection takes


@dataclass(frozen=True)
class Cost:
    """What a run or a detection takes: hours of one device, `scoring` of which go to scoring; GB of
    its memory at most; GB of disk for the last checkpoint and scores; and GB of one checkpoint, of
    which there are more during training."""

    hours: float
    scoring: float
    memory: float
    disk: float
    checkpoint: float


@dataclass(frozen=True)
class Rate:
    """Images a second of a net in training, GB of memory, and where both are from; how many images
    a second are delivered at most, and how many nets at once each of them is delivered to."""

    images: float
    memory: float
    source: str
    delivered: float = math.inf
    together: int = 1


def estimate(
    artefacts: Sequence[str],
    words: Sequence[str],
    *,
    stated: Mapping[str, float] | None = None,
    tflops: float | None = None,
    loader: float | None = None,
    jobs: int = 1,
    say: Callable[[str], None],
) -> list[dict]:
    """A row for each artefact by itself, and one for all of them, which share runs.

    Args:
        stated: images a second by model, if known; the other models' follow from `tflops`, 10^12
            operations a second, or else from a probe of each net here.
        loader: images a second that all loader processes deliver, if known.
        jobs: runs side by side; the arms of a seed among them share their images.

    Raises:
        ValueError: as make_plan; a model that no artefact trains.
    """
    plan = make_plan(artefacts, words, need_data=False)
    _tell(plan, say)
    stated = dict(stated or {})
    models = {config.model.name for config in plan.runs.values()}
    if strange := sorted(set(stated) - models):
        raise ValueError(f"--rate {strange[0]}=...: choose from {', '.join(sorted(models))}")
    costs = {}
    rates = _rates_of(plan, stated, tflops, loader, say)
    for run, rate in _side_by_side(plan, rates, jobs, say).items():
        costs[run] = cost_of(plan.runs[run], rate)
        if run in plan.detectors():
            settings = configs.compose_detect(plan.scale, plan.detect)
            costs[run + DETECTION] = cost_of_detection(plan.runs[run], settings, rate)
    rows = {name: dict.fromkeys(_runs_of(plan, name)) for name in plan.requests}
    rows["all of them"] = costs
    return [_row(name, runs, costs, jobs) for name, runs in rows.items()]


def _tell(plan: Plan, say: Callable[[str], None]) -> None:
    """Says what the figures leave out, and how many images nets are trained and tested on."""
    for name, why in plan.left_out.items():
        say(f"left out: {name}; {why}")
    for line in dict.fromkeys(_count(config) for config in plan.runs.values()):
        say(line)


def _count(config: Config) -> str:
    data, given = config.data, (config.data.train_images, config.data.val_images)
    known = data.name in SIZES or count_there(data)
    marks = ["" if number or known else " (assumed)" for number in given]
    parts = [f"{count:,}{mark} {kind}" for count, mark, kind in
             zip(count_images(config), marks, ("training", "test"), strict=True)]  # fmt: skip
    return f"{data.name}: {' and '.join(parts)} images"


def probe_seconds(plan: Plan, say: Callable[[str], None]) -> dict[str, float]:
    """Seconds of each run of a plan here, its scoring included, by a probe of each net."""
    rates = _rates_of(plan, {}, None, None, say)
    return {run: 3600 * cost_of(plan.runs[run], rate).hours for run, rate in rates.items()}


def estimate_detection(plan: Plan, run: str) -> float:
    """Seconds of a run's detection here, by the rate at which the run itself is trained."""
    config = plan.runs[run]
    rate = config.train.epochs * count_images(config)[0] / plan.estimate(run)
    settings = configs.compose_detect(plan.scale, plan.detect)
    return 3600 * cost_of_detection(config, settings, Rate(rate, 0.0, "")).hours


def _rates_of(
    plan: Plan,
    stated: Mapping[str, float],
    tflops: float | None,
    loader: float | None,
    say: Callable[[str], None],
) -> dict[str, Rate]:
    """Each run's rate, found once for all runs of the same net."""
    rates: dict[str, Rate] = {}
    found = {}
    for run, config in plan.runs.items():
        key = repr((config.model, config.data.crop, config.data.classes, config.train.s))
        if key not in rates:
            here = config.model.name not in stated and not tflops
            if here:
                say(f"{config.model.name}: timing its steps here, which --rate and --tflops spare")
            rate = find_rate(config, stated, tflops)
            say(f"{config.model.name}: {rate.images:,.1f} images/s, {rate.source}")
            rates[key] = _fed(config, rate, loader, here=here, say=say)
        found[run] = rates[key]
    return found


def _fed(
    config: Config, rate: Rate, loader: float | None, *, here: bool, say: Callable[[str], None]
) -> Rate:
    """The rate, limited to what loaders deliver: small nets at scale paper wait for them."""
    delivered, processes = reckon_delivery(config, here=here)
    how = "as stated" if loader else f"reckoned for data.workers={processes}; --loader states it"
    delivered = loader or delivered
    if delivered >= rate.images:
        return rate
    say(f"{config.model.name}: waits for images, {delivered:,.0f} a second, {how}")
    return replace(rate, delivered=delivered)


def _side_by_side(
    plan: Plan, rates: dict[str, Rate], jobs: int, say: Callable[[str], None]
) -> dict[str, Rate]:
    """Each run's rate if up to `jobs` runs that see the same images share them."""
    seen = {run: images_of(config) for run, config in plan.runs.items()}
    arms = Counter(seen.values())
    found = {run: replace(rate, together=min(jobs, arms[seen[run]])) for run, rate in rates.items()}
    shared = [rate.together for rate in found.values() if rate.delivered < rate.images]
    if max(shared, default=1) > 1:
        say(f"nets that wait: up to {max(shared)} at once share what is delivered (--jobs {jobs})")
    return found


def _runs_of(plan: Plan, artefact: str) -> Iterable[str]:
    """An artefact's own runs, and those of the artefacts whose measurements it shows."""
    shown = [artefact, *plan.requests[artefact].needs]
    runs = [run for name in shown for run in plan.runs_of(name)]
    return runs + [run + DETECTION for run in runs if plan.requests[artefact].detect]


def _row(name: str, runs: Collection[str], costs: dict[str, Cost], jobs: int) -> dict:
    found = [costs[run] for run in runs]
    training = sum(sorted(c.checkpoint for c in found)[-jobs:])
    numbers = {
        "hours": sum(c.hours for c in found),
        "scoring": sum(c.scoring for c in found),
        "memory": sum(sorted(c.memory for c in found)[-jobs:]),
        "disk": sum(c.disk for c in found) + (KEPT - 1) * training,
    }
    rounded = {key: round_off(value) for key, value in numbers.items()}
    trained = sum(not run.endswith(DETECTION) for run in runs)
    return {"artefact": name, "runs": trained} | rounded


def find_rate(config: Config, stated: Mapping[str, float], tflops: float | None) -> Rate:
    """A net's rate: as stated, reckoned from `tflops`, or measured here."""
    _, cost = _measure_net(config)
    if config.model.name in stated:
        return Rate(stated[config.model.name], reckon_memory(config), "as stated")
    if tflops:
        images = tflops * 1e12 / (2 * FORWARDS * cost)
        return Rate(images, reckon_memory(config), f"at {tflops:g} TFLOP/s")
    rate = probe(build_for(config))
    release_memory()  # on a GPU other processes will want it
    return rate


def probe(bench: Bench) -> Rate:
    """Times STEPS steps on noise, here, or as many as fit into SECONDS."""
    images = len(bench.batch.labels)
    first = seconds_each(lambda: bench.ours(1), bench.device, least=0)
    steps = min(STEPS, int(SECONDS / first))
    # If the first step alone takes longer than a probe may, it is all that is timed.
    timed = seconds_each(lambda: bench.ours(steps), bench.device, least=0) if steps else first
    steps = max(1, steps)
    seconds = timed / steps
    weights = sum(p.nbytes for p in bench.net.parameters())
    # The probe may have used fewer images than the batch, or more than a training has at once.
    share = images_at_once(bench.config) / images
    memory = 3 * weights + (memory_of(bench) - 3 * weights) * share
    return Rate(images / seconds, memory / 1e9, f"{steps} steps of {images} here")


def cost_of(config: Config, rate: Rate) -> Cost:
    """The cost of one run."""
    net, multiply_adds = _measure_net(config)
    train_images, val_images = count_images(config)
    training = config.train.epochs * train_images / min(rate.images, rate.delivered * rate.together)
    steps = config.train.epochs * train_images / config.train.batch
    looks = min(config.train.epochs / config.eval.every, steps)
    views = looks * min(config.eval.images, val_images) + val_images * sum(
        _forwards(net, config, multiply_adds).values()
    )
    decoded = len(config.eval.protocols) * val_images
    scoring = max(views / (FORWARDS * rate.images), decoded / rate.delivered)
    classes = net.classifier[-1].out_features
    names = name_protocols(config.eval.protocols, config.eval.dense_s)
    checkpoint = COPIES * FP32 * sum(p.numel() for p in net.parameters()) / 1e9
    disk = checkpoint + len(names) * val_images * classes * HALF / 1e9
    return Cost((training + scoring) / 3600, scoring / 3600, rate.memory, disk, checkpoint)


def cost_of_detection(config: Config, settings: Detect, rate: Rate) -> Cost:
    """The cost of one detection: conv layers see whole images, 4 to 3, fc layers every RoI."""
    net, multiply_adds = _measure_net(config)
    fc = sum(p.numel() for p in net.classifier.parameters() if p.dim() == 2)
    area = settings.side * min(settings.longest, settings.side * 4 / 3) / CROP**2
    convs = (multiply_adds - fc) * area

    def crops(rois: float) -> float:
        return (convs + rois * fc) / multiply_adds

    training = settings.steps * settings.images * crops(settings.rois / settings.images)
    testing = (settings.test_images or VOC_TEST) * crops(PROPOSALS) / FORWARDS
    rated = rate.images if config.data.crop >= CROP else rate.images / LARGER
    hours = [work / rated / 3600 for work in (training + testing, testing)]
    checkpoint = COPIES * FP32 * sum(p.numel() for p in net.parameters()) / 1e9
    return Cost(*hours, rate.memory, checkpoint, checkpoint)


def _forwards(net: Net, config: Config, multiply_adds: int) -> dict[str, float]:
    """What testing an image costs, in forward passes of a crop, by protocol."""
    fc = sum(p.numel() for p in net.classifier.parameters() if p.dim() == 2)
    crop, found = config.data.crop, {"center": 1.0, "ten_view": 10.0, "dense": 0.0}
    for s in config.eval.dense_s:
        side = s * crop // 7
        windows = (map_side(net.features, side) - net.map_size + 1) ** 2
        whole = (multiply_adds - fc) * (side / crop) ** 2 + windows * fc
        found["dense"] += 2 * whole / multiply_adds  # and flipped
    return {name: found[name] for name in config.eval.protocols}


def _measure_net(config: Config) -> tuple[Net, int]:
    net, _, rows = describe_net(config)
    return net, sum(row["multiply_adds"] for row in rows)
