"""Part of `benchmarks.gpu`: the machine."""

from __future__ import annotations

import shutil
import subprocess

import torch

from benchmarks.harness.rounds import summary
from benchmarks.parts.gpu.bench import Bench, Found, device_ms


def environment(bench: Bench, found: Found) -> None:
    """Name the GPU, and measure its two ceilings: a copy, and a matrix product of random bf16 numbers."""
    driver = None
    if bench.on_gpu and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()[:1]
    name = torch.cuda.get_device_name() if bench.on_gpu else "CPU"
    found.figures |= {
        "device": name,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": list(torch.cuda.nccl.version()) if bench.on_gpu else None,
    }
    found.say("device", name)
    count, side = (1 << 16, 64) if bench.tiny else (1 << 30, 8192)
    source = torch.randn(count, device=bench.device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    gigabytes = 2 * source.nbytes / 1e9
    copies = [gigabytes / device_ms(bench, lambda: target.copy_(source)) for _ in range(20)][5:]
    products = [2 * side**3 / 1e9 / device_ms(bench, lambda: a @ b) for _ in range(20)][5:]
    found.check("the copy is the same", torch.equal(source, target))
    found.figures |= {"copy_terabytes_per_second": summary(copies), "bf16_teraflops": summary(products)}
    found.say("copy, bytes read and written", f"{found.figures['copy_terabytes_per_second']['median']:.2f} TB/s")
    found.say(f"bf16 matrix product, {side} cubed", f"{found.figures['bf16_teraflops']['median']:.0f} TFLOP/s")
