"""What a network is made of, found by data flow instead of by names or registration order."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import attrs

from backdoorkit.errors import StructureError, UnknownNameError
from backdoorkit.models._branches import (
    ConvNormPair,
    conv_norm_pairs,
    gate_nodes,
    shortcut_nodes,
)
from backdoorkit.models._head import (
    FeatureCapture,
    feature_dim,
    find_head,
    last_convolution,
    penultimate_features,
    submodule,
)
from backdoorkit.models._layers import PrunableLayer, layer_kinds, prunable_layers
from backdoorkit.models._stages import MapLayout, find_stages, find_trunk, map_layouts
from backdoorkit.models._trace import Node, Operation, Trace, trace_forward

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

__all__ = [
    "ConvNormPair",
    "FeatureCapture",
    "PrunableLayer",
    "Structure",
    "features_and_logits",
    "find_structure",
    "penultimate_features",
]


@attrs.frozen(eq=False, kw_only=True)
class Structure:
    """The layers of one network by name, as ``model.get_submodule`` takes them.

    What a network does not have is empty; the ``require_*`` methods turn that into a
    :class:`StructureError` which names the method, the layer and the reason.
    """

    #: class of the network, for messages
    network: str
    #: number of classes K
    num_classes: int
    _head: str | None
    _head_problem: str
    _feature_dim: int
    #: modules at the coarsest useful grain, in execution order
    trunk: tuple[str, ...]
    #: last module of each of the last three resolutions, first to last
    stages: tuple[str, ...]
    _layouts: Mapping[str, MapLayout]
    _overwritten: frozenset[str]
    #: every norm that reads convolutions or linear layers, in execution order; then every
    #: convolution that no norm reads, with ``norm_name`` None
    conv_norm_pairs: tuple[ConvNormPair, ...]
    #: norms that read neither, with the reason
    unpaired_norms: Mapping[str, str]
    #: all layers with units, in registration order
    prunable: tuple[PrunableLayer, ...]
    #: the last convolution on the main branch: no shortcut, gate or head; None without one
    last_convolution: str | None
    #: projection layers on the shortcuts of residual blocks
    shortcuts: frozenset[str]
    #: layers that only compute factors for other activations (squeeze-and-excitation)
    gates: frozenset[str]

    @property
    def head(self) -> str:
        """The last linear layer, whose output is the logits.

        Raises
        ------
        StructureError
            where there is none, or more than one.

        """
        return self.require_head("this method")

    @property
    def has_head(self) -> bool:
        """Whether :attr:`head` can be used."""
        return self._head is not None

    @property
    def feature_dim(self) -> int:
        """Number of penultimate features d, the inputs of the head."""
        self.require_head("this method")
        return self._feature_dim

    def layer(self, name: str) -> PrunableLayer:
        """The prunable layer of that name."""
        for layer in self.prunable:
            if layer.name == name:
                return layer
        raise UnknownNameError("layer", name, [layer.name for layer in self.prunable])

    def layers(
        self, *kinds: str, shortcuts: bool = False, head: bool = False
    ) -> tuple[PrunableLayer, ...]:
        """Prunable layers of these kinds (all, if none is given), in registration order.

        Parameters
        ----------
        shortcuts:
            Whether layers on projection shortcuts are included.
        head:
            Whether the classifier's last layer is included.

        """
        return tuple(
            layer
            for layer in self.prunable
            if (not kinds or layer.kind in kinds)
            and (shortcuts or not layer.is_shortcut)
            and (head or not layer.is_head)
        )

    # -- refusals ----------------------------------------------------------------------------------

    def require_head(self, method: str) -> str:
        """The head's name, or a StructureError that asks for ``head=``."""
        if self._head is None:
            raise StructureError(
                f"{method} needs the last linear layer of {self.network}, but "
                f"{self._head_problem}; give its name as head="
            )
        return self._head

    def require_layers(
        self, method: str, *kinds: str, shortcuts: bool = False, head: bool = False
    ) -> tuple[PrunableLayer, ...]:
        """As :meth:`layers`, but at least one."""
        found = self.layers(*kinds, shortcuts=shortcuts, head=head)
        if not found:
            wanted = " or ".join(kinds) or "prunable"
            present = ", ".join(sorted({layer.kind for layer in self.prunable})) or "none"
            raise StructureError(
                f"{method} needs {wanted} layers, and {self.network} has none outside "
                f"shortcuts and head (kinds present: {present}); choose another method or units"
            )
        return found

    def require_pairs(self, method: str) -> tuple[ConvNormPair, ...]:
        """Convolutions with the batch norm that reads them, at least one."""
        found = tuple(pair for pair in self.conv_norm_pairs if pair.is_foldable)
        if not found:
            raise StructureError(
                f"{method} needs convolutions followed by batch norm, and {self.network} has "
                f"none: {self._why_no_pairs()}"
            )
        return found

    def _why_no_pairs(self) -> str:
        for pair in self.conv_norm_pairs:
            if pair.norm_name is not None and pair.norm_kind == "batch-norm":
                return f"{pair.norm_name!r} keeps no running statistics, or no scale of its own"
            if pair.norm_name is not None:
                return f"{pair.norm_name!r} is a {pair.norm_kind}"
        for name, reason in self.unpaired_norms.items():
            return f"{name!r} cannot be paired because {reason}"
        return "it has no norm layer"

    def require_last_convolution(self, method: str) -> str:
        """The last convolution's name."""
        if self.last_convolution is None:
            raise StructureError(
                f"{method} needs a convolution on the main branch, and {self.network} has none"
            )
        return self.last_convolution

    def require_stages(self, method: str, count: int = 1) -> tuple[str, ...]:
        """The last ``count`` stages, first to last."""
        if len(self.stages) < count:
            found = ", ".join(repr(name) for name in self.stages) or "none"
            raise StructureError(
                f"{method} needs {count} stages with feature maps larger than 1 x 1, and "
                f"{self.network} has {len(self.stages)} ({found}); use larger images or name "
                "the layers yourself"
            )
        return self.stages[len(self.stages) - count :]

    # -- activations -------------------------------------------------------------------------------

    def features_and_logits(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """:func:`features_and_logits` with this structure."""
        return features_and_logits(model, images, self)

    @contextlib.contextmanager
    def feature_maps(
        self, model: nn.Module, names: Sequence[str] | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Outputs of ``names`` (the stages, if None) in every forward inside the ``with`` block.

        Each is N x C x H x W: tokens are laid out as a map without class and register tokens. The
        dictionary is filled anew by every forward. Gradients flow through.
        """
        maps: dict[str, Tensor] = {}

        def keep(name: str, output: Tensor) -> None:
            layout = self._layouts.get(name)
            kept = layout.to_map(output) if layout is not None else output
            # An in-place ReLU further on would change what was kept.
            maps[name] = kept.clone() if name in self._overwritten else kept

        with contextlib.ExitStack() as hooks:
            for name in self.stages if names is None else names:
                module = submodule(model, name)
                handle = module.register_forward_hook(
                    lambda _, __, output, name=name: keep(name, output)
                )
                hooks.callback(handle.remove)
            yield maps


def find_structure(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
    *,
    head: str | None = None,
) -> Structure:
    """Find the layers of ``model`` by one dry forward of a copy; the model is left untouched.

    Parameters
    ----------
    image_shape:
        C, H, W of the images the model takes.
    num_classes:
        K, checked against the logits where given.
    head:
        Name of the last linear layer, where it cannot be found.

    Raises
    ------
    StructureError
        where the forward fails, or the logits have another number of classes.

    """
    trace = trace_forward(model, image_shape)
    classes = trace.output.shape[1]
    if num_classes is not None and classes != num_classes:
        raise StructureError(
            f"{type(model).__name__} returns {classes} logits per image, but the data have "
            f"{num_classes} classes; use a model made for these classes"
        )
    found, problem = find_head(trace, head)
    shortcuts, gates = shortcut_nodes(trace), gate_nodes(trace)
    kinds = layer_kinds(trace.modules)
    sources = conv_norm_pairs(trace, kinds)
    trunk = find_trunk(trace, found)
    aside = (*shortcuts, *gates)
    return Structure(
        network=_network_name(model),
        num_classes=classes,
        head=found,
        head_problem=problem,
        feature_dim=feature_dim(trace.modules[found]) if found is not None else 0,
        trunk=trunk,
        stages=find_stages(trace, trunk),
        layouts=map_layouts(trace),
        overwritten=trace.overwritten,
        conv_norm_pairs=(*sources.pairs, *_without_norm(trace, sources.pairs, found)),
        unpaired_norms=sources.unpaired,
        prunable=prunable_layers(trace, kinds, shortcuts, found),
        last_convolution=last_convolution(trace, aside, found),
        shortcuts=_layer_names(shortcuts),
        gates=_layer_names(gates),
    )


def features_and_logits(
    model: nn.Module, images: Tensor, structure: Structure
) -> tuple[Tensor, Tensor]:
    """Penultimate features (N x d) and logits (N x K) in one forward, in the model's own mode."""
    with penultimate_features(model, structure.head) as capture:
        logits = model(images)
    return capture.features, logits


# -- finding ---------------------------------------------------------------------------------------


def _network_name(model: nn.Module) -> str:
    """Class of the network itself: wrappers with a single child and no weights are passed by."""
    children = list(model.children())
    while len(children) == 1 and not list(model.parameters(recurse=False)):
        model, children = children[0], list(children[0].children())
    return type(model).__name__


def _layer_names(nodes: frozenset[Node]) -> frozenset[str]:
    layers = (Operation.CONVOLUTION, Operation.LINEAR)
    return frozenset(n.module for n in nodes if n.operation in layers and n.module is not None)


def _without_norm(
    trace: Trace, pairs: Sequence[ConvNormPair], head: str | None
) -> Iterator[ConvNormPair]:
    """Convolutions that no norm reads, the head aside."""
    paired = {name for pair in pairs for name in pair.conv_names}
    names = dict.fromkeys(node.module for node in trace.of(Operation.CONVOLUTION))
    for name in names:
        if name is None or name == head or name in paired:
            continue
        channels = int(trace.modules[name].out_channels)  # type: ignore[arg-type]
        yield ConvNormPair(conv_names=(name,), norm_name=None, channels=channels)
