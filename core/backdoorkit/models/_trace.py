"""One dry forward of a network, recorded as a graph of what each tensor was made from.

Tensors are followed by identity through modules and plain tensor functions alike, so residual
sums, pre-activation, concatenation, flattening and pooling need no naming convention. The network
itself is left alone: a float32 copy on the CPU runs, in eval mode, without gradients.
"""

from __future__ import annotations

import copy
import enum
import re
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from backdoorkit.errors import StructureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Node", "Operation", "Trace", "is_convolution", "is_norm", "trace_forward"]

#: Images in the dry forward; two, so that the batch axis cannot be mistaken for one of length 1.
BATCH_SIZE = 2

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Operation(enum.StrEnum):
    """What made a tensor, as far as following channels is concerned."""

    INPUT = "input"
    CONVOLUTION = "convolution"
    LINEAR = "linear"
    ATTENTION = "attention"
    NORM = "norm"
    #: element-wise, pooling, reordering of axes, adding a constant: channels stay what they are
    KEEP = "keep"
    ADD = "add"
    MULTIPLY = "multiply"
    CONCATENATE = "concatenate"
    OTHER = "other"


#: torch functions by bare name (leading and trailing underscores are stripped before the look-up)
_OPERATIONS = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), Operation.CONVOLUTION),
    "linear": Operation.LINEAR,
    **dict.fromkeys(
        ("multi_head_attention_forward", "native_multi_head_attention"), Operation.ATTENTION
    ),
    **dict.fromkeys(
        ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"), Operation.NORM
    ),
    **dict.fromkeys(("add", "iadd", "radd", "sub", "isub", "rsub"), Operation.ADD),
    **dict.fromkeys(
        ("mul", "imul", "rmul", "multiply", "div", "divide", "truediv", "itruediv", "true_divide"),
        Operation.MULTIPLY,
    ),
    **dict.fromkeys(("cat", "concat", "concatenate"), Operation.CONCATENATE),
}

_ELEMENTWISE = re.compile(
    r"relu6?|leaky_relu|[pr]relu|rrelu|c?elu|selu|gelu|silu|mish|softplus|softsign|(log)?sigmoid"
    r"|tanh|hard(tanh|swish|sigmoid|shrink)|softshrink|threshold|clamp|neg"
    r"|(feature_|alpha_|feature_alpha_)?dropout([123]d)?"
    r"|clone|contiguous|detach|to|type|float|double|half|bfloat16|data"
)
_REORDERING = re.compile(r"permute|transpose|swapaxes|movedim|t")
#: these keep the channel axis only where its length is unchanged
_SPATIAL = re.compile(
    r"(adaptive_)?(max|avg)_pool[123]d|lp_pool[12]d|pad|interpolate|mean|amax"
    r"|flatten|view|reshape|squeeze|unsqueeze|getitem"
)
#: these take only shape and type from their argument
_CONSTANT = re.compile(r"new_\w+|\w+_like")


@attrs.define(eq=False, repr=False)
class Node:
    """One tensor of the dry forward and what it was made from."""

    #: position in execution order
    index: int
    operation: Operation
    #: torch's name of the function, for messages
    function: str
    #: name of the module whose parameters took part, where the operation has any
    module: str | None
    inputs: tuple[Node, ...]
    shape: tuple[int, ...]
    #: bit set of the indices of everything this depends on, itself included
    ancestors: int
    consumers: list[Node] = attrs.field(factory=list)

    def depends_on(self, other: Node) -> bool:
        """Whether ``other`` took part in making this tensor (a node depends on itself)."""
        return bool(self.ancestors >> other.index & 1)


@attrs.frozen(eq=False, kw_only=True)
class Trace:
    """The graph of one dry forward."""

    nodes: tuple[Node, ...]
    output: Node
    modules: dict[str, nn.Module]
    #: last output of every module that ran and returned a tensor, in the order of completion
    outputs: dict[str, Node]
    #: modules whose output tensor something later overwrote (``ReLU(inplace=True)``)
    overwritten: frozenset[str]
    #: parameters that took part, by name
    used_parameters: frozenset[str]

    def of(self, *operations: Operation) -> list[Node]:
        """Nodes of these operations in execution order."""
        return [node for node in self.nodes if node.operation in operations]


def is_convolution(module: nn.Module) -> bool:
    """Whether the output channels of ``module`` are the rows of a convolution's weight."""
    return isinstance(module, _CONVOLUTIONS)


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a normalisation layer of torch or derives from one."""
    return isinstance(module, _NORMS)


def trace_forward(model: nn.Module, image_shape: tuple[int, int, int]) -> Trace:
    """Record one eval-mode forward of a copy of ``model`` on two random images in [0, 1].

    Nothing of the model, nor any random state, is changed.

    Raises
    ------
    StructureError
        where the model cannot be copied, does not take such images, or does not return logits.

    """
    network = _private_copy(model)
    images = torch.rand(BATCH_SIZE, *image_shape, generator=torch.Generator().manual_seed(0))
    recorder = _Recorder(network, images)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), recorder:
        try:
            output = network(images)
        except Exception as error:
            size = " x ".join(map(str, image_shape))
            raise StructureError(
                f"a dry forward of {type(model).__name__} on {BATCH_SIZE} images of {size} "
                f"failed with {type(error).__name__}: {error}; check channels, image size and "
                "architecture"
            ) from error
    return recorder.finish(output)


def _private_copy(model: nn.Module) -> nn.Module:
    try:
        network = copy.deepcopy(model)
    except Exception as error:
        raise StructureError(
            f"{type(model).__name__} cannot be copied ({error}); remove weight reparametrisations "
            "and hooks that keep computed tensors on the modules"
        ) from error
    return network.to("cpu", torch.float32).eval()


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))


def _function_name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", "")
    if name == "__get__":  # an attribute such as x.data or x.T
        name = getattr(getattr(function, "__self__", None), "__name__", "")
    return name.strip("_")


class _Recorder(TorchFunctionMode):
    """Sees every torch function and every module call of ``network`` while entered."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.modules = dict(network.named_modules())
        self.parameters = {id(p): name for name, p in network.named_parameters()}
        self.owners: dict[int, str] = {}
        for name, module in self.modules.items():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self.owners.setdefault(id(tensor), name)
        self.nodes: list[Node] = []
        self.made_by: dict[int, Node] = {}
        self.alive: list[Any] = []  # holds every tensor, so that no identity is used twice
        self.running: list[str] = []
        self.outputs: dict[str, Node] = {}
        self.storages: dict[int, set[str]] = {}
        self.overwritten: set[str] = set()
        self.used: set[str] = set()
        for name, module in self.modules.items():
            self._watch(name, module)
        self._record(images, Operation.INPUT, "input", None, ())

    def _watch(self, name: str, module: nn.Module) -> None:
        def before(_: nn.Module, __: Any) -> None:
            self.running.append(name)

        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.running.pop()
            self._module_done(name, (args, kwargs), output)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after, with_kwargs=True)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        given = [*_tensors(args), *_tensors(kwargs)]
        versions = [tensor._version for tensor in given]
        result = function(*args, **(kwargs or {}))
        made = list(_tensors(result))
        if not made and all(t._version == v for t, v in zip(given, versions, strict=True)):
            return result  # a question such as x.shape
        self.used.update(self.parameters[id(t)] for t in given if id(t) in self.parameters)
        name = _function_name(function)
        inputs = self._nodes_of(given)
        if not inputs or _CONSTANT.fullmatch(name):
            return result  # made of parameters and constants only
        changed = [t for t, v in zip(given, versions, strict=True) if t._version != v]
        for tensor in changed:
            self.overwritten |= self.storages.get(tensor.untyped_storage().data_ptr(), set())
        operation, module = self._classify(name, given, inputs, made)
        for tensor in {id(t): t for t in (*made, *changed)}.values():
            fresh = id(tensor) not in self.made_by or any(tensor is t for t in changed)
            if fresh:  # else the very same tensor came back, as from dropout in eval mode
                self._record(tensor, operation, name, module, inputs)
        return result

    def _nodes_of(self, tensors: Sequence[Tensor]) -> tuple[Node, ...]:
        found = {id(t): self.made_by[id(t)] for t in tensors if id(t) in self.made_by}
        return tuple(found.values())

    def _record(
        self,
        tensor: Tensor,
        operation: Operation,
        function: str,
        module: str | None,
        inputs: tuple[Node, ...],
    ) -> None:
        index = len(self.nodes)
        ancestors = 1 << index
        for node in inputs:
            ancestors |= node.ancestors
        node = Node(index, operation, function, module, inputs, tuple(tensor.shape), ancestors)
        for producer in inputs:
            producer.consumers.append(node)
        self.nodes.append(node)
        self.made_by[id(tensor)] = node
        self.alive.append(tensor)

    def _classify(
        self, name: str, given: list[Tensor], inputs: tuple[Node, ...], made: list[Tensor]
    ) -> tuple[Operation, str | None]:
        """The operation and the module whose weights it used; OTHER where channels get lost."""
        operation = _OPERATIONS.get(name)
        if operation is not None and operation in _OWNER_TYPES:
            owner = self._owner(given, _OWNER_TYPES[operation])
            return (operation, owner) if owner is not None else (Operation.OTHER, None)
        if operation is Operation.ADD:
            return (operation if len(inputs) > 1 else Operation.KEEP), None
        if operation is Operation.MULTIPLY and len(inputs) == 1:
            # A factor common to all channels changes no comparison between them.
            constants = [t for t in given if id(t) not in self.made_by]
            scalar = all(t.numel() == 1 for t in constants)
            return (Operation.KEEP if scalar else Operation.OTHER), None
        if operation is not None:
            return operation, None
        same_channels = bool(made) and _same_channels(inputs[0].shape, tuple(made[0].shape))
        keeps = bool(_ELEMENTWISE.fullmatch(name) or _REORDERING.fullmatch(name)) or (
            same_channels and _SPATIAL.fullmatch(name) is not None
        )
        return (Operation.KEEP if keeps and len(inputs) == 1 else Operation.OTHER), None

    def _owner(self, given: list[Tensor], kinds: tuple[type, ...]) -> str | None:
        """The running module if it is of a fitting type, else whose parameters were used."""
        if self.running and isinstance(self.modules[self.running[-1]], kinds):
            return self.running[-1]
        names = (self.owners[id(tensor)] for tensor in given if id(tensor) in self.owners)
        return next((name for name in names if isinstance(self.modules[name], kinds)), None)

    def _module_done(self, name: str, given: Any, output: Any) -> None:
        for tensor in _tensors(output):
            if id(tensor) not in self.made_by:  # made outside Python: TorchScript, custom function
                inputs = self._nodes_of(list(_tensors(given)))
                self._record(tensor, Operation.OTHER, name, None, inputs)
        if isinstance(output, Tensor):
            self.outputs.pop(name, None)  # keeps the order of completion for repeated calls
            self.outputs[name] = self.made_by[id(output)]
            self.storages.setdefault(output.untyped_storage().data_ptr(), set()).add(name)

    def finish(self, output: Any) -> Trace:
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != BATCH_SIZE:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise StructureError(
                f"the model must return logits of shape N x K, but returned {shape} "
                f"for {BATCH_SIZE} images; wrap it so that it does"
            )
        return Trace(
            nodes=tuple(self.nodes),
            output=self.made_by[id(output)],
            modules=self.modules,
            outputs=self.outputs,
            overwritten=frozenset(self.overwritten),
            used_parameters=frozenset(self.used),
        )


_OWNER_TYPES: dict[Operation | None, tuple[type, ...]] = {
    Operation.CONVOLUTION: _CONVOLUTIONS,
    Operation.LINEAR: (nn.Linear,),
    Operation.ATTENTION: (nn.MultiheadAttention,),
    Operation.NORM: _NORMS,
}


def _same_channels(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    return len(before) > 1 and len(after) > 1 and before[:2] == after[:2]
