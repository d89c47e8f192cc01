"""What the steps of a run share: loaded images, built models, triggers, contexts.

Everything is read through the store, so that a step gives the same result whether what it starts
from was made a moment ago or last month.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors.torch import load_file

from backdoorkit._memory import reuse_freed_memory
from backdoorkit.context import Context
from backdoorkit.errors import ContractError
from backdoorkit.models.checkpoints import load_weights
from backdoorkit.models.normalized import NormalizedModel
from backdoorkit.pipeline.attacks import (
    attack_parts,
    plant_covers,
    plant_triggers,
    plant_wanted,
    restored_triggers,
)
from backdoorkit.pipeline.envelope import Resources, seeded
from backdoorkit.pipeline.poisoning import POISON_FILE
from backdoorkit.pipeline.recipe import NO_ATTACK

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from backdoorkit.assets import AssetShelf
    from backdoorkit.context import Progress
    from backdoorkit.contracts import Trigger
    from backdoorkit.data.images import ImageSet
    from backdoorkit.hooks.registry import Registry
    from backdoorkit.pipeline.attacks import Part, Planted
    from backdoorkit.pipeline.plan import Step
    from backdoorkit.pipeline.recipe import DataChoice, MethodChoice, ModelChoice
    from backdoorkit.pipeline.store import Artifact, Store

__all__ = ["Workshop"]


class Workshop:
    """Read access to what earlier steps made, on one device."""

    def __init__(
        self,
        *,
        registry: Registry,
        store: Store,
        device: torch.device,
        oracle: bool,
        progress: Progress,
    ) -> None:
        self.registry = registry
        self.store = store
        self.device = device
        if device.type == "cpu":
            reuse_freed_memory()
        self.progress = progress
        self._oracle_permitted = oracle
        self._images: dict[tuple[str, str], ImageSet] = {}
        self._planted: tuple[str, Planted, Planted | None] | None = None

    def artifact(self, step: Step) -> Artifact:
        """What a step made.

        Raises
        ------
        ContractError
            where it was not made yet, or was damaged since.

        """
        found = self.store.get(step.kind.value, step.key)
        if found is None:
            raise ContractError(
                f"'{step.label}' is not in the store or is damaged; run the recipe again to make it"
            )
        return found

    def context(
        self,
        step: Step,
        method: str,
        oracle: Callable[[torch.nn.Module], float] | None = None,
        *,
        shelf: AssetShelf | None = None,
        test_data: Callable[[], ImageSet] | None = None,
    ) -> Context:
        """A fresh context for one method in one step."""
        data = step.inputs.get("data")
        facts = {} if data is None else self.artifact(data).facts
        return Context(
            method=method,
            seed=step.seed,
            device=self.device,
            image_shape=tuple(facts["image_shape"]) if facts else None,
            num_classes=len(facts["class_names"]) if facts else None,
            progress=self.progress,
            oracle=oracle if self._oracle_permitted else None,
            shelf=shelf,
            test_data=test_data,
        )

    # -- images ------------------------------------------------------------------------------------

    def whole(self, choice: DataChoice, split: str) -> ImageSet:
        """All images of a split, kept for the next step; one data set at a time."""
        key = (repr((choice.name, choice.config)), split)
        if key not in self._images:
            if self._images and next(iter(self._images))[0] != key[0]:
                self._images.clear()
            dataset = self.registry.create(choice.method, choice.config)
            loaded: ImageSet = dataset.load(split, self.store.root / "cache")
            self._images[key] = loaded.to(self.device)
        return self._images[key]

    def part(self, data: Step, part: str) -> ImageSet:
        """The images of one part (``train``, ``reserve`` or ``test``) of a split."""
        positions = load_file(self.artifact(data).file("splits.safetensors"))[part]
        whole = self.whole(data.choices["data"], "test" if part == "test" else "train")
        return whole.subset(positions.to(whole.device))

    def poison(self, victim: Step, frozen: Step | None = None) -> Artifact | None:
        """Where it is recorded what was done to which training sample; None where nothing was.

        ``frozen`` is the step that froze an attack which controlled the training.
        """
        # A victim that was taken over brings its record with it.
        own = victim if "folder" in victim.choices else victim.inputs.get("poison")
        maker = own if frozen is None else frozen
        if maker is None:
            return None
        artifact = self.artifact(maker)
        return artifact if POISON_FILE in artifact.files else None

    def training_data(self, victim: Step, frozen: Step | None = None) -> ImageSet:
        """The training set as the victim saw it: nothing in it tells what is poisoned."""
        clean = self.part(victim.inputs["data"], "train")
        poison = self.poison(victim, frozen)
        if poison is None:
            return clean
        stored = load_file(poison.file(POISON_FILE))
        positions, images, labels = (stored[name] for name in ("positions", "images", "labels"))
        inside, added = positions < len(clean), positions >= len(clean)
        data = clean.replaced(positions[inside], images[inside], labels[inside])
        if not bool(added.any()):
            return data
        return data.extended(images[added], labels[added], stored["ids"][added])

    def planted_tests(self, victim: Step) -> tuple[Planted, Planted | None] | None:
        """Test images with the trigger, and as covers where there are any; None without attack."""
        attack = self.attack(victim)
        if attack is None:
            return None
        if self._planted is None or self._planted[0] != victim.key:
            test = self.part(victim.inputs["data"], "test")
            self._planted = (victim.key, plant_triggers(*attack, test), plant_covers(*attack, test))
        return self._planted[1:]

    # -- attack and model --------------------------------------------------------------------------

    def attack(self, victim: Step) -> tuple[tuple[Part, ...], tuple[Trigger, ...]] | None:
        """The victim's attack, in its parts, with the triggers from the tensors stored with it."""
        choice: MethodChoice = victim.choices["attack"]
        if choice.name == NO_ATTACK:
            return None
        parts = attack_parts(self, choice)
        state = load_file(self.artifact(victim).file("trigger.safetensors"))
        return parts, restored_triggers(parts, state, self.device)

    def plant(self, victim: Step) -> Callable[[ImageSet], ImageSet] | None:
        """Gives images the victim's trigger and the wanted labels; None without an attack.

        Images that are not attacked, or bear that label already, are left out.
        """
        attack = self.attack(victim)
        return None if attack is None else lambda images: plant_wanted(*attack, images)

    def classes(self, victim: Step) -> int:
        return len(self.artifact(victim.inputs["data"]).facts["class_names"])

    def build(self, victim: Step) -> NormalizedModel:
        """An untrained model of the victim's architecture; its initial weights follow the seed."""
        choice: ModelChoice = victim.choices["model"]
        facts = self.artifact(victim.inputs["data"]).facts
        channels, height, width = facts["image_shape"]
        architecture = self.registry.create(choice.method, choice.config)
        with seeded(self.context(victim, f"initial weights {choice.name}")):
            network = architecture.build((channels, height, width), len(facts["class_names"]))
        mean, std = choice.statistics(facts["mean"], facts["std"])
        return NormalizedModel(network, mean, std).to(self.device)

    def model(self, made_by: Step, victim: Step) -> NormalizedModel:
        """The trained or repaired model that a step stored, in eval mode."""
        model = self.build(victim)
        path = self.artifact(made_by).file("model.safetensors")
        load_weights(model, load_file(path), path=path)
        return model.to(self.device).eval()

    def resources(self, victim: Step, frozen: Step | None = None) -> Resources:
        """What a defender could be given; test data and triggers are not in it."""
        imported = victim.choices["model"].weights is not None
        return Resources(
            model=self.model(victim, victim),
            clean=self.part(victim.inputs["data"], "reserve"),
            training_data=None if imported else lambda: self.training_data(victim, frozen),
            build_model=lambda: self.build(victim),
            num_classes=self.classes(victim),
            image_shape=tuple(self.artifact(victim.inputs["data"]).facts["image_shape"]),
        )
