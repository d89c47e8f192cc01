"""What keeping freed memory saves on a CPU (Linux with glibc): `backdoorkit._memory`.

    python benchmarks/freed_memory.py
    python benchmarks/freed_memory.py --rounds 3

Training steps of WRN-16-1 (batch 128, 32 x 32) in fresh processes, with and without, in turns; one
thread. Processor time by step, page faults by step; the least of a process's repetitions counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

STEPS, REPETITIONS = 4, 5


def measure(*, kept: bool) -> dict[str, float]:
    """Seconds and page faults of one step, in this process."""
    import torch

    from backdoorkit import TrainOptions
    from backdoorkit._memory import reuse_freed_memory
    from backdoorkit.data.images import ImageSet
    from backdoorkit.models._wide_resnet import WideResNet
    from backdoorkit.training import fit

    torch.set_num_threads(1)
    if kept and not reuse_freed_memory():
        raise SystemExit("this is no glibc, or the environment sets malloc's behaviour")
    torch.manual_seed(0)
    model = WideResNet(16, 1, 3, 10)
    images = torch.randint(0, 256, (128 * STEPS, 3, 32, 32), dtype=torch.uint8)
    data = ImageSet.from_tensors(images, torch.arange(len(images)) % 10)
    options = TrainOptions(epochs=1, batch_size=128)
    seconds, faults = [], []
    for _ in range(REPETITIONS + 1):
        start = time.process_time()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        fit(
            model,
            data,
            options,
            device=torch.device("cpu"),
            shuffle_generator=torch.Generator().manual_seed(0),
            augmentation_generator=torch.Generator().manual_seed(1),
        )
        faults.append((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / STEPS)
        seconds.append((time.process_time() - start) / STEPS)
    return {"seconds": min(seconds[1:]), "faults": min(faults[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["kept", "plain"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(kept=arguments.side == "kept")))
        return
    sides: dict[str, list[dict[str, float]]] = {"plain": [], "kept": []}
    for _ in range(arguments.rounds):
        for side, found in sides.items():
            command = [sys.executable, __file__, "--side", side]
            found.append(json.loads(subprocess.check_output(command)))
            print(side, found[-1])
    plain, kept = (statistics.median(m["seconds"] for m in sides[side]) for side in sides)
    print(f"time with / without: {kept / plain:.3f}")


if __name__ == "__main__":
    main()
