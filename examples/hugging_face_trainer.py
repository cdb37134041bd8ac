"""Hugging Face's Trainer: a small vision transformer from transformers, its attention layers sparse too.

    python examples/hugging_face_trainer.py [FOLDER]

`SparseTraining` is made before the Trainer, beside the optimizer that the Trainer is given. The callback saves its
state in each checkpoint's folder, and loads it where the Trainer resumes. With a FOLDER the checkpoints stay there, and
the next start goes on from the last one.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from digits import TRAIN, accuracy
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification
from transformers.trainer_utils import get_last_checkpoint

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


class KeepSparse(TrainerCallback):
    """Save the state of `SparseTraining` beside what the Trainer saves, and load it after the Trainer has loaded."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        torch.save(sparse.state_dict(), self._folder(args, state) / "sparse.pt")

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:  # The Trainer resumes: it has loaded the model and the optimizer.
            saved = self._folder(args, state)
            # Again: transformers 5 saves a ViT under names of version 4, which from_pretrained knows, its Trainer not.
            model.load_state_dict(ViTForImageClassification.from_pretrained(saved).state_dict())
            sparse.load_state_dict(torch.load(saved / "sparse.pt", weights_only=True))

    def _folder(self, args: TrainingArguments, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return a batch as the model's forward takes it."""
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}


with tempfile.TemporaryDirectory() as temporary:
    folder = sys.argv[1] if len(sys.argv) > 1 else temporary
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="epoch",
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=TRAIN,
        data_collator=collate,
        optimizers=(optimizer, None),
        callbacks=[KeepSparse()],
    )
    last = get_last_checkpoint(folder) if Path(folder).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
print(sparse)
print(f"test accuracy {accuracy(model):.1f} %, {'resumed from ' + Path(last).name if last else 'from the beginning'}")
