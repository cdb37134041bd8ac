"""Lightning's Trainer, with clipping, a checkpoint, and a second run that resumes from it.

python examples/lightning_trainer.py
"""

import tempfile
from typing import Any

import lightning.pytorch as lightning
import torch
from digits import TRAIN, accuracy, network
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dynsparse import SparseTraining


class Classifier(lightning.LightningModule):
    """A sparse classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()
        self.saved: dict[str, Any] | None = None

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        sparse = SparseTraining(
            self.model,
            optimizer,
            {"name": "rigl", "period": 20},
            sparsity=0.95,
            total_steps=int(self.trainer.estimated_stepping_batches),
            state=self.saved,
        )
        self.__dict__["sparse"] = sparse  # Not a part of the module: it cannot be copied or pickled.
        return optimizer

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.sparse.prepare_gradients()  # Before gradient_clip_val clips, after Lightning has unscaled.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sparse"] = self.sparse.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.saved = checkpoint["sparse"]  # The model is loaded before configure_optimizers is called.


def fit(epochs: int, save: str, resume: str | None = None) -> Classifier:
    """Train up to `epochs`, from the beginning or from a checkpoint, and save."""
    trainer = lightning.Trainer(
        max_epochs=epochs,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    classifier = Classifier()
    trainer.fit(classifier, DataLoader(TRAIN, batch_size=64, shuffle=True), ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(save, weights_only=False)
    return classifier


torch.manual_seed(0)
with tempfile.TemporaryDirectory() as folder:
    fit(10, save=f"{folder}/half.ckpt")
    classifier = fit(20, save=f"{folder}/whole.ckpt", resume=f"{folder}/half.ckpt")
print(classifier.sparse)
print(f"test accuracy {accuracy(classifier.model):.1f} %")
