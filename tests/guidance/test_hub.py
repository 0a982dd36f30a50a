"""Models of the Hub, without a network."""

import time
from types import SimpleNamespace

import huggingface_hub
import pytest

from dreamsa.config import ModelConfig
from dreamsa.guidance import hub
from dreamsa.guidance.stable_diffusion import ModelNotFound, absolute_paths, locate_model
from dreamsa.presets import MODEL_ALIASES

FILES = {
    "model_index.json": 500,
    "tokenizer/vocab.json": 1000,
    "text_encoder/config.json": 10,
    "text_encoder/model.safetensors": 400,
    "text_encoder/model.fp16.safetensors": 200,
    "text_encoder/pytorch_model.bin": 400,
    "vae/config.json": 10,
    "vae/diffusion_pytorch_model.fp16.safetensors": 100,
    "unet/config.json": 10,
    "unet/diffusion_pytorch_model.safetensors": 4000,
    "unet/diffusion_pytorch_model.non_ema.safetensors": 4000,
    "scheduler/scheduler_config.json": 10,
    "safety_checker/model.safetensors": 900,
}


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A Hub's cache with nothing in it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "local_folder", lambda config: None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def answering(monkeypatch, answer):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: answer())


def repository():
    return SimpleNamespace(
        siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in FILES.items()]
    )


def test_an_alias_is_its_id_everywhere():
    assert locate_model(ModelConfig("sd15")) == ("hub", MODEL_ALIASES["sd15"])
    assert absolute_paths(ModelConfig("sd21")).model == MODEL_ALIASES["sd21"]


def test_only_the_files_that_are_read_are_downloaded(monkeypatch):
    answering(monkeypatch, repository)
    plan = hub.plan_download("a/b")
    assert set(plan.files) == {
        name for name in FILES if "pytorch_model.bin" not in name and "non_ema" not in name
    } - {"text_encoder/model.fp16.safetensors", "safety_checker/model.safetensors"}
    assert plan.bytes == sum(FILES[name] for name in plan.files)


def test_a_silent_hub_is_unreachable_after_seconds(empty, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    answering(monkeypatch, lambda: time.sleep(30))
    began = time.monotonic()
    with pytest.raises(ModelNotFound, match=r"Cannot reach the Hub at .*: --model FOLDER"):
        hub.require_model(ModelConfig("sd15"))
    assert time.monotonic() - began < 10


def test_a_model_that_is_not_here_is_never_downloaded_without_being_asked_for(empty, monkeypatch):
    answering(monkeypatch, repository)
    with pytest.raises(ModelNotFound, match="Download it first .*: dreamsa models download some/m"):
        hub.require_model(ModelConfig("some/model"))
    with pytest.raises(ModelNotFound, match="and may not be downloaded"):
        hub.require_model(ModelConfig("some/model", offline=True))


def test_the_embedded_model_is_here_small_and_not_guarded():
    config = ModelConfig()
    hub.require_model(config)
    facts = hub.inspect(hub.local_folder(config))
    assert 1_000_000 < facts.parameters < hub.LARGE
    assert "MB on a CPU" in facts.memory
    assert hub.cpu_hours(config, 1000) is None


def test_a_large_model_on_a_cpu_has_its_hours(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "local_place", lambda config: tmp_path)
    monkeypatch.setattr(hub, "inspect", lambda place: hub.Facts(4 * 10**9, 10**9))
    hours = hub.cpu_hours(ModelConfig(), 10_000)
    assert hours is not None and hours > 1
    assert hub.cpu_hours(ModelConfig(), 20_000) > hours


def test_a_full_disk_is_said_before_a_download(empty, monkeypatch):
    plan = hub.Download(["unet/config.json"], 10**18)
    with pytest.raises(ModelNotFound, match=r"needs 1000000000.0 GB, and .* left"):
        hub.download("a/b", plan)
