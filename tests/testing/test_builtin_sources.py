"""The core's own data sets and architectures keep the contract that plugins are held to."""

from __future__ import annotations

import pytest

from backdoorkit.testing import DatasetSuite, ModelSuite


class TestDigits(DatasetSuite):
    method = "digits"


class TestSmallCNN(ModelSuite):
    method = "small-cnn"


class TestWideResNet(ModelSuite):
    method = "wrn-16-1"


class TestViT(ModelSuite):
    method = "vit"


class TestCallable(ModelSuite):
    method = "callable"
    config = {"target": "backdoorkit_test_networks:make"}  # noqa: RUF012 - as authors write it

    @pytest.fixture(autouse=True)
    def networks(self, tmp_path_factory, monkeypatch):
        folder = tmp_path_factory.mktemp("networks")
        (folder / "backdoorkit_test_networks.py").write_text(
            "from backdoorkit.testing.tiny import TinyNetwork\n\n\n"
            "def make(image_shape, num_classes):\n"
            "    return TinyNetwork(image_shape[0], num_classes)\n"
        )
        monkeypatch.syspath_prepend(str(folder))


@pytest.mark.slow
class TestPreActResNet(ModelSuite):
    method = "preact-resnet-18"


@pytest.mark.slow
class TestVGG(ModelSuite):
    method = "vgg-19-bn"
