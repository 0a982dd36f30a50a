"""Networks of timm, with and without torchvision: layers, weights, randomness, whole runs."""

import subprocess
import sys
import textwrap
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import SMALL

from train_cls import api
from train_cls.config import AnnealConfig, TrainConfig, with_absolute_data
from train_cls.data import load_splits
from train_cls.evaluate.metrics import embed
from train_cls.evaluate.prediction_depth import default_layers, layer_features
from train_cls.groups import split_groups
from train_cls.models import build_model, list_models, load_initial_, seed_dropout_
from train_cls.models.timm_import import import_timm
from train_cls.train import new_training, train

pytestmark = pytest.mark.skipif(
    find_spec("timm") is None, reason="timm is not installed: pip install --no-deps timm"
)
NAMES = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet")
SMALL_IMAGES = {"img_size": 32, "patch_size": 8}
RUN = replace(
    SMALL,
    model="timm:test_vit",
    model_args=SMALL_IMAGES | {"proj_drop_rate": 0.1, "drop_path_rate": 0.1},
    splits=replace(SMALL.splits, size=32, test_per_class=2),
    epochs=1,
    generations=2,
    batch=25,
)


@pytest.fixture(scope="module")
def splits():
    return load_splits("digits", RUN.splits)


def images(channels: int = 3, size: int = 64) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8, generator=rng)


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_last_layer_of_the_features(name):
    model = build_model(f"timm:{name}", 7, channels=1).eval()
    with torch.no_grad():
        logits = model(images(1))
        assert logits.shape == (2, 7)
        torch.testing.assert_close(model.fc(embed(model, images(1))), logits)


@pytest.mark.parametrize("name", NAMES)
def test_three_groups_hold_every_parameter_once(name):
    model = build_model(f"timm:{name}", 7)
    groups = split_groups(model, TrainConfig())
    assert [group["name"] for group in groups] == ["early", "late", "head"]
    assert [len(group["params"]) > 0 for group in groups] == [True] * 3
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(
        map(id, model.parameters())
    )
    assert {id(p) for p in groups[2]["params"]} == {id(model.fc.weight), id(model.fc.bias)}


def test_thresholds_are_timms_module_names_and_layer_numbers():
    def first_late(name: str, before: str) -> str:
        model = build_model(f"timm:{name}", 7)
        late = split_groups(model, TrainConfig(anneal=AnnealConfig(before=before)))[1]["params"][0]
        return next(key for key, p in model.body.named_parameters() if p is late)

    assert first_late("test_vit", "blocks.4") == "blocks.4.norm1.weight"
    assert first_late("test_vit", "layer3") == "blocks.3.norm1.weight"  # half of 6 blocks
    assert first_late("test_resnet", "layer3") == "layer3.0.conv1.weight"
    assert first_late("test_resnet", "4") == "layer1.0.conv1.weight"  # after 3 of the stem
    with pytest.raises(ValueError, match="children are patch_embed, .*blocks"):
        first_late("test_vit", "layer4")


def test_weights_depend_only_on_the_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    one, same, other = (weights(build_model("timm:test_vit", 7, seed=s)) for s in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_a_function_of_seed_step_and_pass():
    model = build_model("timm:test_vit", 7, arguments={"drop_rate": 0.5, "drop_path_rate": 0.5})
    model.train()

    def draw(step: int) -> torch.Tensor:
        seed_dropout_(model, 0, step)
        with torch.no_grad():
            return torch.stack([model(images()), model(images())])

    before = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert not torch.equal(*draw(1)), "passes of one step draw differently"
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_resumes_bit_for_bit_and_is_evaluated(splits, tmp_path):
    config = replace(RUN, method="seal-reinit", optimizer="adamw", layer_decay=0.8, lr=1e-3)
    config = replace(config, decay_norms=False, augment=replace(config.augment, mixup=1.0))
    whole = new_training(config, splits.train)
    results = list(train(whole, splits))
    first = new_training(config, splits.train)
    stopped = train(first, splits)
    next(stopped)
    second = new_training(config, splits.train)
    second.load(first.save(tmp_path / "checkpoints"))
    rest = list(train(second, splits))
    assert torch.equal(weights(whole.model), weights(second.model))
    assert rest[-1].scores == results[-1].scores

    folder = tmp_path / "run"
    list(api.train(config, folder))
    found = api.evaluate(folder)
    assert found["test"]["accuracy"] == pytest.approx(results[-1].scores["test accuracy"])
    layers = api.depth(folder, max_images=20)["layers"]
    assert list(layers) == [f"network.blocks.{i}" for i in range(6)] + ["network.head"]


def test_depth_probes_average_tokens_and_not_channels():
    model = build_model("timm:test_vit", 7)
    layers = default_layers(model)
    assert layer_features(model, images(), layers)["network.blocks.2"].shape == (2, 64)
    assert default_layers(build_model("timm:test_convnext", 7))[0] == "network.stages.0"


def test_layer_decay_and_exemptions_are_those_of_timm():
    from timm.optim import param_groups_layer_decay

    model = build_model("timm:test_vit", 7)
    config = TrainConfig(lr=0.1, weight_decay=0.05, decay_norms=False, layer_decay=0.75)
    ours = {
        id(p): (group["lr"] / 0.1, group["weight_decay"])
        for group in split_groups(model, config)
        for p in group["params"]
    }
    theirs = param_groups_layer_decay(
        model.body, 0.05, model.body.no_weight_decay(), layer_decay=0.75
    )
    for group in theirs:
        for p in group["params"]:
            assert ours.pop(id(p)) == pytest.approx((group["lr_scale"], group["weight_decay"]))
    assert not ours


def test_weights_of_a_run_start_another_with_other_classes(splits, tmp_path):
    folder = tmp_path / "first"
    list(api.train(replace(RUN, generations=1, method="normal"), folder))
    few = replace(RUN, splits=replace(RUN.splits, only_classes="0-3", validation=0), batch=20)
    config = with_absolute_data(replace(few, initial_checkpoint=str(folder)))
    source, _ = api.load_run(folder)[1], None
    target = new_training(config, load_splits("digits", config.splits).train).model
    own = dict(target.named_parameters())
    for name, value in source.named_parameters():
        assert (own[name].shape != value.shape) == name.startswith("network.head.")
        assert name.startswith("network.head.") or torch.equal(own[name], value), name
    assert torch.equal(target.pixels.mean, source.pixels.mean)
    unloaded = new_training(config, load_splits("digits", config.splits).train, initial=False)
    assert torch.equal(target.fc.weight, unloaded.model.fc.weight), "seeded as without"


def test_resuming_needs_the_initial_checkpoint_no_more(splits, tmp_path):
    source, folder = tmp_path / "weights.safetensors", tmp_path / "run"
    save_file(
        dict(build_model("timm:test_vit", 10, 1, arguments=SMALL_IMAGES).body.state_dict()), source
    )
    config = replace(RUN, initial_checkpoint=str(source))
    run = api.train(config, folder)
    next(run)
    run.close()
    source.unlink()
    assert [result.epoch for result in api.resume(folder)] == [2]
    with pytest.raises(ValueError, match=r"weights\.safetensors cannot be read: No such file"):
        api.train(config, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_files_of_timm_are_read_and_pickles_refused(tmp_path):
    source, model = build_model("timm:test_resnet", 5, seed=1), build_model("timm:test_resnet", 5)
    save_file(dict(source.body.state_dict()), tmp_path / "timm.safetensors")
    load_initial_(model, tmp_path / "timm.safetensors")
    assert torch.equal(weights(model), weights(source))
    with pytest.raises(ValueError, match="pickle, .*torch.load.'a.pth', weights_only=True"):
        load_initial_(model, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"no weights for this network. .* another network: "):
        load_initial_(build_model("timm:test_vit", 5), tmp_path / "timm.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_initial_(model, tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="no run with a finished generation"):
        load_initial_(model, tmp_path)


def test_pretrained_weights_come_as_safetensors_with_their_normalisation(tmp_path, monkeypatch):
    source = build_model("timm:test_resnet", 1000, seed=1).body.state_dict()
    save_file(dict(source), tmp_path / "model.safetensors")
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    model = build_model("timm:test_resnet", 5, 3, (0.1,) * 3, (0.2,) * 3, pretrained=True)
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    assert torch.equal(model.body.conv1[0].weight, source["conv1.0.weight"])
    assert model.pixels.mean.tolist() == pytest.approx(model.body.pretrained_cfg["mean"])
    grey = build_model("timm:test_resnet", 5, 1, pretrained=True)
    torch.testing.assert_close(
        grey.body.conv1[0].weight, source["conv1.0.weight"].sum(1, keepdim=True)
    )

    def fail(*_):
        raise OSError("We couldn't connect to the Hub.\nMore.")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(ValueError, match="cannot be loaded: We couldn't connect to the Hub. Conn"):
        build_model("timm:test_resnet", 5, pretrained=True)


def test_wrong_settings_are_one_sentence():
    with pytest.raises(
        ValueError, match="timm .* has no network 'resnet51'. Did you mean .*resnet50"
    ):
        build_model("timm:resnet51", 5)
    with pytest.raises(ValueError, match="cannot be built with {'bogus': 1}: .*'bogus'"):
        build_model("timm:test_resnet", 5, arguments={"bogus": 1})
    with pytest.raises(ValueError, match="must not contain 'num_classes'"):
        build_model("timm:test_resnet", 5, arguments={"num_classes": 3})
    with pytest.raises(ValueError, match="resnet18 is none. Use timm:NAME"):
        build_model("resnet18", 5, pretrained=True)
    with pytest.raises(ValueError, match="does not take images of 64 x 64 .*img_size.*64"):
        build_model("timm:vit_tiny_patch16_224", 5).eval()(images())
    assert "timm:test_vit" in list_models("timm:test*") and list_models("vgg*") == ["vgg16"]
    with pytest.raises(ValueError, match="No model matches 'timm:nothing'"):
        list_models("timm:nothing")


def test_networks_need_no_torchvision_that_works(tmp_path):
    """A torchvision of another torch raises a RuntimeError; the other tests have none at all."""
    (tmp_path / "torchvision").mkdir()
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    script = """
        import sys
        from train_cls.models import build_model
        build_model("timm:test_resnet", 5)
        assert not [name for name in sys.modules if name.startswith("torchvision")]
        try:
            import torchvision
        except RuntimeError as error:
            print(error)
    """
    path = [str(tmp_path), str(Path(__file__).parents[2])]
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path}\n{textwrap.dedent(script)}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "torchvision::nms" in found.stdout, found.stderr


def test_parts_of_torchvision_refuse_to_be_used():
    if find_spec("torchvision"):
        pytest.skip("torchvision is installed")
    with pytest.raises(ImportError, match="ToTensor is a part of torchvision, which is not inst"):
        import_timm().data.transforms.MaybeToTensor()


def test_the_command_line_trains_a_network_of_timm(tmp_path, capsys):
    from train_cls.cli import main

    with pytest.raises(SystemExit):
        main(["models", "timm:test_res*"])
    assert capsys.readouterr().out == "timm:test_resnet\n"
    folder = tmp_path / "run"
    with pytest.raises(SystemExit):
        main(
            f"train {folder} --model timm:test_resnet --per-class 4 --test-per-class 2 --size 32 "
            "--epochs 1 --generations 1 --batch 20 --method normal --set augment.cutmix=1".split()
        )
    weights = next((folder / "generations").glob("*/model.safetensors"))
    assert "network.layer3.0.conv1.weight" in load_file(weights)
