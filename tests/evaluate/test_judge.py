"""Any CLIP model as the judge: a folder made on the spot."""

import json

import pytest
import torch

from dreamsa.assets import asset
from dreamsa.evaluate.judge import Judge, JudgeNotFound, locate_judge


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIP model of a few thousand parameters, as transformers saves one, with the toybox's tokenizer."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(asset("toybox-clip"))
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=12))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}))
    return folder


def test_a_clip_folder_judges_as_transformers_does(clip_folder, rng):
    """Normalisation from the folder's own preprocessor; features and probabilities as CLIPModel itself computes them."""
    from transformers import CLIPModel

    judge = Judge.load(str(clip_folder))
    images, texts = torch.rand(3, 3, 32, 32, generator=rng), ["a rabbit", "a purple duck"]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    tokens = judge.tokenizer(texts, padding="max_length", max_length=24, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = CLIPModel.from_pretrained(clip_folder).eval()(input_ids=tokens, pixel_values=(images - mean) / std).logits_per_image
    torch.testing.assert_close(judge.probabilities(images, texts), wanted.softmax(1), atol=1e-4, rtol=1e-3)
    assert judge(images).objects.shape[0] == 3


def test_pictures_of_other_sizes_are_resized(clip_folder, rng):
    judge = Judge.load(str(clip_folder))
    flat = torch.full((1, 3, 100, 100), 0.3)
    torch.testing.assert_close(judge.image_features(flat), judge.image_features(flat[..., :32, :32]), atol=1e-5, rtol=1e-4)
    assert judge.size == 32


def test_what_is_no_judge_is_refused_in_a_sentence(tmp_path, clip_folder):
    with pytest.raises(JudgeNotFound, match="no judge at './nothing'"):
        locate_judge("./nothing")
    with pytest.raises(JudgeNotFound, match="config.json names no model_type"):
        locate_judge(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(JudgeNotFound, match="of type 'bert'; a judge is a CLIP model"):
        locate_judge(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(JudgeNotFound, match="no .safetensors weights"):
        locate_judge(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(JudgeNotFound, match="cannot be loaded"):
        Judge.load(str(tmp_path))
    assert locate_judge("openai/clip-vit-base-patch32") == ("hub", "openai/clip-vit-base-patch32")


def test_a_hub_id_that_cannot_be_had_is_a_sentence(monkeypatch):
    """Tests run offline."""
    with pytest.raises(JudgeNotFound, match="The judge 'somebody/nothing' cannot be loaded"):
        Judge.load("somebody/nothing")
