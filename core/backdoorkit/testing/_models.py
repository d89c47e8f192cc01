"""What architectures must keep, on images of 32 x 32 pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from backdoorkit.testing._subject import Subject, require
from backdoorkit.testing.tiny import copy_state

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CHECKS"]

_SHAPE: Final = (3, 32, 32)
_CLASSES: Final = 7


def builds_a_classifier(subject: Subject) -> None:
    """Logits are N x K and finite, on the CPU, in float32."""
    logits = _built(subject).eval()(_images())
    require(logits.shape == (4, _CLASSES), f"logits have shape {tuple(logits.shape)}")
    require(logits.dtype == torch.float32, f"logits are {logits.dtype}")
    require(bool(logits.isfinite().all()), "logits are not finite")


def every_parameter_can_be_trained(subject: Subject) -> None:
    """One backward pass reaches every parameter with a finite gradient."""
    network = _built(subject).train()
    network.zero_grad()
    torch.nn.functional.cross_entropy(network(_images()), torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    for name, parameter in network.named_parameters():
        require(parameter.requires_grad, f"{name} does not require a gradient")
        require(parameter.grad is not None, f"no gradient reaches {name}")
        finite = parameter.grad is None or bool(parameter.grad.isfinite().all())
        require(finite, f"the gradient of {name} is not finite")


def initial_weights_follow_the_seed(subject: Subject) -> None:
    """One state of the global generator gives the same weights, another one others."""
    first, again, other = (copy_state(_build(subject, seed)) for seed in (0, 0, 1))
    different = [name for name in first if not torch.equal(first[name], again[name])]
    require(not different, f"weights differ for one seed, first in {different[:1]}")
    require(
        any(not torch.equal(first[name], other[name]) for name in first),
        "weights are the same for two seeds",
    )


def weights_are_loaded_again(subject: Subject) -> None:
    """Saved weights in a fresh network give the same logits."""
    network, fresh = _built(subject).eval(), _build(subject, 1).eval()
    fresh.load_state_dict(network.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(fresh(_images()), network(_images()))


def images_of_a_batch_do_not_mix(subject: Subject) -> None:
    """In eval mode, logits of an image do not depend on its neighbours."""
    network = _built(subject).eval()
    with torch.inference_mode():
        together, alone = network(_images()), network(_images()[:1])
    torch.testing.assert_close(together[:1], alone, rtol=1e-3, atol=1e-4)


CHECKS: Final[tuple[Callable[[Subject], None], ...]] = (
    builds_a_classifier,
    every_parameter_can_be_trained,
    initial_weights_follow_the_seed,
    weights_are_loaded_again,
    images_of_a_batch_do_not_mix,
)


def _build(subject: Subject, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = subject.create().build(_SHAPE, _CLASSES)
    require(isinstance(network, nn.Module), f"build must return a module, not {network!r}")
    return network


def _built(subject: Subject) -> nn.Module:
    return subject.once("building it", lambda: _build(subject, 0))


def _images() -> Tensor:
    return torch.rand(4, *_SHAPE, generator=torch.Generator().manual_seed(1))
