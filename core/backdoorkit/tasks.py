"""What a defense, detector or analysis is handed: exactly what it declared, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backdoorkit.errors import NeedNotDeclaredError
from backdoorkit.hooks.info import Need

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from backdoorkit.data.images import ImageSet

__all__ = ["AnalysisTask", "DefenseTask", "DetectionTask"]


class _Task:
    """Holds the declared resources only: what was not declared was never put in."""

    def __init__(
        self,
        *,
        method: str,
        num_classes: int,
        image_shape: tuple[int, int, int],
        resources: dict[Need, Any],
    ) -> None:
        self._method = method
        self._resources = resources
        #: number of classes K
        self.num_classes = num_classes
        #: C, H, W
        self.image_shape = image_shape

    def _get(self, need: Need) -> Any:
        if need not in self._resources:
            given = ", ".join(sorted(self._resources)) or "nothing"
            raise NeedNotDeclaredError(
                f"{self._method} asked for {need.value!r}, which its 'needs' do not declare "
                f"(declared: {given}); add Need.{need.name} to its MethodInfo"
            )
        return self._resources[need]

    @property
    def model(self) -> nn.Module:
        """A private copy of the model in eval mode (needs ``weights``)."""
        model: nn.Module = self._get(Need.WEIGHTS)
        return model

    @property
    def clean(self) -> ImageSet:
        """The defender's clean reserve (needs ``clean-samples``)."""
        clean: ImageSet = self._get(Need.CLEAN_SAMPLES)
        return clean

    @property
    def training_data(self) -> ImageSet:
        """The training set as the victim saw it (needs ``training-data``)."""
        data: ImageSet = self._get(Need.TRAINING_DATA)
        return data

    @property
    def build_model(self) -> Callable[[], nn.Module]:
        """Makes an untrained model of the victim's architecture (needs ``training-control``)."""
        build: Callable[[], nn.Module] = self._get(Need.TRAINING_CONTROL)
        return build

    @property
    def query(self) -> Callable[[Tensor], Tensor]:
        """Logits (N x K) for images in [0, 1] (needs ``queries``)."""
        query: Callable[[Tensor], Tensor] = self._get(Need.QUERIES)
        return query


class DefenseTask(_Task):
    """What a defense is handed."""


class DetectionTask(_Task):
    """What a detector is handed."""


class AnalysisTask(_Task):
    """What an analysis is handed: also what no defender has."""

    @property
    def plant(self) -> Callable[[ImageSet], ImageSet]:
        """Gives images the attack's trigger and the label that the attacker wants (needs
        ``trigger``).

        Images that bear that label already, or that the attack leaves alone, are left out; the
        others keep their order and ids. Accuracy on what comes back is the attack's success.
        """
        plant: Callable[[ImageSet], ImageSet] = self._get(Need.TRIGGER)
        return plant

    @property
    def kinds(self) -> Tensor:
        """uint8, N, on the CPU: :class:`backdoorkit.api.SampleKind` of each image of
        ``training_data`` (needs ``poison-record``).
        """
        kinds: Tensor = self._get(Need.POISON_RECORD)
        return kinds

    @property
    def clean_twin(self) -> nn.Module:
        """A private copy, in eval mode, of the model that was trained alike but for the attack
        (needs ``clean-twin``).
        """
        twin: nn.Module = self._get(Need.CLEAN_TWIN)
        return twin

    @property
    def test(self) -> ImageSet:
        """The test images (needs ``test-data``)."""
        test: ImageSet = self._get(Need.TEST_DATA)
        return test
