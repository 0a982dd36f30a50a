"""Settings: JSON, presets, and one-sentence errors for every wrong value wherever it comes from."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from dreamsa.settings import described, from_tree, names_of, to_tree, with_overrides
from train_cls.bench import BenchConfig
from train_cls.config import (
    PRESETS,
    AnnealConfig,
    DataConfig,
    TrainConfig,
    preset,
    read,
    with_absolute_data,
)
from train_cls.evaluate.few_shot import FewShotConfig
from train_cls.evaluate.hessian import HessianConfig
from train_cls.evaluate.linear_probe import ProbeConfig
from train_cls.evaluate.prediction_depth import DepthConfig

WRONG = [
    (TrainConfig, "optimizer", "SGD"),
    (TrainConfig, "precision", "float64"),
    (TrainConfig, "lr", "fast"),
    (TrainConfig, "lr", 0),
    (TrainConfig, "lr", float("nan")),
    (TrainConfig, "epochs", 0),
    (TrainConfig, "epochs", 2.5),
    (TrainConfig, "warmup", 99),
    (TrainConfig, "warmup", -1),
    (TrainConfig, "momentum", 2),
    (TrainConfig, "pad", -1),
    (TrainConfig, "anneal", "seal"),
    (AnnealConfig, "moments", "Keep"),
    (AnnealConfig, "reinit", None),
    (AnnealConfig, "share", 1.5),
    (AnnealConfig, "scale", -1),
    (AnnealConfig, "fit_share", 1.0),
    (AnnealConfig, "prune", 1),
    (AnnealConfig, "bound", float("inf")),
    (DataConfig, "per_class", -1),
    (DataConfig, "test_per_class", -1),
    (DataConfig, "validation", -1),
    (DataConfig, "size", -1),
    (DataConfig, "size", 5000),
    (BenchConfig, "batch", 0),
    (BenchConfig, "rounds", 0),
    (BenchConfig, "classes", 1),
    (FewShotConfig, "shots", 0),
    (FewShotConfig, "way", 1),
    (ProbeConfig, "learning_rates", ()),
    (ProbeConfig, "learning_rates", (0.1, 0.0)),
    (ProbeConfig, "epochs", 0),
    (HessianConfig, "batches", 0),
    (HessianConfig, "eigenvalues", 0),
    (DepthConfig, "neighbours", 0),
    (DepthConfig, "neighbours", 41),
    (DepthConfig, "pooling", "max"),
]
SECTIONS = {AnnealConfig: "anneal.", DataConfig: "splits."}


def message_of(function, *args, **kwargs) -> str:
    with pytest.raises(ValueError) as error:
        function(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message and message.endswith((".", "?")), message
    return message


@pytest.mark.parametrize(("cls", "name", "value"), WRONG)
def test_a_wrong_value_is_one_sentence_from_constructor_json_and_override(cls, name, value):
    messages = [
        message_of(cls, **{name: value}),
        message_of(replace, cls(), **{name: value}),
        message_of(from_tree, cls, {**to_tree(cls()), name: value}),
        message_of(with_overrides, cls(), {name: value}),
    ]
    if cls in SECTIONS:
        messages += [message_of(with_overrides, TrainConfig(), {SECTIONS[cls] + name: value})]
        assert all(SECTIONS[cls] + name in message for message in messages)
    assert all(name in message for message in messages) and len(set(messages)) == 1


@pytest.mark.parametrize(
    "cls",
    [
        TrainConfig,
        AnnealConfig,
        DataConfig,
        BenchConfig,
        FewShotConfig,
        ProbeConfig,
        HessianConfig,
        DepthConfig,
    ],
)
def test_an_unknown_name_is_one_sentence_from_constructor_json_and_override(cls):
    for function, *args in (
        (lambda: cls(colour=1),),
        (from_tree, cls, {**to_tree(cls()), "colour": 1}),
        (with_overrides, cls(), {"colour": 1}),
    ):
        assert "There is no setting" in message_of(function, *args)


def test_the_nearest_names_are_suggested():
    assert "anneal.scale" in message_of(with_overrides, TrainConfig(), {"anneal.scal": 1})
    assert "anneal.scale" in message_of(from_tree, TrainConfig, {"anneal": {"scal": 1}})


def test_every_setting_has_a_sentence_and_a_range():
    found = list(described(TrainConfig()))
    assert [setting.name for setting in found] == list(names_of(TrainConfig()))
    for setting in found:
        assert setting.allowed and setting.text.endswith("."), setting


@pytest.mark.parametrize("name", PRESETS)
def test_configurations_survive_json(name):
    config = preset(name)
    assert from_tree(TrainConfig, json.loads(json.dumps(to_tree(config)))) == config


def test_presets_differ_where_the_paper_and_its_code_do():
    paper, code = preset("paper"), preset("seal-code")
    assert (paper.lr, code.lr, paper.warmup, code.warmup) == (0.01, 0.1, 0, 20)
    assert paper.anneal.decay_weights and not code.anneal.decay_weights
    assert (paper.anneal.reinit, code.anneal.reinit) == ("model", "torch")
    assert "the presets are" in message_of(preset, "seal")


def test_layer_numbers_and_single_classes_need_no_quotes():
    config = with_overrides(TrainConfig(), {"anneal.before": 23, "splits.only_classes": 3})
    assert (config.anneal.before, config.splits.only_classes) == ("23", "3")


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff", b'{"lr": 0}', b'{"colour": 1}'])
def test_a_bad_configuration_file_is_one_sentence(tmp_path: Path, content: bytes | None):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    message_of(read, path)


def test_only_local_data_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert with_absolute_data(TrainConfig()) == TrainConfig()
    config = with_absolute_data(TrainConfig(data="./digits"))
    assert config.data == str(tmp_path / "digits") and with_absolute_data(config) == config
    assert os.path.isabs(config.data)
