"""Where a network is cut: the layers that a student keeps, and the features they give."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, cast

import attrs
import torch

from backdoorkit.api import InputError, find_structure, require_linear_head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from backdoorkit.api import Context, ImageSet, Structure

__all__ = ["Cut", "copy_weights"]

_CHUNK = 128


@attrs.frozen(eq=False)
class Cut:
    """Layers up to L, whose output F_L is the feature space, and what comes after them."""

    structure: Structure
    #: name of the last linear layer
    head: str
    #: L; empty for everything before the head
    layer: str
    #: modules after L, in execution order, the head among them
    after: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, data: ImageSet, layer: str) -> Cut:
        """The cut of ``model`` behind ``layer``.

        Raises
        ------
        StructureError
            where there is no last linear layer.
        InputError
            where ``layer`` is none that the network can be cut behind.

        """
        structure = find_structure(model, data.shape, data.num_classes)
        head = require_linear_head(structure, "lba", "use another model")
        if not layer:
            return cls(structure, head, layer, (head,))
        candidates = [name for name in structure.trunk if not _holds(name, head)]
        if layer not in candidates:
            raise InputError(
                f"lba cannot cut {structure.network} behind {layer!r}; choose one of "
                f"{', '.join(candidates)} as layer"
            )
        start = structure.trunk.index(layer) + 1
        return cls(structure, head, layer, structure.trunk[start:])

    @contextlib.contextmanager
    def watched(self, model: nn.Module) -> Iterator[Callable[[], Tensor]]:
        """Gives F_L (float32, N x d) of the latest forward inside the ``with`` block.

        ``model`` may be any with the same layers; gradients flow through.
        """
        if self.layer:
            with self.structure.feature_maps(model, [self.layer]) as maps:
                yield lambda: maps[self.layer].flatten(1).float()
            return
        latest: list[Tensor] = []

        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            latest[:] = [inputs[0].flatten(1).float()]

        handle = model.get_submodule(self.head).register_forward_pre_hook(keep)
        try:
            yield lambda: latest[0]
        finally:
            handle.remove()

    @torch.no_grad()
    def features(self, model: nn.Module, images: Tensor, context: Context) -> Tensor:
        """F_L of all ``images`` (float32 in [0, 1]) by ``model``, which is in eval mode."""
        found = []
        with self.watched(model) as latest, context.autocast():
            for part in torch.split(images, _CHUNK):
                model(part)
                found.append(latest())
        return torch.cat(found)

    def is_after(self, name: str) -> bool:
        """Whether a module or parameter of that name comes after the cut."""
        return any(_holds(module, name) for module in self.after)

    def freeze(self, model: nn.Module) -> None:
        """Only what comes after the cut keeps its gradients."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.is_after(name))

    def train_after(self, model: nn.Module) -> None:
        """Eval mode up to the cut, so that no statistics of norms drift, and train mode after."""
        model.eval()
        for name in self.after:
            model.get_submodule(name).train()

    def head_of(self, model: nn.Module) -> nn.Linear:
        """The last linear layer of ``model``."""
        return cast("nn.Linear", model.get_submodule(self.head))


def _holds(module: str, name: str) -> bool:
    return name == module or name.startswith(f"{module}.")


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module, *, without: str = "") -> None:
    """Parameters and buffers of ``source`` into ``target``, but for the module ``without``."""
    own = target.state_dict()
    for name, value in source.state_dict().items():
        if not (without and _holds(without, name)):
            own[name].copy_(value)
