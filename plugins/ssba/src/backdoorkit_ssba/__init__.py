"""SSBA: an encoder hides a message in every image, each time by another pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import MethodInfo, Need, PoisonOptions, Stage, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SSBAConfig", "backdoorkit_attacks"]


@attrs.frozen(kw_only=True)
class SSBAConfig(PoisonOptions):
    """What is hidden, how the encoder is trained, and when it is good enough."""

    bits: int = option(20, ge=1, symbol="L", help="Length of the hidden message.")
    head: Literal["residual", "direct"] = option(
        "residual",
        help="What the encoder gives: a pattern that is added to the image, or the whole image "
        "anew, which takes far longer to learn.",
    )
    width: int = option(32, ge=1, help="Channels of the first layers of encoder and decoder.")
    steps: int = option(1500, ge=1, help="Optimizer steps of encoder and decoder.")
    batch_size: int = option(64, ge=1, help="Images per step.")
    learning_rate: float = option(5e-4, gt=0, help="Learning rate (Adam).")
    image_weight: float = option(
        10.0, ge=0, symbol="λ", help="Weight of the squared change of the image, once it is full."
    )
    wait: int = option(
        100,
        ge=0,
        help="Steps that images may change freely after nine tenths of the bits of a batch were "
        "read correctly for the first time.",
    )
    ramp: int = option(400, ge=1, help="Steps over which the image weight then rises to its full.")
    min_bit_accuracy: float = option(
        0.95,
        ge=0,
        le=1,
        help="Share of the bits that must be read correctly from 8-bit images the encoder was not "
        "trained on; otherwise the attack is refused.",
    )
    min_psnr: float = option(
        28.0, ge=0, help="Similarity of images with and without message that is required, in dB."
    )
    max_cosine: float = option(
        1.0,
        ge=-1,
        le=1,
        help="Mean cosine between the patterns of two images that is still accepted as "
        "sample-specific; 1 accepts even one pattern for all.",
    )


@hookimpl
def backdoorkit_attacks() -> Iterable[MethodInfo]:
    """The sample-specific attack."""
    yield MethodInfo(
        name="ssba",
        summary="An encoder hides a message in every image, each time by another faint pattern.",
        reference="Li, Li, Wu, Li, He, Lyu: Invisible Backdoor Attack with Sample-Specific "
        "Triggers, ICCV 2021, arXiv:2012.03816",
        implementation="backdoorkit_ssba._attack:SSBA",
        config=SSBAConfig,
        stage=Stage.DATA,
        needs={Need.TRAINING_DATA},
        presets={
            "paper": {"bits": 100, "rate_basis": "append", "poison_rate": 0.1, "steps": 20000},
            "backdoorbench": {
                "bits": 1,
                "steps": 500,
                "wait": 50,
                "ramp": 150,
                "target": 0,
                "poison_rate": 0.1,
            },
        },
    )
