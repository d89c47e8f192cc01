"""Implicit Backdoor Adversarial Unlearning: train against the worst universal perturbation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import MethodInfo, Need, Stage, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["IBAUConfig", "backdoorkit_defenses"]


@attrs.frozen(kw_only=True)
class IBAUConfig:
    """How the perturbation is found, and how the model is trained against it."""

    rounds: int = option(
        5, ge=0, help="Perturbations found one after the other, each trained against for one pass."
    )
    batch_size: int = option(100, ge=1, help="Images per step, in search and training.")
    ascent: Literal["normalized", "gradient"] = option(
        "normalized",
        help="Step of the search: of fixed length along the gradient, or the gradient times "
        "ascent_rate (released code), which depends on the scale of pixels and model.",
    )
    ascent_rate: float = option(
        1.0,
        gt=0,
        help="Length of a normalized step, in the unit of the radius; for plain gradient steps, "
        "their learning rate.",
    )
    ascent_steps: int = option(
        50, ge=1, help="Steps of the search, in as many passes over the reserve as that takes."
    )
    radius: float = option(
        10.0,
        gt=0,
        symbol="C",
        help="Largest L2 norm of the perturbation over the pixels of one image, in [0, 1] pixels.",
    )
    project: bool = option(True, help="Keep the perturbation in the ball of that radius.")
    clamp: bool = option(False, help="Clamp perturbed images to [0, 1].")
    penalty: float = option(
        1e-3, ge=0, symbol="λ", help="Weight of the perturbation's squared norm in the search."
    )
    patched_share: float = option(
        0.01,
        gt=0,
        le=1,
        help="Share of each training batch that gets the perturbation; at least one image does.",
    )
    implicit: bool = option(
        True,
        help="Let the model's gradient account for how the perturbation would respond; without, "
        "plain adversarial training, several times faster.",
    )
    fixed_point_steps: int = option(
        5, ge=1, symbol="K", help="Terms of the series that the response is summed up from."
    )
    fixed_point_rate: float = option(
        0.1, ge=0, symbol="η", help="Step of the map whose fixed point the perturbation is."
    )
    only_shrinking: bool = option(
        True,
        help="End the series before the first term that is not smaller than the one before: it "
        "does not converge there. Released code sums all K terms.",
    )
    optimizer: Literal["adam", "sgd"] = option("adam", help="Optimizer of the model.")
    learning_rate: float = option(1e-3, gt=0, help="Learning rate of the model.")
    momentum: float = option(0.9, ge=0, lt=1, help="SGD momentum (Adam: first beta).")
    amsgrad: bool = option(False, help="Adam's AMSGrad variant.")
    crop_padding: int = option(0, ge=0, help="Random crop after zero padding by this many pixels.")
    horizontal_flip: bool = option(False, help="Mirror half of the images, chosen at random.")


# CIFAR-10 in [0, 1] without normalisation, 5,000 clean images: 50 steps are one pass.
_PAPER = {
    "rounds": 5,
    "batch_size": 100,
    "ascent": "gradient",
    "ascent_rate": 10.0,
    "ascent_steps": 50,
    "radius": 10.0,
    "project": True,
    "clamp": False,
    "penalty": 1e-3,
    "patched_share": 0.01,
    "implicit": True,
    "fixed_point_steps": 5,
    "fixed_point_rate": 0.1,
    "only_shrinking": False,
    "optimizer": "adam",
    "learning_rate": 1e-3,
}


@hookimpl
def backdoorkit_defenses() -> Iterable[MethodInfo]:
    """The defense i-BAU."""
    yield MethodInfo(
        name="ibau",
        summary="Implicit Backdoor Adversarial Unlearning: train against the worst universal "
        "perturbation.",
        reference="Zeng, Chen, Park, Mao, Jin and Jia, Adversarial Unlearning of Backdoors via "
        "Implicit Hypergradient, ICLR 2022",
        implementation="backdoorkit_ibau._defense:IBAU",
        config=IBAUConfig,
        stage=Stage.POST_TRAINING,
        needs={Need.WEIGHTS, Need.CLEAN_SAMPLES},
        presets={
            "paper": _PAPER,
            # The released script: its line that projects to the ball is commented out.
            "official": {**_PAPER, "project": False},
            # 2,500 images, so ten steps a pass; a tenth of the learning rate.
            "backdoorbench": {
                **_PAPER,
                "project": False,
                "batch_size": 256,
                "ascent_steps": 10,
                "learning_rate": 1e-4,
                "amsgrad": True,
                "crop_padding": 4,
                "horizontal_flip": True,
            },
        },
    )
