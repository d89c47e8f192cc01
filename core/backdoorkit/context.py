"""What a method is given besides its task: device, randomness, training, evaluation, progress."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping, Sized
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from backdoorkit import evaluation, training
from backdoorkit._precision import autocast, resolve_precision
from backdoorkit._progress import SILENT, Progress
from backdoorkit.assets import AssetRecord, AssetShelf, ForgetfulShelf
from backdoorkit.errors import ContractError, NeedNotDeclaredError, OracleNotPermittedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Generator, nn

    from backdoorkit.data.images import ImageSet
    from backdoorkit.hooks.shared_options import TrainOptions
    from backdoorkit.models.structure import Structure
    from backdoorkit.training import CheckpointSlot, TrainingHooks, TrainingSummary

__all__ = ["Context", "Progress"]

T = TypeVar("T")


class Context:
    """One method's surroundings in one run; made by the framework, one per step.

    Parameters
    ----------
    method:
        Name of the method; part of every seed.
    seed:
        The run's seed.
    device:
        Where everything runs.
    image_shape:
        C, H, W of the run's images.
    num_classes:
        Number of classes K.
    precision:
        Arithmetic of :meth:`autocast`: ``"auto"``, ``"float32"`` or ``"bfloat16"``.
    progress:
        Where progress is shown; nowhere by default.
    oracle:
        Test attack success of a model, in [0, 1]; None where the run does not permit it.
    shelf:
        Where :meth:`asset` keeps what it made; nowhere by default.
    test_data:
        Gives the test images, to an attack that declares ``Need.TEST_DATA``.

    """

    def __init__(
        self,
        *,
        method: str,
        seed: int,
        device: torch.device,
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        precision: str = "auto",
        progress: Progress = SILENT,
        oracle: Callable[[nn.Module], float] | None = None,
        shelf: AssetShelf | None = None,
        test_data: Callable[[], ImageSet] | None = None,
    ) -> None:
        self.method = method
        self.seed = seed
        self.device = device
        #: autocast type of the method's own loops; None is plain float32
        self.precision = resolve_precision(precision, device)
        #: images that went through gradient computations so far
        self.samples_seen = 0
        #: optimizer steps so far
        self.gradient_steps = 0
        #: whether :meth:`oracle` was used; every table then says so
        self.oracle_used = False
        self._image_shape = image_shape
        self._num_classes = num_classes
        self._progress = progress
        self._oracle = oracle
        self._shelf = ForgetfulShelf() if shelf is None else shelf
        self._test_data = test_data
        self._fits = 0
        #: before the number of a call of ``fit``, while an asset is made
        self._scope = ""
        self._assets: list[AssetRecord] = []
        self._notes: dict[str, Any] = {}

    def generator(self, purpose: str, device: torch.device | str | None = None) -> Generator:
        """A random generator for ``purpose``, at the start of its stream, on the CPU by default.

        Its seed comes from the run's seed, the method's name and ``purpose`` alone: what else is
        drawn, before or elsewhere, changes nothing. The same purpose gives the same numbers.
        """
        words = "\x1f".join((str(self.seed), self.method, purpose))
        digest = hashlib.sha256(words.encode()).digest()
        generator = torch.Generator(device="cpu" if device is None else device)
        return generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def fit(
        self,
        model: nn.Module,
        data: ImageSet,
        options: TrainOptions,
        *,
        hooks: TrainingHooks | None = None,
        checkpoint: CheckpointSlot | None = None,
    ) -> TrainingSummary:
        """Train ``model`` in place with :func:`backdoorkit.training.fit`; counts towards the cost.

        Each call of one context shuffles and augments differently.
        """
        number = f"{self._scope}{self._fits}"
        self._fits += 1
        summary = training.fit(
            model,
            data,
            options,
            device=self.device,
            shuffle_generator=self.generator(f"shuffle {number}"),
            augmentation_generator=self.generator(f"augmentation {number}"),
            hooks=hooks,
            progress=self._progress,
            checkpoint=checkpoint,
            label=f"{self.method}: {self._scope or 'training'}".strip(),
        )
        self.count(summary.samples_seen, summary.gradient_steps)
        return summary

    def asset(
        self, name: str, facts: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Tensors that are made once and used again by later runs, on the run's device.

        They are found again by the method and its version, the data, the run's seed, ``name`` and
        ``facts``; so ``facts`` must hold every option that ``make`` looks at. What it draws, also
        from torch's global generator, depends on seed, method and name alone, and what it costs is
        kept apart from the step's cost.

        Parameters
        ----------
        name:
            What it is, such as ``"encoder"``; also shown while it is made.
        facts:
            JSON-ready values that decide what comes out.
        make:
            Makes the tensors; called where there are none yet.

        """
        found = self._shelf.load(name, facts)
        if found is None:
            with self._shelf.claim(name, facts):
                # Another process may have made it meanwhile.
                found = self._shelf.load(name, facts) or self._made_asset(name, facts, make)
        tensors, record = found
        self._assets.append(record)
        return {key: value.to(self.device) for key, value in tensors.items()}

    @property
    def assets(self) -> tuple[AssetRecord, ...]:
        """The assets that were asked for so far."""
        return tuple(self._assets)

    def note(self, **facts: Any) -> None:
        """Put JSON-ready ``facts`` into the record: what an attack's preparation has reached.

        Accuracy of a surrogate, success of a search... Of one name, the last is kept. An asset that
        is taken from the store does not run again: keep its numbers in it, as tensors. (Defenses
        and detectors return such facts as ``details``.)
        """
        try:
            json.dumps(facts, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ContractError(
                f"expected {self.method} to note JSON-ready facts, got {facts!r} ({error})"
            ) from error
        self._notes.update(facts)

    @property
    def notes(self) -> dict[str, Any]:
        """What was noted so far."""
        return dict(self._notes)

    def _made_asset(
        self, name: str, facts: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
    ) -> tuple[dict[str, Tensor], AssetRecord]:
        spent, others = (self.samples_seen, self.gradient_steps), len(self._assets)
        started = time.perf_counter()
        self.samples_seen = self.gradient_steps = 0
        try:
            with self._inside_asset(name):
                made = make()
                # As a file gives them back, so that a second run has the same bits.
                tensors = {
                    key: value.detach().cpu().contiguous().clone() for key, value in made.items()
                }
            inner = sum(record.seconds for record in self._assets[others:] if not record.reused)
            record = AssetRecord(
                name=name,
                facts=dict(facts),
                seconds=time.perf_counter() - started - inner,
                samples_seen=self.samples_seen,
                gradient_steps=self.gradient_steps,
            )
        finally:
            self.samples_seen, self.gradient_steps = spent
        self._shelf.save(tensors, record)
        return tensors, record

    @contextlib.contextmanager
    def _inside_asset(self, name: str) -> Iterator[None]:
        """Calls of :meth:`fit` and torch's global generator: what happens inside changes nothing
        outside, and the other way round.
        """
        before = (self._scope, self._fits)
        self._scope, self._fits = f"{name} ", 0
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(self.generator(f"asset {name}").initial_seed())
                yield
        finally:
            self._scope, self._fits = before

    @property
    def test_data(self) -> ImageSet:
        """The test images: for attacks on chosen ones, which must declare ``test-data``.

        Raises :class:`backdoorkit.errors.NeedNotDeclaredError` for all others.
        """
        if self._test_data is None:
            raise NeedNotDeclaredError(
                f"{self.method} asked for test images, which only an attack is given whose needs "
                "declare them; add Need.TEST_DATA to its MethodInfo"
            )
        return self._test_data()

    def autocast(self) -> torch.autocast:
        """The run's fast arithmetic, for forward passes of the method's own."""
        return autocast(self.device, self.precision)

    def predict(self, model: nn.Module, data: ImageSet) -> Tensor:
        """Logits (float32, N x K, on the run's device) in eval mode; modes are restored."""
        return evaluation.predict(model, data, device=self.device)

    def accuracy(self, model: nn.Module, data: ImageSet) -> float:
        """Share of ``data`` classified as labelled, in [0, 1]."""
        return evaluation.accuracy(model, data, device=self.device)

    def structure(self, model: nn.Module) -> Structure:
        """Layers of ``model`` by what they do; see :func:`backdoorkit.api.find_structure`."""
        from backdoorkit.models.structure import find_structure

        if self._image_shape is None:
            raise ContractError("this context knows no image shape; give image_shape=(C, H, W)")
        return find_structure(model, self._image_shape, self._num_classes)

    def track(self, iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Iterate while showing progress; ``total`` is asked of ``iterable`` where it knows it."""
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        task = self._progress.start(f"{self.method}: {label}", total)
        try:
            for item in iterable:
                yield item
                self._progress.advance(task)
        finally:
            self._progress.finish(task)

    def count(self, samples: int, gradient_steps: int) -> None:
        """Add to the cost what a loop of the method's own has spent."""
        self.samples_seen += samples
        self.gradient_steps += gradient_steps

    @property
    def oracle_permitted(self) -> bool:
        """Whether :meth:`oracle` may be called in this run."""
        return self._oracle is not None

    def oracle(self, model: nn.Module) -> float:
        """Test attack success of ``model``, in [0, 1]: cheating, and recorded as such.

        Raises :class:`backdoorkit.errors.OracleNotPermittedError` unless the run permits it.
        """
        if self._oracle is None:
            raise OracleNotPermittedError(
                f"{self.method} wants to choose its level on test attack success, which no "
                "defender has; choose selection = 'clean' or 'fixed', or permit it with --oracle "
                "(in a recipe: oracle = true), and every table will say so"
            )
        self.oracle_used = True
        return self._oracle(model)
