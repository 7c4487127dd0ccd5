"""Configurations put together from their groups, where a test asks for many combinations, and
the rectifiers they name."""

from dataclasses import replace
from functools import lru_cache

from delving.config import compose
from delving.rectifier import RECTIFIERS

composed = lru_cache(compose)


def mix(*words, model, **groups):
    """Gives what compose(words, model, groups) does, but composes each group once instead of each
    combination, which takes a quarter of a second; test_config composes the combinations."""
    chosen = {group: getattr(composed((*words, f"{group}={name}")), group)
              for group, name in groups.items()}  # fmt: skip
    return replace(composed((*words, f"model={model}")), **chosen)


def slope_of(act):
    """The slope in a rectifier's own file in conf/act."""
    return composed(("scale=smoke", f"act={act}")).act.slope


def build_act(act, channels, slope=None):
    """A rectifier of conf/act as a net starts it, in evaluation mode; by default with its own
    slope. What its parameters and buffers hold before reset_parameters() counts for nothing."""
    slope = slope_of(act) if slope is None else slope
    module = RECTIFIERS[composed(("scale=smoke", f"act={act}")).act.name](channels, slope)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return module.eval()
