"""Batches of a set, in order or shuffled, with the same values wherever the images are kept."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import attrs
import torch
from torch import Generator, Tensor

from backdoorkit.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from backdoorkit.data.augmentation import Augmentation
    from backdoorkit.data.images import ImageSet

__all__ = ["Batch", "batches"]

#: batches that are fetched ahead of their use where they come from files or another device
_AHEAD: Final = 3


@attrs.frozen(eq=False)
class Batch:
    """Some samples, all on one device."""

    #: float32 in [0, 1], B x C x H x W
    images: Tensor
    #: int64, B
    labels: Tensor
    #: int64, B: positions in the set
    indices: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def batches(
    data: ImageSet,
    batch_size: int,
    *,
    generator: Generator | None = None,
    augmentation: Augmentation | None = None,
    augmentation_generator: Generator | None = None,
    drop_last: bool = False,
    device: torch.device | None = None,
    merge_singleton: bool = False,
) -> Iterator[Batch]:
    """One pass over ``data``.

    The same generators give the same batches whether the set is in memory or streamed. On an
    accelerator nothing here waits for it.

    Parameters
    ----------
    data:
        Images that are not on ``device`` are fetched ahead, in another thread.
    batch_size:
        Samples per batch; the last one may have fewer.
    generator:
        Shuffles, once, when the pass begins. Without it the batches are in order.
    augmentation, augmentation_generator:
        Go together; the augmentation is drawn anew for every batch.
    drop_last:
        Leave out a last batch that is not full.
    device:
        Where the batches are wanted. Default: where the set is.
    merge_singleton:
        Add a last batch of one sample to the batch before it; batch norm cannot train on one.

    """
    if batch_size < 1:
        raise ContractError(f"expected a batch size of at least 1, got {batch_size}")
    if augmentation is not None and augmentation_generator is None:
        raise ContractError("expected an augmentation_generator with the augmentation, got none")
    sizes = _sizes(len(data), batch_size, drop_last=drop_last, merge_singleton=merge_singleton)
    target = data.device if device is None else _resolved(device)
    return _batches(data, sizes, generator, augmentation, augmentation_generator, target)


def _sizes(count: int, batch_size: int, *, drop_last: bool, merge_singleton: bool) -> list[int]:
    full, rest = divmod(count, batch_size)
    sizes = [batch_size] * full
    if rest == 0 or drop_last:
        return sizes
    if rest == 1 and full and merge_singleton:
        return [*sizes[:-1], batch_size + 1]
    return [*sizes, rest]


def _batches(
    data: ImageSet,
    sizes: list[int],
    generator: Generator | None,
    augmentation: Augmentation | None,
    augmentation_generator: Generator | None,
    device: torch.device,
) -> Iterator[Batch]:
    order = _order(len(data), generator)
    moved = _moved(order, device)
    used = sum(sizes)
    chunks = torch.split(moved[:used], sizes)
    labels = _moved(data.labels, device)
    images = _images(data, torch.split(_moved(order, data.device)[:used], sizes), device)
    for positions, stored in zip(chunks, images, strict=True):
        # As bytes up to the last moment: a quarter of the memory traffic.
        if augmentation is None or augmentation_generator is None:
            pixels = stored.float()
        else:
            pixels = augmentation(stored, augmentation_generator).float()
        yield Batch(pixels.div_(255), labels.index_select(0, positions), positions)


def _order(count: int, generator: Generator | None) -> Tensor:
    if generator is None:
        return torch.arange(count)
    return torch.randperm(count, generator=generator, device=generator.device)


def _images(data: ImageSet, chunks: tuple[Tensor, ...], device: torch.device) -> Iterator[Tensor]:
    """uint8 images of each chunk on ``device``."""
    if data.device == device and not data.is_streamed:
        for positions in chunks:
            yield data.fetch(positions)
        return

    def fetch(positions: Tensor) -> Tensor:
        images = data.fetch(positions)
        return images.pin_memory() if _is_upload(images, device) else images

    waiting: deque[Future[Tensor]] = deque()
    # One worker keeps the order; sources that decode files have threads of their own.
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="backdoorkit-fetch")
    try:
        for positions in chunks:
            waiting.append(worker.submit(fetch, positions))
            if len(waiting) > _AHEAD:
                yield _moved(waiting.popleft().result(), device)
        while waiting:
            yield _moved(waiting.popleft().result(), device)
    finally:
        worker.shutdown(cancel_futures=True)


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on ``device``, through pinned memory so that nobody waits for the copy."""
    if _is_upload(values, device):
        return values.pin_memory().to(device, non_blocking=True)
    # Copies towards the host must be waited for: the host would read them too early.
    return values.to(device)


def _is_upload(values: Tensor, device: torch.device) -> bool:
    return device.type == "cuda" and values.device.type == "cpu"


def _resolved(device: torch.device) -> torch.device:
    """``device`` with its index, as tensors name theirs."""
    return torch.empty(0, device=device).device
