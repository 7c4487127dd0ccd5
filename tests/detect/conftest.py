"""Generated scenes, drawn once for all detection tests."""

import pytest

from delving.detect.scenes import write_scenes
from delving.detect.voc import find_voc, load_split

CLASSES = ("horizontal", "vertical", "diagonal", "checks")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """The folder of 24 training and 12 test scenes of four classes; no test may change it."""
    root = tmp_path_factory.mktemp("scenes") / "VOCdevkit"
    return write_scenes(root, classes=4, train_images=24, test_images=12)


@pytest.fixture(scope="session")
def drawn(scenes):
    """Both splits of the scenes."""
    return [load_split(find_voc(scenes), name, CLASSES) for name in ("trainval", "test")]
