"""`--preview N`: a picture of what the network would get."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from math import ceil

import torch

import pipelines
from dynsparse.cli.actions.base import Action, Rule, position_in, start_rules
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training.building import data_request
from pipelines.base import dominant
from pipelines.preview import picture, write_png


@dataclass(frozen=True)
class Preview(Action):
    """Write the first training samples of worker 0 beside the run's folder, as its network would get them."""

    count: int
    resume: str | None = None

    def rules(self, worker: Worker) -> list[Rule]:
        """Return the rules of a start."""
        return start_rules(self.config, worker, self.resume)

    def rehearse(self, worker: Worker) -> str:
        """Raise UserError for data that cannot be trained on."""
        position_in(self.config, worker)
        return "a preview can be made"

    def run(self, worker: Worker) -> None:
        """Write the picture on rank 0, and print where it is."""
        if not worker.is_main:
            return
        config, count = self.config, self.count
        pipelines.fetch(config.data)
        data = pipelines.build(config.data, data_request(config, worker))
        first = config.train.start_epoch
        data.train.seek(first, 0)
        steps = islice(data.train.epoch(), ceil(count * worker.world_size / config.train.batch_at(first)))
        with closing(data):
            batches = [(images, dominant(labels)) for step in steps for images, labels in step]
            images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        path = config.folder.with_name(f"{config.folder.name}_preview.png")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(picture(data, images, labels, most=count), path)
        except OSError as error:
            raise UserError(f"--preview: {path} cannot be written ({error.strerror}); set runs=") from None
        print(f"{min(count, len(labels))} training samples in {path}", flush=True)
