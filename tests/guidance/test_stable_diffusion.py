import json
import os
import shutil
import warnings

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from dreamsa.config import TOYBOX, ModelConfig
from dreamsa.guidance.stable_diffusion import (
    ModelNotFound,
    StableDiffusion,
    absolute_paths,
    locate_model,
)
from dreamsa.guidance.vocabulary import UnknownWords, check_prompt_words
from dreamsa.toybox.tokenizer import new_tokenizer


def tiny_pipeline(prediction_type="epsilon", tiny_encoder=False):
    """A random Stable Diffusion of the real classes, a few thousand parameters."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=24,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        layers_per_block=1, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    if tiny_encoder:
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
        )  # fmt: skip
    else:
        vae = AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, scaling_factor=0.31,
        )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        clip_sample=False,
        steps_offset=1,
    )
    parts = vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None
    return StableDiffusionPipeline(*parts, requires_safety_checker=False)


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    tiny_pipeline(request.param).save_pretrained(path)
    return path


@pytest.fixture
def model(folder):
    return StableDiffusion.load(ModelConfig(str(folder)))


def texts(model, n=2, words=("a rabbit", "")):
    """The embeddings [k, n, tokens, width] of `words`."""
    return model.embed(list(words))[:, None].expand(-1, n, -1, -1)


@pytest.mark.parametrize("words", [("a duck",), ("", "a rabbit", "a car")])
def test_predictions_are_those_of_the_unet_called_for_each_text(model, rng, words):
    """Converted with diffusers' arithmetic: the batch keeps its order."""
    noisy, timesteps = torch.randn(2, 4, 8, 8, generator=rng), torch.tensor([40, 700])
    given = texts(model, 2, words)
    predicted = model.predict_noise(noisy, timesteps, given)
    for found, text in zip(predicted, given, strict=True):
        with torch.no_grad():
            expected = model.unet(noisy, timesteps, text).sample
        if model.scheduler.config.prediction_type == "v_prediction":
            a = model.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
            expected = a.sqrt() * expected + (1 - a).sqrt() * noisy
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_predictions_differ_by_text_and_by_view(model, rng):
    noisy, timesteps = torch.randn(1, 4, 8, 8, generator=rng).expand(2, -1, -1, -1), [300, 300]
    given = model.embed(["a rabbit", "a car", "a car", "a rabbit"]).unflatten(0, (2, 2))
    one, other = model.predict_noise(noisy, torch.tensor(timesteps), given)
    torch.testing.assert_close(one, other.flip(0), atol=1e-4, rtol=1e-4)
    assert (one[0] - one[1]).abs().max() > 1e-3


def test_encoder_is_differentiable_scaled_and_resizes(model):
    images = torch.rand(1, 3, 24, 24, requires_grad=True)
    latents = model.encode(images)
    assert latents.shape == (1, 4, 8, 8)
    latents.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    with torch.no_grad():
        resized = torch.nn.functional.interpolate(
            images, (16, 16), mode="bilinear", align_corners=False, antialias=True
        )
        by_hand = model.vae.encode(resized * 2 - 1).latent_dist.mean * 0.31
    torch.testing.assert_close(latents.detach(), by_hand)


def test_guidance_never_decodes_and_trains_nothing_of_the_model(model, monkeypatch):
    """threestudio decodes an unused image in every step."""
    monkeypatch.setattr(model.vae, "decode", lambda *a, **k: pytest.fail("decoded"))
    latents = model.encode(torch.rand(1, 3, 16, 16, requires_grad=True))
    predicted, _ = model.predict_noise(latents, torch.tensor([5]), texts(model, 1))
    assert not predicted.requires_grad
    (latents * predicted).sum().backward()
    parts = model.unet, model.vae, model.text_encoder
    assert all(p.grad is None for part in parts for p in part.parameters())


def test_a_long_prompt_is_truncated_with_a_warning_that_shows_the_rest(model):
    with pytest.warns(UserWarning, match="ignored: .*duck"):
        assert model.embed([" ".join(["a rabbit"] * 20) + " a duck"]).shape == (1, 24, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.embed(["a rabbit, front view"])


def test_a_taesd_type_autoencoder_is_recognised(tmp_path):
    tiny_pipeline(tiny_encoder=True).save_pretrained(tmp_path)
    model = StableDiffusion.load(ModelConfig(str(tmp_path)))
    assert model.encode(torch.rand(2, 3, 16, 16)).shape == (2, 4, 8, 8)


def test_half_precision_and_slicing_give_float32_predictions(folder):
    model = StableDiffusion.load(ModelConfig(str(folder), dtype="bfloat16", vae_slicing=True))
    latents = model.encode(torch.rand(2, 3, 16, 16))
    assert latents.dtype == torch.float32
    predicted = model.predict_noise(latents, torch.tensor([1, 2]), texts(model))
    assert [eps.dtype for eps in predicted] == [torch.float32] * 2


def test_an_odd_prediction_type_is_refused(tmp_path):
    tiny_pipeline("sample").save_pretrained(tmp_path)
    with pytest.raises(ModelNotFound, match="predicts 'sample'"):
        StableDiffusion.load(ModelConfig(str(tmp_path)))


@pytest.mark.parametrize(
    "name",
    ["./no/such", "/no/such", "runs/a/b", "nothere.safetensors", "~/missing", "just-a-word",
     "a b/c", "tests/mistyped"],
)  # fmt: skip
def test_a_mistyped_path_is_not_taken_for_a_hub_id(name):
    with pytest.raises(ModelNotFound, match=r"no model at|neither a path nor a Hub id"):
        locate_model(ModelConfig(name))


def test_a_hub_id_is_recognised_and_an_unreachable_one_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ModelConfig("nobody-0/nothing", offline=True)
    assert locate_model(config) == ("hub", "nobody-0/nothing")
    with pytest.raises(ModelNotFound, match="Cannot load the model 'nobody-0/nothing'.*Known ids"):
        StableDiffusion.load(config)


def test_an_empty_folder_and_an_incomplete_model_have_different_errors(folder, tmp_path):
    with pytest.raises(ModelNotFound, match="not a Stable Diffusion"):
        locate_model(ModelConfig(str(tmp_path)))
    half = shutil.copytree(folder, tmp_path / "half")
    shutil.rmtree(half / "unet")
    with pytest.raises(ModelNotFound, match="incomplete Stable Diffusion model: unet/ missing"):
        locate_model(ModelConfig(str(half)))


def test_pickled_weights_are_never_read(folder, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    model = shutil.copytree(folder, tmp_path / "model")
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelNotFound, match="no .safetensors"):
        StableDiffusion.load(ModelConfig(str(model)))
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelNotFound, match="never pickles"):
        locate_model(ModelConfig(str(tmp_path / "model.ckpt")))
    assert not (tmp_path / "exploded").exists()


def test_the_names_in_model_index_are_ignored(folder, tmp_path):
    """diffusers' loader imports the names in model_index.json (CVE-2026-44513)."""
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "evil.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')")
    index = json.loads((model / "model_index.json").read_text())
    index |= {"_class_name": "evil", "unet": ["evil", "Evil"]}
    (model / "model_index.json").write_text(json.dumps(index))
    StableDiffusion.load(ModelConfig(str(model)))
    assert not (tmp_path / "exploded").exists()


RESIDUAL = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0", "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2", "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1", "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0": "output_blocks.1.2", "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
VAE = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1", "down_blocks": "down", "up_blocks.0": "up.1",
    "up_blocks.1": "up.0", "resnets": "block", "downsamplers.0": "downsample",
    "upsamplers.0": "upsample", "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip


def original_layout(pipeline):
    """The weights of `tiny_pipeline` with the names of the original Stable Diffusion."""

    def renamed(key, *tables):
        for table in tables:
            for ours, original in table.items():
                key = key.replace(ours, original)
        return key

    weights = {
        f"cond_stage_model.transformer.text_model.{key}": value
        for key, value in pipeline.text_encoder.state_dict().items()
    }
    for key, value in pipeline.unet.state_dict().items():
        tables = (RESIDUAL, UNET) if ".resnets." in key else (UNET,)
        weights["model.diffusion_model." + renamed(key, *tables)] = value
    for key, value in pipeline.vae.state_dict().items():
        # attention consisted of 1 x 1 convolutions
        value = value[:, :, None, None] if value.ndim == 2 else value
        weights["first_stage_model." + renamed(key, VAE)] = value
    return {key: value.contiguous() for key, value in weights.items()}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """(complete folder, single file, folder with configurations and tokenizer only)."""
    path, pipeline = tmp_path_factory.mktemp("single"), tiny_pipeline("v_prediction")
    pipeline.save_pretrained(path / "complete")
    save_file(original_layout(pipeline), path / "one.safetensors")
    shutil.copytree(
        path / "complete", path / "parts", ignore=shutil.ignore_patterns("*.safetensors")
    )
    return path / "complete", path / "one.safetensors", path / "parts"


def test_a_single_file_is_the_model_of_its_folder(single, rng):
    complete, file, parts = single
    one = StableDiffusion.load(ModelConfig(str(file), parts=str(parts)))
    other = StableDiffusion.load(ModelConfig(str(complete)))
    for name in ("text_encoder", "vae", "unet"):
        found, wanted = getattr(one, name).state_dict(), getattr(other, name).state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert (one.predicts_v, one.image_size, one.source) == (True, other.image_size, str(file))
    noisy, timesteps = torch.randn(2, 4, 8, 8, generator=rng), torch.tensor([40, 700])
    predicted = (m.predict_noise(noisy, timesteps, texts(m)) for m in (one, other))
    torch.testing.assert_close(*predicted)


def test_a_single_file_without_parts_contacts_the_hub_unless_offline(single, monkeypatch):
    requested = []

    def nothing(name, local_files_only, **_):
        requested.append((name, local_files_only))
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", nothing)
    for offline in (False, True):
        with pytest.raises(ModelNotFound, match=r"model .*one.safetensors': not in the cache"):
            StableDiffusion.load(ModelConfig(str(single[1]), offline=offline))
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert requested == [(name, False), (name, True)]


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ("lora", "CLIP"),
        ("cond_stage_model", "AutoencoderKL|UNet2DConditionModel"),
        ("", "Unable to load weights"),
    ],
)
def test_an_incomplete_single_file_raises_one_sentence(single, tmp_path, kept, says):
    _, _, parts = single
    file = tmp_path / "odd.safetensors"
    weights = original_layout(tiny_pipeline())
    weights = {key: value for key, value in weights.items() if key.startswith(kept)}
    if kept:
        save_file(weights or {"lora": torch.ones(2)}, file)
    else:
        file.write_bytes(b"not weights")
    with pytest.raises(ModelNotFound, match=f"Cannot load the model '{file}': .*({says})"):
        StableDiffusion.load(ModelConfig(str(file), parts=str(parts)))


def test_the_names_in_the_parts_model_index_are_ignored(single, tmp_path, monkeypatch):
    _, file, parts = single
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    odd = shutil.copytree(parts, tmp_path / "parts")
    index = json.loads((odd / "model_index.json").read_text())
    (odd / "model_index.json").write_text(json.dumps({**index, "unet": ["evil", "Evil"]}))
    StableDiffusion.load(ModelConfig(str(file), parts=str(odd)))
    assert not (tmp_path / "exploded").exists()


def test_a_model_with_a_vocabulary_refuses_other_prompts(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "model")
    words = {"objects": ["rabbit", "gas can"], "colours": ["purple"]}
    (model / "vocabulary.json").write_text(json.dumps(words))
    config = ModelConfig(str(model))
    check_prompt_words("a purple rabbit", config)
    check_prompt_words("a Gas Can", config)
    with pytest.raises(UnknownWords, match=r"'a castle'. It knows: rabbit, gas can; .*--model"):
        check_prompt_words("a castle", config)
    with pytest.raises(
        UnknownWords, match=r"not know: fluffy; it would make a purple rabbit\. Use"
    ):
        check_prompt_words("a fluffy purple rabbit", config)
    with pytest.raises(
        UnknownWords, match=r"'a rabit'. Did you mean 'a rabbit'\? It knows: .*--any"
    ):
        check_prompt_words("a rabit", config)
    with pytest.raises(
        UnknownWords, match=r"know: purpel; it would make a gas can\. Did you mean "
    ):
        check_prompt_words("a purpel gas can", config)
    check_prompt_words("a castle", ModelConfig(str(folder)))


def test_a_process_caches_one_model(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    first = StableDiffusion.shared(ModelConfig(str(folder)))
    assert StableDiffusion.shared(ModelConfig(str(folder))) is first
    assert StableDiffusion.shared(ModelConfig(str(other))) is not first
    first = StableDiffusion.shared(ModelConfig(str(folder)))
    weights = next(other.glob("unet/*.safetensors"))
    kept = StableDiffusion.shared(ModelConfig(str(other)))
    os.utime(weights, ns=(1, 1))  # retrained
    assert StableDiffusion.shared(ModelConfig(str(other))) is not kept
    assert StableDiffusion.shared(ModelConfig(str(folder))) is not first


def test_every_name_of_a_device_has_the_same_cached_model(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(StableDiffusion, "load", lambda config, device: (config, device))
    config = ModelConfig(str(folder))
    first = StableDiffusion.shared(config, "cuda")
    for device in ("cuda:0", torch.device("cuda"), torch.device("cuda:0"), "auto"):
        assert StableDiffusion.shared(config, device) is first
    assert StableDiffusion.shared(config) is not first


def test_local_names_become_absolute_and_hub_ids_stay(tmp_path, monkeypatch):
    for name in ("model", "parts", "toybox"):
        (tmp_path / name).mkdir()
    (tmp_path / "one.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    local = ModelConfig("./one.safetensors", parts="parts", encoder="~/model")
    path = tmp_path.resolve()
    assert absolute_paths(local) == ModelConfig(
        str(path / "one.safetensors"), parts=str(path / "parts"), encoder=str(path / "model")
    )
    remote = ModelConfig("owner/model", parts="owner/parts", encoder="owner/encoder")
    for config in (remote, ModelConfig(TOYBOX), ModelConfig("missing/folder/model")):
        assert absolute_paths(config) == config
    assert absolute_paths(absolute_paths(local)) == absolute_paths(local)


def changed(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize("shard", ["evil.bin", "../outside.safetensors", "/tmp/x.safetensors", 3])
@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_an_index_names_local_safetensors_only(tmp_path, part, shard):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    model = tmp_path / "model"
    tiny_pipeline().save_pretrained(model)
    (weights,) = (model / part).glob("*.safetensors")
    shutil.copy(weights, tmp_path / "outside.safetensors")
    weights.rename(weights.with_name("other.safetensors"))
    (model / part / "evil.bin").write_bytes(pickle.dumps(Bomb()))
    index = {"metadata": {}, "weight_map": {"a": "other.safetensors", "b": shard}}
    (model / part / f"{weights.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelNotFound, match=r"names the shard .*never pickles"):
        StableDiffusion.load(ModelConfig(str(model)))
    assert not (tmp_path / "exploded").exists()


def test_the_attention_is_ours(tmp_path):
    """A configuration's could name code of the Hub (CVE-2026-4372)."""
    tiny_pipeline().save_pretrained(tmp_path)
    odd = {"_attn_implementation": "eager", "_attn_implementation_internal": "owner/evil"}
    changed(tmp_path / "text_encoder" / "config.json", **odd, attn_implementation="owner/evil")
    loaded = StableDiffusion.load(ModelConfig(str(tmp_path)))
    assert loaded.text_encoder.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
@pytest.mark.parametrize("key", ["auto_map", "quantization_config"])
def test_a_configuration_that_asks_for_code_is_refused(tmp_path, part, key):
    tiny_pipeline().save_pretrained(tmp_path)
    changed(tmp_path / part / "config.json", **{key: {"quant_method": "torchao"}})
    with pytest.raises(ModelNotFound, match=f"asks for {key}"):
        StableDiffusion.load(ModelConfig(str(tmp_path)))


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_damaged_files_of_a_model_are_one_sentence(tmp_path, part):
    tiny_pipeline().save_pretrained(tmp_path)
    (weights,) = (tmp_path / part).glob("*.safetensors")
    config, good = tmp_path / part / "config.json", weights.read_bytes()
    for content in (good[: len(good) // 2], b"", b"\xff" * 100, good[:-1] + b"\x00" * 9):
        weights.write_bytes(content)
        with pytest.raises(ModelNotFound, match="Cannot load the model"):
            StableDiffusion.load(ModelConfig(str(tmp_path)))
    weights.write_bytes(good)
    for content in ("", "[1]", "{", "[" * 100_000, "{}", '{"_class_name": 3}'):
        config.write_text(content)
        with pytest.raises(ModelNotFound):
            StableDiffusion.load(ModelConfig(str(tmp_path)))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"objects": 3, "colours": []}'])
def test_a_damaged_vocabulary_is_one_sentence(tmp_path, content):
    tiny_pipeline().save_pretrained(tmp_path)
    (tmp_path / "vocabulary.json").write_text(content)
    with pytest.raises(ModelNotFound, match=r"vocabulary.json"):
        check_prompt_words("a rabbit", ModelConfig(str(tmp_path)))
