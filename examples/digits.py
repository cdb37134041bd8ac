"""Handwritten digits that come with scikit-learn, the data of all examples: 1,797 images of 8 x 8 pixels.

Your own data take the place of `TRAIN` and `TEST`.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

_pixels, _labels = load_digits(return_X_y=True)
_ALL = TensorDataset(torch.tensor(_pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(_labels))
_ORDER = torch.randperm(len(_ALL), generator=torch.Generator().manual_seed(0)).tolist()

TRAIN = Subset(_ALL, _ORDER[:1400])
TEST = Subset(_ALL, _ORDER[1400:])


def network() -> nn.Module:
    """Return a small network with three linear layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Return the percentage of test images whose class the model gets right."""
    device = next(model.parameters()).device
    model.eval()
    right = 0
    for images, labels in DataLoader(TEST, batch_size=256):
        output = model(images.to(device))
        logits = getattr(output, "logits", output)  # Models of transformers return them in a dataclass.
        right += int((logits.argmax(1) == labels.to(device)).sum())
    return 100 * right / len(TEST)
