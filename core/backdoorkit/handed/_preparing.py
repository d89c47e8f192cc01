"""From a request to a recipe: model and images are looked at, and the normalisation is found."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch

from backdoorkit.data.statistics import channel_statistics
from backdoorkit.errors import ConfigError, InputError, Issue, nothing_at
from backdoorkit.evaluation import predict
from backdoorkit.handed._images import choose_images, load_images, write_labels
from backdoorkit.handed._model import inspect_model
from backdoorkit.hooks.info import Kind, Need, Stage
from backdoorkit.pipeline.recipe import NO_ATTACK, ModelChoice, NoOptions, Statistics
from backdoorkit.pipeline.runner import chosen_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backdoorkit.data.images import ImageSet
    from backdoorkit.handed._images import Images
    from backdoorkit.handed._model import HandedModel
    from backdoorkit.handed.request import Request
    from backdoorkit.hooks.registry import Registry
    from backdoorkit.models.normalized import NormalizedModel
    from backdoorkit.pipeline.store import Store

__all__ = ["USUAL_DETECTOR", "Prepared", "chosen_detectors", "prepare"]

#: Looked with where images are given and no detector is named; a plugin brings it.
USUAL_DETECTOR: Final = "nc"
#: Normalisations that are tried, in this order, where none is known.
_CANDIDATES: Final = ("none", "data", "imagenet")
#: Images on which they are tried.
_TRIED_ON: Final = 1000
#: Between chance and all right, as far as this is called poor.
_POOR: Final = 0.4
#: Standard deviation that logits are brought to before answers are compared without labels.
_SHARPNESS: Final = 4.0


@attrs.frozen(kw_only=True)
class Prepared:
    """A model and its images, ready for a recipe."""

    model: HandedModel
    images: Images
    #: C, H, W
    image_shape: tuple[int, int, int]
    #: how many images are used
    count: int
    #: as a recipe has it
    normalization: Any
    #: where it comes from, in words
    normalization_source: str
    #: share of labelled images recognised, by normalisation that was tried
    accuracies: Mapping[str, float]
    warnings: tuple[str, ...]
    #: plain values of a recipe with an imported model and no attack
    recipe: Mapping[str, Any]

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled images that the model recognises; None without labels."""
        return max(self.accuracies.values(), default=None)


def prepare(request: Request, registry: Registry, store: Store, name: str) -> Prepared:
    """Look at everything that was given, and refuse in one line what cannot be used.

    Parameters
    ----------
    name:
        What is to be done, for the recipe's name.

    """
    if not request.model.exists():
        raise InputError(nothing_at(request.model))
    changed: dict[str, Any] = {"detectors": [{} for _ in request.detectors], "defenses": [{}]}
    request.adjust(changed)
    device = chosen_device(request.device)
    model = inspect_model(request, registry, _table(changed, "model"))
    images = choose_images(request, model, registry)
    given = {**images.table, **_table(changed, "data")}
    images = attrs.evolve(images, table=given)
    loaded = load_images(images, request, model, registry, store.root / "cache")
    trial = _Trial(request, model, images, loaded, registry, device)
    warnings = trial.warnings()
    if images.table["name"] == "given-images" and not images.are_labelled:
        images = write_labels(images, trial.predicted(), store.root / "cache")
    count = len(loaded) if request.images is None else request.images
    values: dict[str, Any] = {
        "name": f"{name}-{_plain(request.model.stem)}",
        "seeds": [request.seed],
        "device": request.device,
        "data": images.recipe_table(request, count),
        "model": {
            **model.architecture,
            "weights": str(request.model.absolute()),
            "normalization": trial.normalization,
        },
        "attacks": [{"name": NO_ATTACK}],
        "metrics": [],
    }
    if request.threads is not None:
        values["threads"] = request.threads
    return Prepared(
        model=model,
        images=images,
        image_shape=loaded.shape,
        count=0 if images.is_nothing else count,
        normalization=trial.normalization,
        normalization_source=trial.source,
        accuracies=trial.accuracies,
        warnings=tuple(warnings),
        recipe=values,
    )


def chosen_detectors(request: Request, registry: Registry, *, has_images: bool) -> tuple[str, ...]:
    """The detectors asked for, or the usual: one by images, without images all that need none.

    Raises
    ------
    InputError
        where one needs what was not handed over.

    """
    missing: set[Need] = {Need.TRAINING_DATA, Need.TRAINING_CONTROL}
    if not has_images:
        missing.add(Need.CLEAN_SAMPLES)
    if not request.detectors:
        if has_images:
            registry.find(USUAL_DETECTOR, Kind.DETECTOR)
            return (USUAL_DETECTOR,)
        found = [
            method.name
            for method in registry.methods(Kind.DETECTOR)
            if not method.info.needs & missing and method.info.stage in (None, Stage.POST_TRAINING)
        ]
        if not found:
            raise InputError(
                "no detector that is installed works without images; give --data, with a folder "
                "of clean images"
            )
        return tuple(found)
    for name in request.detectors:
        lacking = sorted(registry.find(name, Kind.DETECTOR).info.needs & missing)
        if Need.CLEAN_SAMPLES in lacking:
            raise InputError(f"{name} needs clean images; give them with --data")
        if lacking:
            raise InputError(
                f"{name} needs {lacking[0].value}, which does not come with a model; choose "
                "another detector"
            )
    return request.detectors


class _Trial:
    """The model on the given images, under every normalisation that it may want."""

    def __init__(
        self,
        request: Request,
        model: HandedModel,
        images: Images,
        loaded: ImageSet,
        registry: Registry,
        device: torch.device,
    ) -> None:
        self._model, self._images, self._registry = model, images, registry
        self._device, self._loaded = device, loaded
        self._own = channel_statistics(loaded)
        self.accuracies: dict[str, float] = {}
        self.normalization: Any
        self.normalization, self.source = self._choose(request)

    def _choose(self, request: Request) -> tuple[Any, str]:
        if self._model.has_normalization:
            self._try("none")
            return "none", "stored with the weights"
        if request.normalization is not None:
            wanted = _parsed(request.normalization)
            if wanted == "data" and self._images.is_nothing:
                raise InputError("normalization 'data' needs images; give --data, or mean/std")
            self._try(wanted)
            return wanted, "as given"
        if self._model.stated_normalization is not None:
            self._try(self._model.stated_normalization)
            return self._model.stated_normalization, "as the benchmark that wrote the file has it"
        if self._images.is_nothing:
            self._try("none")  # sees that the weights fit
            return "none", "unknown, none is assumed"
        candidates = [c for c in _CANDIDATES if c != "imagenet" or self._loaded.shape[0] == 3]
        told = {candidate: self._try(candidate) for candidate in candidates}
        if self._images.are_labelled:
            told = self.accuracies
            how = "the most accurate one"
        else:
            how = "the one by which the model tells the images apart best"
        # Small differences mean nothing: then the simplest, which is the first, is taken.
        slack = 0.0 if self._images.are_labelled else 0.1 * math.log(self._model.num_classes)
        best = next(c for c in candidates if told[c] >= max(told.values()) - slack)
        return best, f"unknown; of {', '.join(candidates)} {how}"

    def warnings(self) -> list[str]:
        """What makes a verdict doubtful."""
        found = []
        if self.accuracies:
            found += self._poor_accuracy()
        elif not self._images.is_nothing:
            found.append(
                "the images have no labels, so nothing shows whether normalisation and size are "
                "right; put them into one folder per class, or give --labels"
            )
        elif self.source.startswith("unknown"):
            found.append(
                "no images are given, so nothing tells how the model normalises them, and the "
                "verdict may be that of another model; give --normalization"
            )
        return found

    def _poor_accuracy(self) -> list[str]:
        accuracy, chance = max(self.accuracies.values()), 1 / self._model.num_classes
        spread = (chance * (1 - chance) / self._tried_count) ** 0.5
        if accuracy < chance + max(0.1 * (1 - chance), 3 * spread):
            return [
                f"the model recognises {100 * accuracy:.1f} % of the images, and chance is "
                f"{100 * chance:.1f} %: normalisation, image size or the order of the classes "
                "is wrong, and no verdict can be trusted"
            ]
        if accuracy < chance + _POOR * (1 - chance):
            channels, height, width = self._loaded.shape
            return [
                f"the model recognises only {100 * accuracy:.1f} % of the images: if it is known "
                "to do better, then normalisation or image size is wrong (these have "
                f"{channels} x {height} x {width}; --size gives another)"
            ]
        return []

    def predicted(self) -> Tensor:
        """int64, N: what the model says the images are."""
        model = self._built(self.normalization)
        return predict(model, self._loaded, device=self._device).argmax(dim=1).cpu()

    @property
    def _tried_count(self) -> int:
        return min(_TRIED_ON, len(self._loaded))

    def _try(self, normalization: Any) -> float:
        """How much the answers tell of the images; the accuracy, where they are labelled, is kept.

        It is the mutual information of image and answer in nats: high where the model is sure of
        each image and does not say the same of all.
        """
        model = self._built(normalization)
        # Spread over the set, which may be sorted by class.
        step = max(1, len(self._loaded) // _TRIED_ON)
        some = self._loaded.subset(_positions(self._loaded, step)[:_TRIED_ON])
        logits = predict(model, some, device=self._device).cpu()
        if self._images.are_labelled:
            name = normalization if isinstance(normalization, str) else "mean and std"
            right = logits.argmax(dim=1) == some.labels.cpu()
            self.accuracies[name] = float(right.float().mean())
        # Of one scale, since a larger one would look more sure without telling more.
        shares = (_SHARPNESS * logits.double() / logits.double().std()).softmax(dim=1)
        return float(_entropy(shares.mean(dim=0)) - _entropy(shares).mean())

    def _built(self, normalization: Any) -> NormalizedModel:
        value = normalization
        if isinstance(normalization, dict):
            value = Statistics(**{key: tuple(numbers) for key, numbers in normalization.items()})
        choice = ModelChoice(
            name=str(self._model.architecture["name"]), config=NoOptions(), normalization=value
        )
        return self._model.build(self._registry, self._loaded.shape, choice.statistics(*self._own))


def _entropy(shares: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(shares).sum(dim=-1)
    return entropy


def _positions(data: ImageSet, step: int) -> Tensor:
    return torch.arange(0, len(data), step, device=data.device)


def _parsed(text: str) -> Any:
    """``none``, ``data``, ``imagenet``, or ``0.49,0.48,0.45/0.25,0.24,0.26``."""
    if text in _CANDIDATES:
        return text
    mean, slash, std = text.partition("/")
    try:
        values = {"mean": _numbers(mean), "std": _numbers(std)}
        if not slash:
            raise ValueError(text)
        Statistics(**{key: tuple(numbers) for key, numbers in values.items()})
    except ValueError:
        raise ConfigError(
            [
                Issue(
                    "--normalization",
                    f"must be {', '.join(_CANDIDATES)}, or MEAN/STD with a number for each "
                    f"channel, such as 0.49,0.48,0.45/0.25,0.24,0.26, not {text!r}",
                )
            ]
        ) from None
    return values


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _table(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key, {})
    return dict(found) if isinstance(found, dict) else {}


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.")[:60] or "model"
