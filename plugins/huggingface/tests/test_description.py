"""The light half of the plugin, and real files where they are at hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch

from backdoorkit_huggingface import HuggingFaceOptions, backdoorkit_datasets
from backdoorkit_huggingface import _dataset as module
from backdoorkit_huggingface._dataset import HuggingFaceImages

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "cifar10"


def test_describing_the_data_set_imports_neither_torch_nor_datasets():
    code = (
        "import sys, backdoorkit_huggingface as p; list(p.backdoorkit_datasets()); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'datasets', 'pyarrow', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    (info,) = backdoorkit_datasets()
    assert info.implementation == f"{module.__name__}:HuggingFaceImages"
    assert attrs.has(info.config)


@pytest.mark.shared_data
def test_real_cifar10_test_file(tmp_path):
    files = sorted(SHARED.glob("test-*.parquet"))
    if not files:
        pytest.skip(f"no Parquet files in {SHARED}")
    data = HuggingFaceImages(HuggingFaceOptions(path=str(files[0]), test_ratio=0.1)).load(
        "test", tmp_path
    )
    assert (len(data), data.shape) == (1000, (3, 32, 32))
    assert data.class_names[:2] == ("airplane", "automobile")
    assert torch.bincount(data.labels).tolist() == [100] * 10
    mean = data.images.float().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.494, 0.485, 0.450]), atol=0.02)
