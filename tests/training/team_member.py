"""One process of a team: trains alone and with the other, and writes what came out.

python team_member.py FILE, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
from torch import distributed, nn

from backdoorkit import TrainOptions
from backdoorkit._team import Team, current_team, teamwork
from backdoorkit.data.images import ImageSet
from backdoorkit.errors import ContractError
from backdoorkit.testing import MemorySlot
from backdoorkit.training import TrainingHooks, TrainingSummary, fit

#: The last batch has three images, which cannot be halved.
IMAGES, BATCH = 35, 8


class Network(nn.Module):
    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, momentum=momentum)
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.head = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = torch.relu(self.norm(self.first(images)))
        return self.head(self.plain(found).square().mean(dim=(2, 3)))


def images() -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (IMAGES, 2, 6, 6), generator=generator, dtype=torch.uint8)
    return ImageSet.from_tensors(pixels, torch.arange(IMAGES) % 3)


def train(
    model: nn.Module,
    *,
    epochs: int,
    batch_size: int = BATCH,
    hooks: TrainingHooks | None = None,
    slot: MemorySlot | None = None,
) -> TrainingSummary:
    return fit(
        model,
        images(),
        TrainOptions(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=0.05,
            schedule="constant",
            horizontal_flip=True,
            precision="float32",
        ),
        device=torch.device("cpu"),
        shuffle_generator=torch.Generator().manual_seed(2),
        augmentation_generator=torch.Generator().manual_seed(3),
        hooks=hooks,
        checkpoint=slot,
    )


def main() -> None:
    distributed.init_process_group("gloo")
    team = Team()
    torch.manual_seed(0)
    initial = Network()
    facts: dict[str, object] = {}

    def compare(name: str, start: nn.Module, **options: int) -> nn.Module:
        alone, together = copy.deepcopy(start), copy.deepcopy(start)
        one = train(alone, **options)
        with teamwork(team):
            two = train(together, **options)
        facts[name] = {
            "alone": alone.state_dict(),
            "together": together.state_dict(),
            "losses": [[epoch.loss for epoch in side.history] for side in (one, two)],
            "right": [[epoch.accuracy for epoch in side.history] for side in (one, two)],
            "costs": [[side.samples_seen, side.gradient_steps] for side in (one, two)],
        }
        return together

    together = compare("usual", initial, epochs=3)
    compare("single images", initial, epochs=1, batch_size=1)
    cumulative = Network(momentum=None)
    compare("cumulative", cumulative, epochs=1)

    # Interrupted after the first epoch, and gone on with.
    slot, resumed = MemorySlot(), copy.deepcopy(initial)
    with teamwork(team):
        train(resumed, epochs=1, slot=slot)
        fresh = copy.deepcopy(initial)
        train(fresh, epochs=3, slot=slot)
    facts["resumed"] = {"whole": together.state_dict(), "parts": fresh.state_dict()}

    try:
        with teamwork(team):
            train(copy.deepcopy(initial), epochs=1, hooks=TrainingHooks())
    except ContractError as error:
        facts["refusal"] = str(error)
    facts["left over"] = [name for name, m in together.named_modules() if "forward" in vars(m)]
    facts["over"] = current_team() is None
    torch.save(facts, Path(sys.argv[1]) / f"rank{team.rank}.pt")


if __name__ == "__main__":
    main()
