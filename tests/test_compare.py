"""`plot-slopes` where there is nothing to draw."""

import pytest

from delving.compare import compare_slopes


def test_without_slopes_it_is_told_whose_are_drawn(tmp_path):
    """A run may have learned others, of a class of the user's."""
    whose = f"no slopes of PReLU, or of a class derived from it, in {tmp_path}: train act=prelu"
    with pytest.raises(ValueError, match=whose):
        compare_slopes([], str(tmp_path))
