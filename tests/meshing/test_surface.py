import numpy as np
import pytest
import trimesh
from solids import HIGH, LOW, field, torus

from dreamsa.meshing.hull import EmptyScene, find_solid, sample_density
from dreamsa.meshing.surface import Surface, check, decimate, is_closed, marching_cubes, volume


def test_an_inside_out_or_empty_mesh_is_an_error():
    inverted = trimesh.creation.icosphere(2)
    inverted.invert()
    with pytest.raises(EmptyScene, match="inside out"):
        check(Surface(np.asarray(inverted.vertices), np.asarray(inverted.faces)))
    with pytest.raises(EmptyScene, match="no faces"):
        check(Surface(np.zeros((0, 3)), np.zeros((0, 3), np.int64)))


def test_decimation_keeps_the_shape():
    grid = sample_density(lambda points: field(torus())(points, None)[0], LOW, HIGH, 48)
    before = marching_cubes(find_solid(grid)[0])
    after = decimate(before, 1000)
    assert len(after.faces) <= 1000 < len(before.faces)
    assert trimesh.Trimesh(*after, process=False).is_watertight
    assert is_closed(after)
    assert volume(after) == pytest.approx(volume(before), rel=0.03)
    assert decimate(before, 10**6) is before
