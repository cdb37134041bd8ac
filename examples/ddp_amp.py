"""Several workers with DistributedDataParallel, mixed precision and gradient accumulation.

    torchrun --nproc-per-node 2 examples/ddp_amp.py

On GPUs it computes in float16 with a GradScaler, on the CPU in bfloat16. A step that the scaler skips does not count.
`total_steps` counts optimizer steps: batches divided by `ACCUMULATE`. All workers hold the same masks, to the bit.
"""

import os

import torch
import torch.distributed as dist
from digits import TRAIN, accuracy, network
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from dynsparse import SparseTraining

EPOCHS, ACCUMULATE = 20, 2

on_gpu = torch.cuda.is_available()
dist.init_process_group("nccl" if on_gpu else "gloo")
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")

torch.manual_seed(0)
sampler = DistributedSampler(TRAIN)
loader = DataLoader(TRAIN, batch_size=16, sampler=sampler, drop_last=True)
steps_per_epoch = len(loader) // ACCUMULATE
model = DistributedDataParallel(network().to(device))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)
sparse = SparseTraining(
    model, optimizer, {"name": "rigl", "period": 20}, sparsity=0.95, total_steps=EPOCHS * steps_per_epoch
)

for epoch in range(EPOCHS):
    sampler.set_epoch(epoch)
    for index, (images, labels) in enumerate(loader):
        with torch.autocast(device.type, torch.float16 if on_gpu else torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device)) / ACCUMULATE
        scaler.scale(loss).backward()
        if index % ACCUMULATE == ACCUMULATE - 1:
            scaler.unscale_(optimizer)
            sparse.prepare_gradients()  # RigL looks at whole gradients. Clipping must see those of active weights.
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

sparse.verify()  # All workers compare a checksum of their masks and weights.
if dist.get_rank() == 0:
    print(sparse)
    print(f"test accuracy {accuracy(model.module):.1f} % with {dist.get_world_size()} workers")
dist.barrier()  # A worker that ended sooner could meet threads of torch that still free its last tensors, and abort.
dist.destroy_process_group()
