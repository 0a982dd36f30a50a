import matplotlib
import pytest

from dreamsa.studies.plots import plot


@pytest.mark.parametrize("options", [{}, {"fraction": False}, {"ascent": 3, "steps": True}])
def test_a_plot_leaves_matplotlib_as_it_was(options):
    backend, style = matplotlib.get_backend(), dict(matplotlib.rcParams)
    lines = {"ascent": [(0, 0.1), (10, 0.5)], "ascent@scale=1": [(0, 0.2)], "plain": []}
    svg = plot(lines, "a title", **options)
    assert svg.startswith("<svg")
    assert "ascent@scale=1" in svg
    assert matplotlib.get_backend() == backend
    assert dict(matplotlib.rcParams) == style
    assert svg == plot(lines, "a title", **options)
