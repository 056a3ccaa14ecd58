"""Classifiers: loss, probabilities, accuracy against NumPy; ResNets with the stem for small pictures."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from lowpose import registry
from lowpose.config import ModelConfig, parse_config
from lowpose.errors import LowposeError
from lowpose.loader import PictureBatch
from lowpose.nn.backbones import build_backbone
from lowpose.nn.classifier import build_classifier
from lowpose.nn.heads.linear import LinearConfig, LinearHead
from lowpose.samples import ClassData, PictureSample
from lowpose.tasks.classification import Predictions, hits, measure, paired

COLOURS = ("red", "green", "blue", "grey", "pink", "teal", "gold")


def batch(labels: list[int], weight: list[float]) -> PictureBatch:
    n = len(labels)
    return PictureBatch(torch.zeros(n, 3, 4, 4), torch.tensor(labels), torch.tensor(weight), torch.arange(n), [])


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_cross_entropy_is_summed_over_the_pictures_that_count(smoothing):
    rng = np.random.default_rng(0)
    logits, labels, weight = rng.normal(0, 3, (6, 5)), [4, 0, 2, 2, 1, 3], [1.0, 1, 0, 1, 0, 1]
    head = LinearHead(LinearConfig(smoothing=smoothing), 8, 5)
    given = torch.tensor(logits, requires_grad=True)
    terms, counted = head.terms({"logits": given}, batch(labels, weight))
    targets = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    each = -(targets * np.log(softmax(logits))).sum(1)
    (term,) = terms.values()
    assert list(terms) == ["cross_entropy"] and counted.tolist() == weight
    assert (
        float(term.total.detach()) == pytest.approx(float(each[np.array(weight) > 0].sum()), rel=1e-12) and float(term.count) == 4
    )
    term.total.backward()
    wanted = (softmax(logits) - targets) * np.array(weight)[:, None]
    assert np.allclose(given.grad.numpy(), wanted, rtol=1e-10, atol=1e-12)  # nothing from pictures without weight


def test_the_head_is_a_mean_and_a_linear_layer():
    torch.manual_seed(0)
    head = LinearHead(LinearConfig(dropout=0.5), 6, 4).double()
    feature = torch.randn(3, 6, 5, 2, dtype=torch.float64)
    weight, bias = (p.detach().numpy() for p in (head.fc.weight, head.fc.bias))
    wanted = feature.numpy().mean((2, 3)) @ weight.T + bias
    found = head.eval()(feature)["logits"]
    assert np.allclose(found.detach().numpy(), wanted, rtol=1e-12)
    assert not torch.allclose(head.train()(feature)["logits"], found)  # dropout while training only
    probabilities = head.probabilities({"logits": found}).detach().numpy()
    assert np.allclose(probabilities, softmax(wanted), atol=1e-6)


@pytest.mark.parametrize("name", registry.names("classifier"))
def test_every_classifier_head_answers_the_same_questions(name):
    """Contract: outputs are a mapping, terms are sums, probabilities add up, every parameter gets a gradient, per-label rows."""
    entry = registry.find("classifier", name)
    torch.manual_seed(0)
    head = entry.make(entry.config(), 6, 4)
    feature = torch.randn(5, 6, 3, 2)
    labels, weight = [0, 3, 1, 1, 2], [1.0, 1, 1, 0, 1]
    outputs = head(feature)
    assert torch.allclose(head.probabilities(outputs).sum(1), torch.ones(5), atol=1e-6)
    terms, _ = head.terms(outputs, batch(labels, weight))
    parts = [head.terms(head(feature[i : i + 1]), batch(labels[i : i + 1], weight[i : i + 1]))[0] for i in range(5)]
    for key, term in terms.items():
        assert float(term.total.detach()) == pytest.approx(sum(float(p[key].total.detach()) for p in parts), rel=1e-5)
        assert float(term.count) == sum(float(p[key].count) for p in parts)
    sum(term.total for term in terms.values()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())
    for key, groups in head.per_label.items():
        assert head.get_parameter(key).shape[0] == groups * 4


def classifier(**sections):
    values = {"task": "classification", "input": {"size": [32, 32]}, **sections}
    values["model"] = {"backbone": "test_resnet", "pretrained": "none", **values.get("model", {})}
    torch.manual_seed(0)
    return build_classifier(parse_config(values, "recipe"), COLOURS)


def test_a_model_normalises_and_averages_with_the_mirror_image():
    model = classifier().eval()
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # ImageNet's, in 0..1
    with torch.no_grad():
        feature = model.backbone((pictures / 255 - mean) / std)
        own = torch.softmax(model.head.fc(feature.mean((2, 3))), 1)
    assert torch.allclose(model.predict(pictures), own, atol=1e-6) and own.std() > 0
    assert torch.equal(model.predict(pictures), model.predict(pictures.float()))
    mirrored = model.predict(pictures.flip(-1))
    assert torch.allclose(model.predict(pictures, flip=True), (own + mirrored) / 2, atol=1e-6)
    assert not torch.allclose(mirrored, own, atol=1e-4)


def test_heads_that_are_none():
    for settings, answer in (
        ({"name": "simcc"}, "^unknown classifier 'simcc'; known: linear$"),
        ({"name": None}, "^'head.name' is missing; known heads: linear$"),
        ({"smoothng": 0.1}, "^head: unknown key 'smoothng'; did you mean 'smoothing'"),
        ({"smoothing": 1.0}, "^head: 'smoothing' = 1.0: input should be less than 1$"),
    ):
        with pytest.raises(LowposeError, match=answer):
            classifier(head=settings)


def test_hits_by_counting():
    """Of equally likely classes the first stands first."""
    rng = np.random.default_rng(0)
    probabilities = rng.integers(0, 4, (300, 7)) / 10  # with many ties
    labels = rng.integers(0, 7, 300)
    for best in (1, 2, 5):
        wanted = []
        for row, label in zip(probabilities, labels, strict=True):
            before = sum(p > row[label] or (p == row[label] and i < label) for i, p in enumerate(row))
            wanted.append(before < best)
        assert hits(probabilities, labels, best).tolist() == wanted and 0 < sum(wanted) < 300
    assert hits(np.full((7, 7), np.nan), np.arange(7), 5).sum() == 0  # pictures that could not be read


def made(classes: tuple[str, ...], n: int, seed: int = 0) -> tuple[ClassData, Predictions]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(classes) - 1, n)  # no picture of the last class
    probabilities = softmax(rng.normal(0, 1, (n, len(classes))) + 1.5 * np.eye(len(classes))[labels]).astype(np.float32)
    samples = [PictureSample(str(i), int(label)) for i, label in enumerate(labels)]
    return ClassData("folder", "val", ".", classes, samples, None), Predictions(probabilities, ["3: truncated picture"])


def test_measured_accuracy():
    data, found = made(COLOURS, 200)
    report = measure(None, None, data, found)
    labels = np.array([s.label for s in data.samples])
    ranks = np.array([(row > row[label]).sum() for row, label in zip(found.probabilities, labels, strict=True)])
    for name, best in (("top-1", 1), ("top-5", 5)):
        metric, share = report["metrics"][name], float((ranks < best).mean())
        assert metric["value"] == pytest.approx(100 * share) and metric["n"] == 200
        assert metric["low"] < metric["value"] < metric["high"]
        spread = 100 * np.sqrt(share * (1 - share) / 200)  # of a binomial share
        assert metric["high"] - metric["low"] == pytest.approx(2 * 1.96 * spread, rel=0.2)
    each = report["groups"]["top-1"]
    assert list(each) == list(COLOURS[:-1])  # those that have pictures
    assert each["blue"] == pytest.approx(100 * (ranks[labels == 2] == 0).mean())
    assert report["skipped_pictures"] == found.skipped
    sums, precision = paired(None, None, data, {"probabilities": found.probabilities})
    assert precision is None and np.array_equal(sums["top-1"][0], 100.0 * (ranks == 0)) and (sums["top-5"][1] == 1).all()


def test_five_classes_have_no_top_5_and_no_resamples_no_interval():
    report = measure(None, None, *made(COLOURS[:5], 30), bootstrap=0)
    assert list(report["metrics"]) == ["top-1"]
    assert report["metrics"]["top-1"]["low"] is None and report["metrics"]["top-1"]["high"] is None


def small(name: str, size: int = 32, **more):
    with torch.device("meta"):
        return build_backbone(
            ModelConfig(backbone=name, pretrained="none", neck="none", **({"stem": "small"} | more)), (size, size)
        )


@pytest.mark.parametrize(("name", "params"), [("resnet18", 11_173_962), ("resnet50", 23_520_842)])
def test_the_small_stem(name, params):
    """`params`: of the networks that the literature trains on CIFAR-10, their ten classes counted."""
    backbone, plain = small(name), small(name, stem="own")
    net = backbone.body.net
    assert isinstance(net.conv1, nn.Conv2d) and net.conv1.kernel_size == (3, 3) and net.conv1.stride == (1, 1)
    assert net.conv1.padding == (1, 1) and net.conv1.bias is None and net.conv1.out_channels == 64
    assert not any(isinstance(m, (nn.MaxPool2d, nn.AvgPool2d)) for m in backbone.modules())
    assert (backbone.body.reduction, backbone.stride, backbone.feature_size) == (8, (8.0, 8.0), (4, 4))
    assert (plain.body.reduction, plain.feature_size) == (32, (1, 1))
    assert sum(p.numel() for p in backbone.parameters()) + backbone.channels * 10 + 10 == params
    other = dict(plain.named_parameters())
    assert {k for k, v in backbone.named_parameters() if other[k].shape != v.shape} == {"body.net.conv1.weight"}


def test_the_small_stem_begins_as_timm_begins_its_convolutions():
    torch.manual_seed(0)
    body = build_backbone(ModelConfig(backbone="resnet18", pretrained="none", neck="none", stem="small"), (32, 32)).body
    weight = body.net.conv1.weight.detach()
    own = timm.create_model("resnet18").layer1[0].conv1.weight.detach()
    for std in (float(weight.std()), float(own.std())):
        assert std == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert abs(float(weight.mean())) < 0.005


@pytest.mark.parametrize("name", ["hrnet_w32", "mobilenetv3_small_050", "convnext_atto", "resnet10t", "resnetblur18"])
def test_other_networks_have_other_stems(name):
    with pytest.raises(LowposeError) as error:
        small(name, 64)
    assert str(error.value) == f"model.stem=small changes the stem of ResNets, as resnet18; '{name}' has another"


def test_no_backbone_has_no_stem():
    with pytest.raises(LowposeError, match="^recipe: 'model': backbone 'none' has no stem: leave model.stem out$"):
        parse_config({"model": {"backbone": "none", "pretrained": "none", "tokens": {}, "stem": "small"}}, "recipe")
