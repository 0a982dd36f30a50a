import imageio
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from dreamsa.media import (
    NoFfmpeg,
    contact_sheet,
    depth_images,
    normal_images,
    to_uint8,
    write_mp4,
    write_png,
    write_webp,
)

RNG = np.random.default_rng(0)
FRAMES = np.stack([np.full((32, 48, 3), (20 * i, 255 - 20 * i, 90), np.uint8) for i in range(12)])


def test_mp4_plays_in_browsers_and_keeps_the_colours(tmp_path):
    write_mp4(FRAMES, tmp_path / "a.mp4")
    reader = imageio.get_reader(tmp_path / "a.mp4")
    facts = reader.get_meta_data()
    assert facts["pix_fmt"].startswith("yuv420p")
    assert (facts["codec"], facts["size"], facts["fps"]) == ("h264", (48, 32), 20.0)
    read = np.stack(imageio.mimread(tmp_path / "a.mp4", memtest=False))
    assert read.shape == FRAMES.shape
    assert np.abs(read.astype(int) - FRAMES).mean() < 6
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_webp_loops_through_every_frame(tmp_path):
    write_webp(FRAMES, tmp_path / "a.webp")
    image = Image.open(tmp_path / "a.webp")
    assert image.n_frames == 12  # pyright: ignore
    assert image.info["loop"] == 0
    image.load()
    assert image.info["duration"] == 50


def test_without_ffmpeg_no_partial_file_is_left(tmp_path, monkeypatch):
    import imageio_ffmpeg

    def missing():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(NoFfmpeg, match="no ffmpeg was found. Install"):
        write_mp4(FRAMES, tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    write_png(FRAMES[0], tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def half(image, path):
        path.write_bytes(before[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="No space left"):
        write_png(FRAMES[1], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (12, 4, 3)]
)
def test_sheets_contain_every_image(count, columns, rows):
    images = RNG.integers(0, 200, (count, 6, 8, 3), dtype=np.uint8)
    sheet = contact_sheet(images, columns, gap=2)
    assert sheet.shape == (rows * 8 + 2, columns * 10 + 2, 3)
    last = count - 1
    y, x = 2 + last // columns * 8, 2 + last % columns * 10
    assert_array_equal(sheet[y : y + 6, x : x + 8], images[last])
    assert contact_sheet(images, columns, magnify=3).shape[0] == 3 * sheet.shape[0]


def test_near_is_white_far_is_dark_and_nothing_is_black():
    depth = np.array([[[1.0, 1.5, 2.0, 9.0]], [[1.0, 2.0, 2.0, 0.0]]])
    opacity = np.array([[[1.0, 1.0, 1.0, 0.0]]] * 2)
    images = depth_images(depth, opacity)
    assert_allclose(images[0, 0, :, 0], (255, 153, 51, 0), atol=2)
    assert_array_equal(images[0, 0, 2], images[1, 0, 1])  # one scale for all
    assert (images == images[..., :1]).all()


def test_normals_towards_the_camera_are_blue():
    normals = np.array([[[[0, 0, 1.0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]]])
    [[row]] = normal_images(normals, np.array([[[1.0, 1.0, 1.0, 0.0]]]))
    expected = [(128, 128, 255), (255, 128, 128), (128, 255, 128), (0, 0, 0)]
    assert_allclose(row, expected, atol=1)


def test_bytes_are_rounded_and_clipped_with_channels_last():
    values = np.array([-0.1, 0.0, 0.5, 1.0, 1.2], np.float32)
    images = np.broadcast_to(values, (3, 1, 5))
    for given in (images, torch.tensor(images)):
        assert_array_equal(to_uint8(given)[0, :, 0], (0, 0, 128, 255, 255))
        assert to_uint8(given).shape == (1, 5, 3)
