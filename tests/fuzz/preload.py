"""Imports, once, what the commands need, so that a fork has it."""

from __future__ import annotations

import gc
import os
from importlib import import_module

# Threads do not survive a fork, and their number changes the order of sums.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # Of pyarrow.
os.environ.setdefault("MPLBACKEND", "agg")
for _name in [name for name in os.environ if name.startswith(("TORCHELASTIC", "SLURM"))]:
    del os.environ[_name]
for _name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
    os.environ.pop(_name, None)

MODULES = (
    "dynsparse.cli.main",
    "dynsparse.cli.train",
    "dynsparse.training.callbacks.tensorboard",
    "dynsparse.tools.export.csr",
    "dynsparse.tools.export.safetensors_file",
    "dynsparse.tools.export.torch_file",
    "dynsparse.tools.inspection",
    "dynsparse.tools.report.page",
    "dynsparse.tools.report.run",
    "pipelines.loaders.dali_loader",
    "pipelines.datasets.imagenet",
    "pipelines.tools.scan",
    "pipelines.tools.prepare.command",
    "pipelines.tools.shards",
    "pipelines.datasets.synthetic",
    "pipelines.loaders.torch_loader",
    "pipelines.datasets.webdataset",
    "pipelines.sources.parquet_shards",
    "pipelines.tools.scan_parquet",
    "matplotlib.figure",
    "matplotlib.style",
    "nvidia.dali._debug_mode",
    "nvidia.dali.fn",
    "tensorboard.summary",
    "scipy.io",
    "torch._dynamo",
    "torch.utils.serialization.config",
    "torch.utils.tensorboard",
)


def preload(*more: str) -> None:
    """Import them, and `more`. Raise RuntimeError if a library has started threads: a fork would be without them."""
    import torch

    torch.set_num_threads(1)
    for name in (*MODULES, *more):
        import_module(name)
    from PIL import Image

    from pipelines.common.torchvision_ops import import_torchvision

    import_torchvision()
    import_module("torchvision.datasets")
    Image.init()
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
        raise RuntimeError(f"{threads} threads after imports; a fork would have one")
    gc.collect()
    gc.freeze()  # Else a collection in each fork copies the pages of all that was imported.
