import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import CLIPTokenizer

from dreamsa.rendering.cameras import orbit
from dreamsa.toybox import tokenizer as tokenizer_module
from dreamsa.toybox.captions import CHIRAL, LOOK_ALIKE, WORDS
from dreamsa.toybox.dataset import AMBIGUOUS, NAMES, ImageSet, view_label
from dreamsa.toybox.dual_encoder import (
    AZIMUTH_PHRASES,
    PHRASES,
    VIEW_PHRASES,
    _shifted,
    draw_weights,
    drawer,
    features,
    new_dual_encoder,
    random_captions,
    targets_of,
    text_encoder_with,
    token_cache,
    tokenize,
    with_vocabulary,
)
from dreamsa.toybox.renderer import render_solid
from dreamsa.toybox.shapes import build
from dreamsa.toybox.tokenizer import new_tokenizer

VIEW, AZIMUTH = PHRASES.index(VIEW_PHRASES), PHRASES.index(AZIMUTH_PHRASES)
OLD_TEXTS = ["a red car, side view", "the ebony gas can", "", "a zebra", "car 7"]


def labels_of(*rows):
    return np.array([(NAMES.index(name), *rest) for name, *rest in rows], np.int16)


def test_ambiguous_views_are_no_targets():
    """Cross-entropy ignores -100; objects and colours are always targets."""
    cameras = ((0, 10), (45, 10), (90, 10), (180, 10), (0, 60), (200, 80))
    labels = labels_of(*((name, 5, *camera) for name in NAMES for camera in cameras))
    targets = targets_of(labels, VIEW).reshape(len(NAMES), -1)
    assert [view_label(*camera) for camera in cameras] == [0, AMBIGUOUS, 1, 2, AMBIGUOUS, 3]
    for name, views in zip(NAMES, targets.tolist(), strict=True):
        wanted = [-100] * 6 if name in LOOK_ALIKE else [0, -100, 1, 2, -100, 3]
        assert views == wanted
    for kind in (0, 1):
        np.testing.assert_array_equal(targets_of(labels, kind), labels[:, kind])


def test_azimuths_are_targets_of_objects_with_a_front_from_cameras_that_are_not_steep():
    labels = labels_of(
        ("duck", 0, 7, 69), ("duck", 0, 8, 0), ("mug", 3, 105, -10), ("duck", 0, 360, 0),
        ("duck", 0, 105, 70), ("ball", 0, 105, 0),
    )  # fmt: skip
    targets = targets_of(labels, AZIMUTH).tolist()
    assert targets == [0, 1, 7, 0, -100, -100]
    assert AZIMUTH_PHRASES[7] == "azimuth 105"
    assert len(AZIMUTH_PHRASES) == 24


def test_shifted_images_are_crops_of_the_padded_image_or_their_mirror_images():
    images = np.random.default_rng(0).integers(1, 256, (40, 8, 8, 4), np.uint8)
    dataset = ImageSet(images, labels_of(*[("duck", 2, 30, 15)] * 40))
    moved = _shifted(dataset, np.random.default_rng(1), max_shift=2)
    found = []
    for before, after in zip(
        np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))), moved.rgba, strict=True
    ):
        cuts = {(y, x): before[y : y + 8, x : x + 8] for y in range(5) for x in range(5)}
        matches = [
            (at, mirrored)
            for at, cut in cuts.items()
            for mirrored in (False, True)
            if (after == (cut[:, ::-1] if mirrored else cut)).all()
        ]
        assert len(matches) == 1
        found += matches
    mirrored = np.array([mirrored for _, mirrored in found])
    assert 10 < mirrored.sum() < 30
    assert len({at for at, _ in found}) > 10
    np.testing.assert_array_equal(moved.labels[:, 2], np.where(mirrored, 330, 30))
    np.testing.assert_array_equal(moved.labels[:, [0, 1, 3]], dataset.labels[:, [0, 1, 3]])
    again = _shifted(dataset, np.random.default_rng(1), max_shift=2)
    np.testing.assert_array_equal(moved.rgba, again.rgba)


def test_the_mirrored_front_is_the_front():
    images = np.zeros((20, 8, 8, 4), np.uint8)
    dataset = ImageSet(images, labels_of(*[("duck", 0, 0, 0)] * 20))
    assert set(_shifted(dataset, np.random.default_rng(1)).labels[:, 2]) == {0}


def test_mirrored_mugs_show_the_back():
    front, back = (
        render_solid(build("mug", "red"), orbit([azimuth], 20.0)).opacity[0] > 0.5
        for azimuth in (0.0, 180.0)
    )

    def overlap(a, b):
        return (a & b).sum() / (a | b).sum()

    assert overlap(front[:, ::-1], back) > 0.97 > overlap(front, back)


@pytest.mark.parametrize("name", sorted(CHIRAL))
def test_chiral_objects_are_not_mirrored(name):
    images = np.random.default_rng(0).integers(1, 256, (20, 8, 8, 4), np.uint8)
    dataset = ImageSet(images, labels_of(*[(name, 0, 30, 0)] * 20))
    moved = _shifted(dataset, np.random.default_rng(1), max_shift=0)
    np.testing.assert_array_equal(moved.rgba, images)
    np.testing.assert_array_equal(moved.labels, dataset.labels)


def test_a_tenth_of_the_captions_names_no_view_and_another_no_angles():
    labels = labels_of(*[("duck", 1, 0, 10)] * 4000)
    texts = random_captions(labels, np.random.default_rng(0))
    endings = [text.split(" red duck")[1] for text in texts]
    counts = [endings.count(ending) for ending in ("", ", front view")]
    assert all(340 < count < 460 for count in counts)
    assert endings.count(", front view, azimuth 000, elevation +15") == 4000 - sum(counts)
    assert 340 < sum(text.startswith("the ") for text in texts) < 460


def test_captions_name_an_ambiguous_view_with_its_angles_only():
    texts = random_captions(labels_of(*[("duck", 1, 50, 0)] * 1000), np.random.default_rng(0))
    views = {text.split(" red duck")[1] for text in texts}
    assert views == {"", ", front view, azimuth 045, elevation +00"}


def test_captions_use_synonyms():
    texts = random_captions(labels_of(*[("duck", 12, 0, 0)] * 1000), np.random.default_rng(0))
    assert 330 < sum("black" in text for text in texts) < 470
    assert all(("black" in text) != ("ebony" in text) for text in texts)


def test_objects_with_a_front_are_drawn_twice_as_often():
    weights = draw_weights(labels_of(*((name, 0, 0, 0) for name in ("duck", "ball", "ball"))))
    np.testing.assert_allclose(weights, [0.5, 0.25, 0.25])


def test_indices_are_those_that_numpy_draws():
    rng = np.random.default_rng(5)
    labels = np.zeros((3001, 4), np.int16)
    labels[:, 0] = rng.integers(len(NAMES), size=3001)
    weights, draw = draw_weights(labels), drawer(labels)
    for seed in range(20):
        ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
        np.testing.assert_array_equal(draw(500, ours), theirs.choice(3001, size=500, p=weights))
        assert ours.random() == theirs.random()


def test_each_text_is_tokenized_once():
    tokenizer, seen = new_tokenizer(), []

    class Spy(CLIPTokenizer):
        def __init__(self):
            pass

        def __call__(self, texts, **options):
            seen.extend(texts)
            return tokenizer(texts, **options)

    tokens_of = token_cache(Spy())
    for texts in (["a car", "", "a car"], ["a duck", "a car"], ["", "a duck"]):
        assert torch.equal(tokens_of(texts), tokenize(tokenizer, texts))
    assert seen == ["a car", "", "a duck"]


@pytest.fixture
def old_tokenizer(monkeypatch):
    """A tokenizer that spells out the words of angles."""
    angles = {"azimuth", "elevation"}
    monkeypatch.setattr(tokenizer_module, "WORDS", [word for word in WORDS if word not in angles])
    tokenizer = new_tokenizer()
    monkeypatch.undo()
    assert len(tokenizer.tokenize("azimuth")) > 1
    return tokenizer


@torch.no_grad()
def test_a_larger_vocabulary_keeps_the_outputs_of_old_texts(old_tokenizer):
    torch.manual_seed(0)
    old, new = new_dual_encoder(old_tokenizer).text_model.eval(), new_tokenizer()
    extended = text_encoder_with(old, old_tokenizer, new).eval()
    before = old(tokenize(old_tokenizer, OLD_TEXTS))
    after = extended(tokenize(new, OLD_TEXTS))
    assert torch.equal(before.last_hidden_state, after.last_hidden_state)
    assert torch.equal(before.pooler_output, after.pooler_output)
    assert extended.config.vocab_size == len(new) > len(old_tokenizer)
    named = extended(tokenize(new, ["a red car, side view, azimuth 105, elevation +15"]))
    assert named.last_hidden_state.isfinite().all()


def test_new_words_start_as_the_mean_of_their_spelling(old_tokenizer):
    torch.manual_seed(0)
    old, new = new_dual_encoder(old_tokenizer).text_model, new_tokenizer()
    rows = text_encoder_with(old, old_tokenizer, new).get_input_embeddings().weight
    spelling = old_tokenizer("azimuth", add_special_tokens=False).input_ids
    mean = old.get_input_embeddings().weight[spelling].mean(0)
    assert torch.equal(rows[new.get_vocab()["azimuth</w>"]], mean)


def test_new_angles_start_on_a_circle_and_known_ones_stay(old_tokenizer):
    old, new = new_dual_encoder(old_tokenizer).text_model, new_tokenizer()
    extended = text_encoder_with(old, old_tokenizer, new)
    rows = extended.get_input_embeddings().weight.detach()
    azimuths = rows[[new.get_vocab()[f"{angle:03d}"] for angle in range(0, 360, 15)]]
    similar = normalize(azimuths) @ normalize(azimuths).T
    torch.testing.assert_close(similar, similar.roll((1, 1), (0, 1)))  # no azimuth is special
    off = similar[0, :13]  # from 0 to 180 degrees
    assert (off.diff()[:7] < 0).all()
    assert off[1] > 0.9 and off[12] < -0.5
    elevations = rows[[new.get_vocab()[f"{angle:+03d}"] for angle in (-90, 0, 90)]]
    assert (normalize(elevations) @ normalize(azimuths).T).abs().max() < 1e-5
    again = text_encoder_with(extended, new, new)
    assert torch.equal(again.get_input_embeddings().weight, rows)


@torch.no_grad()
def test_a_judge_with_a_larger_vocabulary_judges_old_texts_as_before(old_tokenizer, rng):
    torch.manual_seed(0)
    old, new = new_dual_encoder(old_tokenizer).eval(), new_tokenizer()
    extended = with_vocabulary(old, old_tokenizer, new).eval()
    images = torch.rand(2, 3, 32, 32, generator=rng)
    before = features(old, images, tokenize(old_tokenizer, OLD_TEXTS))
    after = features(extended, images, tokenize(new, OLD_TEXTS))
    assert all(map(torch.equal, before, after))
    assert torch.equal(old.logit_scale, extended.logit_scale)
    assert extended.config.text_config.vocab_size == len(new)
