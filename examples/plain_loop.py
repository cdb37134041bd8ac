"""A plain PyTorch loop: a network that is 95 % sparse from the first step to the last.

    python examples/plain_loop.py

Two lines are dynsparse's, the import and `SparseTraining(...)`. The rest is the loop that you have already.
"""

import torch
from digits import TEST, TRAIN, accuracy, network
from torch import nn
from torch.utils.data import DataLoader

from dynsparse import SparseTraining

EPOCHS = 20

torch.manual_seed(0)
loader = DataLoader(TRAIN, batch_size=32, shuffle=True)
model = network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
sparse = SparseTraining(
    model, optimizer, {"name": "rigl", "period": 20}, sparsity=0.95, total_steps=EPOCHS * len(loader)
)

for _ in range(EPOCHS):
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

for layer in sparse.masks:
    print(f"{layer.name:10} {layer.active_weights:5,} of {layer.weight.numel():6,} weights active")
print(f"test accuracy {accuracy(model):.1f} % on {len(TEST)} images")

# To resume, load the three states in this order: model, optimizer, sparse.
state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "sparse": sparse.state_dict()}
model.load_state_dict(state["model"])
optimizer.load_state_dict(state["optimizer"])
sparse.load_state_dict(state["sparse"])
print(sparse)
