"""A data set of your own, images in folders by class, trained with the command line and without a loop.

    python examples/own_data_set.py

It writes data/my_digits/{train,test}/CLASS/*.png, as your images may lie on a disk, and starts `dynsparse train`.
Arrays or other files: docs/adding-a-dataset.md.
"""

import subprocess
import sys
from pathlib import Path

from digits import TEST, TRAIN
from PIL import Image

FOLDER = Path("data/my_digits")
CONFIG = FOLDER / "config.yaml"

for split, samples in (("train", TRAIN), ("test", TEST)):
    for number, (pixels, label) in enumerate(samples):
        path = FOLDER / split / str(int(label)) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels[0] * 255).byte().numpy()).convert("RGB").resize((32, 32)).save(path)

CONFIG.write_text(f"""
name: my_digits
model: {{name: small_cnn}}
sparsity: {{conv: 0.8, fc: 0.5, exclude: ["conv1.*"]}}
method: {{name: dsr, period: 20, target_moves: 100}}
data: {{name: imagenet, path: {FOLDER}, image_size: 32, evaluation_resize: 32, augment: false}}
train:
  epochs: 5
  global_batch_size: 50
  lr: {{name: cosine, peak: 0.1}}
""")
sys.exit(subprocess.call([sys.executable, "-m", "dynsparse", "train", "--config", CONFIG, "--overwrite"]))
