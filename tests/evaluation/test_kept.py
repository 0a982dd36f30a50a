import pytest
from true_scene import TrueScene

from dreamsa.evaluation.kept import truth_kept
from dreamsa.presets import preset

CAMERA = preset("toybox", "a mushroom").camera
RED = TrueScene("mushroom")


def kept(scene, before="a mushroom", prompt="a blue mushroom"):
    return truth_kept(RED, scene, CAMERA, before, prompt)


def test_a_true_edit_keeps_stem_and_shape_and_a_clumsy_one_does_not():
    """The stem is cream before and after; a ball beside the object changes its shape."""
    right = kept(TrueScene("mushroom", "blue"))
    clumsy = kept(TrueScene("mushroom", "blue", balls=(((0.3, 0.3, -0.4), 0.12),)))
    other = kept(TrueScene("cube", "blue"))
    assert right["psnr_kept"] > 20
    assert right["chamfer_kept"] < 0.02
    assert clumsy["chamfer_kept"] > 2 * right["chamfer_kept"]
    assert other["psnr_kept"] < right["psnr_kept"] - 5


@pytest.mark.parametrize("prompt", ["a mushroom", "a duck", "a blue duck"])
def test_only_another_colour_of_the_same_object_has_something_to_keep(prompt):
    assert kept(RED, prompt=prompt) == {}
