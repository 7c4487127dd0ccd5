"""Configurations put together from their groups, where a test asks for many combinations."""

from dataclasses import replace
from functools import lru_cache

from delving.config import compose

composed = lru_cache(compose)


def mix(*words, model, **groups):
    """What compose(words, model, groups) gives, but that it composes each group once and not each
    combination, a quarter of a second each; test_config composes those."""
    chosen = {group: getattr(composed((*words, f"{group}={name}")), group)
              for group, name in groups.items()}  # fmt: skip
    return replace(composed((*words, f"model={model}")), **chosen)
