"""The embedded judge, and any CLIP model as the judge."""

import json

import numpy as np
import pytest
import torch

from dreamsa.assets import asset
from dreamsa.evaluation.judge import EMBEDDED, Judge, JudgeNotFound, absolute_judge, locate_judge
from dreamsa.toybox.dataset import render_images, wild_backgrounds
from dreamsa.toybox.dual_encoder import PHRASES, targets_of


def test_the_embedded_judge_names_unseen_renders():
    """Objects, colours and views, with other seeds, lights and cameras than in its training."""
    dataset, rng = render_images(400, seed=987654, judge=True), np.random.default_rng(3)
    verdict = Judge.load()(dataset.over(np.arange(400), wild_backgrounds(400, rng)))
    objects, colours = dataset.labels[:, 0], dataset.labels[:, 1]
    named = colours > 0
    assert (verdict.objects.argmax(1).numpy() == objects).mean() >= 0.97
    assert (verdict.colours.argmax(1).numpy() + 1 == colours)[named].mean() >= 0.97
    views = targets_of(dataset.labels, 2)
    assert (verdict.views.argmax(1).numpy() == views)[views >= 0].mean() >= 0.9


def test_the_judge_spells_the_words_of_its_training():
    """Azimuths too, also a judge that was trained before they had words."""
    judge = Judge.load()
    verdict = judge(torch.full((2, 3, 64, 64), 0.5))
    objects, (_, *colours), views, azimuths = PHRASES
    assert list(judge._text_cache) == [tuple(w) for w in (objects, colours, views, azimuths)]
    for probabilities in verdict:
        torch.testing.assert_close(probabilities.sum(1), torch.ones(2))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIP model of a few thousand parameters, as transformers saves one."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(asset("toybox-clip"))
    small = {"hidden_size": 16, "intermediate_size": 16}
    small |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    text["eos_token_id"] = tokenizer.eos_token_id
    vision = {**small, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pixels = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder


def test_a_clip_folder_judges_as_transformers_does(clip_folder, rng):
    """With the normalization of the folder's own preprocessor."""
    from transformers import CLIPModel

    judge = Judge.load(str(clip_folder))
    images, texts = torch.rand(3, 3, 32, 32, generator=rng), ["a rabbit", "a purple duck"]
    mean, std = torch.tensor([[0.4, 0.5, 0.6], [0.2, 0.3, 0.4]])[..., None, None]
    tokens = judge.tokenizer(texts, padding="max_length", max_length=24, return_tensors="pt")
    model = CLIPModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        logits = model(
            input_ids=tokens.input_ids, pixel_values=(images - mean) / std
        ).logits_per_image
    probabilities = judge.probabilities(images, texts)
    torch.testing.assert_close(probabilities, logits.softmax(1), atol=1e-4, rtol=1e-3)
    assert [tuple(p.shape) for p in judge(images)] == [(3, 23), (3, 12), (3, 4), (3, 24)]


def test_images_of_other_sizes_are_resized(clip_folder, rng):
    judge = Judge.load(str(clip_folder))
    large = torch.full((1, 3, 100, 100), 0.3)
    small = judge.image_features(large[..., :32, :32])
    torch.testing.assert_close(judge.image_features(large), small, atol=1e-5, rtol=1e-4)
    assert judge.size == 32


def test_anything_but_a_judge_is_refused_in_a_sentence(tmp_path, clip_folder):
    folder, config = str(tmp_path), tmp_path / "config.json"
    with pytest.raises(JudgeNotFound, match="no judge at './nothing'"):
        locate_judge("./nothing")
    with pytest.raises(JudgeNotFound, match="config.json names no model_type"):
        locate_judge(folder)
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(JudgeNotFound, match="of type 'bert'; a judge is a CLIP model"):
        locate_judge(folder)
    config.write_text('{"model_type": "clip"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(JudgeNotFound, match="no .safetensors weights"):
        locate_judge(folder)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(JudgeNotFound, match="cannot be loaded"):
        Judge.load(folder)


def test_only_a_relative_folder_gets_another_name(clip_folder, monkeypatch):
    monkeypatch.chdir(clip_folder.parent)
    for name in (clip_folder.name, f"./{clip_folder.name}", str(clip_folder)):
        assert absolute_judge(name) == str(clip_folder.resolve())
    hub = "openai/clip-vit-base-patch32"
    assert locate_judge(hub) == ("hub", hub)
    assert [absolute_judge(name) for name in (EMBEDDED, hub)] == [EMBEDDED, hub]


def test_an_unavailable_hub_id_is_a_sentence():
    """Tests run offline."""
    with pytest.raises(JudgeNotFound, match="The judge 'somebody/nothing' cannot be loaded"):
        Judge.load("somebody/nothing")
