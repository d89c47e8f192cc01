"""What weights tell about the network they are for, and BackdoorBench's files about theirs."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np
import pytest
import torch

from backdoorkit.errors import UnsafeFileError
from backdoorkit.models._preact import PreActResNet18
from backdoorkit.models._small import SmallCNNArchitecture
from backdoorkit.models._vit import VisionTransformerArchitecture
from backdoorkit.models._wide_resnet import WRN16x1
from backdoorkit.models.catalog import (
    FixedConfig,
    PreActResNetConfig,
    SmallCNNConfig,
    ViTConfig,
)
from backdoorkit.models.checkpoints import InferredNetwork, infer_network, read_checkpoint
from backdoorkit.models.normalized import NormalizedModel

SMALL = {"width": 5, "stages": 2}
NETWORKS = {
    "small-cnn": (SmallCNNArchitecture(SmallCNNConfig(**SMALL)), SMALL),
    "wrn-16-1": (WRN16x1(FixedConfig()), {}),
    "preact-resnet-18": (
        PreActResNet18(PreActResNetConfig(width=4, final_norm=True)),
        {"width": 4, "final_norm": True},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_told_with_its_options_classes_and_channels(name):
    architecture, options = NETWORKS[name]
    weights = architecture.build((1, 16, 16), 7).state_dict()
    assert infer_network(weights) == InferredNetwork(
        name=name, options=options, num_classes=7, channels=1
    )


def test_weights_with_their_normalisation_are_told_too():
    network = NETWORKS["small-cnn"][0].build((3, 16, 16), 4)
    weights = NormalizedModel(network, [0.5] * 3, [0.2] * 3).state_dict()
    assert infer_network(weights).options == SMALL


def test_what_the_weights_do_not_tell_is_not_guessed():
    vit = VisionTransformerArchitecture(ViTConfig(depth=1)).build((3, 32, 32), 10)
    assert infer_network(vit.state_dict()) is None
    weights = NETWORKS["small-cnn"][0].build((3, 16, 16), 4).state_dict()
    weights["stages.0.conv1.weight"] = torch.zeros(6, 3, 3, 3)
    assert infer_network(weights) is None


def benchmark_file(path, **changes):
    """What BackdoorBench's second layout holds, in small."""
    poisoned = {
        "bd_data_container": {
            "save_folder_path": "./record/x/bd_train_dataset",
            "data_dict": {np.int64(3): {"path": "./record/x/3.png", "other_info": [0, 3]}},
            "save_file_format": ".png",
        },
        "getitem_all": True,
        "original_index_array": np.arange(5),
        "poison_indicator": np.array([0.0, 1, 0, 0, 1]),
    }
    weights = NETWORKS["small-cnn"][0].build((3, 16, 16), 4).state_dict()
    content = {
        "model_name": "preactresnet18",
        "num_classes": 4,
        "model": {f"module.{name}": value for name, value in weights.items()},
        "data_path": "./data/cifar10",
        "img_size": (16, 24, 3),
        "clean_data": "cifar10",
        "bd_train": poisoned,
        "bd_test": poisoned,
    }
    torch.save(content | changes, path)
    return path


def test_a_backdoorbench_file_tells_about_its_model(tmp_path):
    read = read_checkpoint(benchmark_file(tmp_path / "attack_result.pt"))
    assert "linear.weight" in read.weights
    assert (read.architecture, read.num_classes, read.data) == ("preactresnet18", 4, "cifar10")
    assert read.image_shape == (3, 16, 24)


def test_facts_of_another_type_are_not_taken(tmp_path):
    path = benchmark_file(tmp_path / "odd.pt", img_size=[16, 24, 3], num_classes=np.int64(4))
    read = read_checkpoint(path)
    assert (read.image_shape, read.num_classes) == (None, None)


def test_a_file_that_wants_more_is_refused_with_the_way_out(tmp_path):
    path = benchmark_file(tmp_path / "old.pt", bd_train={"x": [PurePosixPath("picture")]})
    with pytest.raises(UnsafeFileError, match=r"Posix.*convert the file where"):
        read_checkpoint(path)
