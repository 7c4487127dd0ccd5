"""Dense testing: all windows of an image at once, against one forward pass for each window."""

from collections.abc import Sequence

import torch
from torch import Tensor

from delving import device as devices
from delving.bench.rounds import Row, compare, in_turns, seconds_each
from delving.bench.training import Bench, build
from delving.evaluate import score_windows

S = 15  # sevenths of the crop: 480 pixels at the paper's 224
CROPS = 8  # windows of each image whose forward pass is timed, in place of hundreds
IMAGES, SCALES = 50_000, (8, 12, 15)  # ImageNet's for validation; the paper's multi-scale testing
ON_A_GPU = 16  # images at a time, as `delving train` tests them


def bench_dense(words: Sequence[str], rounds: int) -> list[Row]:
    """Images a second at s = 480 (or its like at other scales), with one view of each; and the
    seconds that testing all of ImageNet's validation images takes."""
    bench = build(words)
    net, side = bench.net.eval(), S * bench.config.data.crop // 7
    images = _images_at_a_time(bench)
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, side, side, 3), generator=draws, dtype=torch.uint8)
    x = bench.input(pixels.to(bench.device))
    windows = count_windows(bench, x)
    crops = x[:, :, : bench.config.data.crop, : bench.config.data.crop].repeat(
        min(CROPS, windows), 1, 1, 1
    )
    ways = {
        "ours": lambda: score_windows(net, x),
        "crops": lambda: net(crops.contiguous(memory_format=torch.channels_last)),
        "loop": lambda: loop_over_windows(bench, x),
    }
    done = {"crops": len(crops) / windows}

    @torch.no_grad()
    def rate(name: str) -> float:
        with bench.autocast():
            return done.get(name, images) / seconds_each(ways[name], bench.device)

    found = in_turns({name: lambda name=name: rate(name) for name in ways}, rounds)
    name = f"dense {bench.name.split(',')[0]}, {windows} windows at {side}"
    about = {"unit": "images/s", "device": devices.name_device(bench.device)}
    return [
        compare(f"{name}: against a forward pass per window", found["ours"], found["crops"],
                **about),
        compare(f"{name}: against a loop over windows of the map", found["ours"], found["loop"],
                **about),
        _all_images(bench, rounds, about["device"]),
    ]  # fmt: skip


def _all_images(bench: Bench, rounds: int, device: str) -> Row:
    """Seconds to test 50,000 images of 4:3 and their flips at three scales, without decoding."""
    images = _images_at_a_time(bench)
    sides = [s * bench.config.data.crop // 7 for s in SCALES]
    views = {
        s: bench.input(torch.zeros(2 * images, s, 4 * s // 3, 3, dtype=torch.uint8,
                                   device=bench.device)) for s in sides
    }  # fmt: skip

    @torch.no_grad()
    def seconds() -> float:
        each = (seconds_each(lambda x=x: score_windows(bench.net, x), bench.device)
                for x in views.values())  # fmt: skip
        return sum(each) * IMAGES / images

    with devices.without_search(), bench.autocast():  # as the tester does it
        found = in_turns({"all": seconds}, min(rounds, 3))["all"]
    scales = ", ".join(map(str, sides))
    row = (f"dense {bench.name.split(',')[0]}, {bench.precision}, {IMAGES:,} images and their "
           f"flips at {scales}, without decoding")  # fmt: skip
    return compare(row, found, unit="s", device=device)


def _images_at_a_time(bench: Bench) -> int:
    return ON_A_GPU if bench.device.type == "cuda" else 1


@torch.no_grad()
def count_windows(bench: Bench, x: Tensor) -> int:
    rows, columns = bench.net.features(x).shape[2:]
    return (rows - bench.net.map_size + 1) * (columns - bench.net.map_size + 1)


def loop_over_windows(bench: Bench, x: Tensor) -> Tensor:
    """The conv layers once, then SPP and fc layers window by window."""
    net, size = bench.net, bench.net.map_size
    maps = net.features(x)
    rows, columns = (side - size + 1 for side in maps.shape[2:])
    scores = [
        net.classifier(net.spp(maps[:, :, top : top + size, left : left + size].contiguous(
            memory_format=torch.channels_last)))
        for top in range(rows)
        for left in range(columns)
    ]  # fmt: skip
    return torch.stack(scores).float().softmax(2).mean(0)
