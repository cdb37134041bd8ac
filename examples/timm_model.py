"""A network, an optimizer, a schedule and an average of weights (EMA) from timm.

python examples/timm_model.py
"""

import timm
import torch
from digits import TRAIN, accuracy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader

from dynsparse import SparseTraining

EPOCHS = 5

torch.manual_seed(0)
loader = DataLoader(TRAIN, batch_size=64, shuffle=True, drop_last=True)
model = timm.create_model("resnet10t", num_classes=10, in_chans=1)
optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05)
schedule = CosineLRScheduler(optimizer, t_initial=EPOCHS, warmup_t=1, warmup_lr_init=1e-4)
average = ModelEmaV3(model, decay=0.95)
sparse = SparseTraining(
    model,
    optimizer,
    {"name": "rigl", "period": 20},
    sparsity=0.9,
    allocation="erk",  # Small layers are denser, large ones sparser.
    exclude=["conv1.*", "fc.*"],
    total_steps=EPOCHS * len(loader),
    on_reallocation=lambda report: sparse.apply_masks(average.module),  # An average holds the union of all masks.
)

for epoch in range(EPOCHS):
    schedule.step(epoch)
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        average.update(model)

sparse.apply_masks(average.module)
print(sparse)
print(f"test accuracy {accuracy(model):.1f} %, of the average {accuracy(average.module):.1f} %")
