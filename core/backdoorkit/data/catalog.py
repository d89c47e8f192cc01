"""The built-in data sets, offered through the same hook as anybody's; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backdoorkit.data.options import (
    DigitsOptions,
    DownloadOptions,
    FolderOptions,
    GivenImagesOptions,
    NoImagesOptions,
    TrafficSignOptions,
)
from backdoorkit.hooks.hookspecs import hookimpl
from backdoorkit.hooks.info import MethodInfo, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["backdoorkit_datasets"]


@hookimpl
def backdoorkit_datasets() -> Iterable[MethodInfo]:
    """Digits that need no download, the field's usual sets, and a folder of one's own."""
    yield MethodInfo(
        name="digits",
        summary="Real handwritten digits, 8x8 grey, 10 classes; needs no download.",
        reference="Alpaydin, Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998",
        implementation="backdoorkit.data._digits:Digits",
        config=DigitsOptions,
        stage=Stage.DATA,
    )
    yield from _downloads()
    yield from _own_pictures()


def _downloads() -> Iterable[MethodInfo]:
    yield MethodInfo(
        name="cifar10",
        summary="CIFAR-10: 60,000 photographs, 32x32 RGB, 10 classes.",
        reference="Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
        implementation="backdoorkit.data._cifar:Cifar10",
        config=DownloadOptions,
        stage=Stage.DATA,
    )
    yield MethodInfo(
        name="cifar100",
        summary="CIFAR-100: 60,000 photographs, 32x32 RGB, 100 classes.",
        reference="Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
        implementation="backdoorkit.data._cifar:Cifar100",
        config=DownloadOptions,
        stage=Stage.DATA,
    )
    yield MethodInfo(
        name="gtsrb",
        summary="German traffic signs: 39,270 photographs, RGB, 43 classes of unequal size.",
        reference="Stallkamp, Schlipsing, Salmen, Igel: The German Traffic Sign Recognition "
        "Benchmark, IJCNN 2011",
        implementation="backdoorkit.data._torchvision:TrafficSigns",
        config=TrafficSignOptions,
        stage=Stage.DATA,
    )
    yield MethodInfo(
        name="mnist",
        summary="MNIST: 70,000 handwritten digits, 28x28 grey, 10 classes.",
        reference="LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document "
        "Recognition, Proc. IEEE, 1998",
        implementation="backdoorkit.data._torchvision:Mnist",
        config=DownloadOptions,
        stage=Stage.DATA,
    )
    yield MethodInfo(
        name="fashion-mnist",
        summary="Fashion-MNIST: 70,000 articles of clothing, 28x28 grey, 10 classes.",
        reference="Xiao, Rasul, Vollgraf: Fashion-MNIST, arXiv:1708.07747, 2017",
        implementation="backdoorkit.data._torchvision:FashionMnist",
        config=DownloadOptions,
        stage=Stage.DATA,
    )
    yield MethodInfo(
        name="svhn",
        summary="Street View House Numbers: 99,289 digits, 32x32 RGB, 10 classes.",
        reference="Netzer et al.: Reading Digits in Natural Images with Unsupervised Feature "
        "Learning, NIPS workshop, 2011",
        implementation="backdoorkit.data._torchvision:HouseNumbers",
        config=DownloadOptions,
        stage=Stage.DATA,
    )


def _own_pictures() -> Iterable[MethodInfo]:
    yield MethodInfo(
        name="image-folder",
        summary="Pictures of your own in one folder per class.",
        implementation="backdoorkit.data._folder:ImageFolder",
        config=FolderOptions,
        stage=Stage.DATA,
    )
    yield MethodInfo(
        name="given-images",
        summary="A few pictures beside a model that somebody was handed; labels as far as known.",
        implementation="backdoorkit.data._given:GivenImages",
        config=GivenImagesOptions,
        stage=Stage.DATA,
    )
    yield MethodInfo(
        name="no-images",
        summary="No pictures at all, for what needs none: uniform grey images, one per class.",
        implementation="backdoorkit.data._given:NoImages",
        config=NoImagesOptions,
        stage=Stage.DATA,
    )
