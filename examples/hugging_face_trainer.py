"""Hugging Face's Trainer: a small vision transformer from transformers, its attention layers sparse too.

    python examples/hugging_face_trainer.py

`SparseTraining` is made before the Trainer, beside the optimizer that the Trainer is given. The callback saves its
state in each checkpoint's folder.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from digits import TRAIN, accuracy
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from dynsparse import SparseTraining

EPOCHS, BATCH = 15, 50

torch.manual_seed(0)
model = ViTForImageClassification(
    ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
    )
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
sparse = SparseTraining(
    model,
    optimizer,
    {"name": "set", "period": 50},
    sparsity=0.8,
    exclude=["vit.embeddings.*", "classifier.*"],  # Small layers at both ends stay dense.
    total_steps=EPOCHS * len(TRAIN) // BATCH,
)


class SaveSparse(TrainerCallback):
    """Save the state of `SparseTraining` beside what the Trainer saves."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        torch.save(sparse.state_dict(), Path(args.output_dir) / f"checkpoint-{state.global_step}" / "sparse.pt")


def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return a batch as the model's forward takes it."""
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}


with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="epoch",
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=TRAIN,
        data_collator=collate,
        optimizers=(optimizer, None),
        callbacks=[SaveSparse()],
    )
    trainer.train()
    (saved,) = Path(folder).glob("checkpoint-*/sparse.pt")
    state = torch.load(saved, weights_only=True)  # To resume: SparseTraining(model, optimizer, ..., state=state).
print(sparse)
print(f"test accuracy {accuracy(model):.1f} %, the state of step {state['steps']} is saved")
