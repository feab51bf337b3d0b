"""The Python API from a pretrained model to reconstructions, in a minute on a CPU and without a download.

A small VAE learns the digits 3 and 7. A search finds out how to fine-tune it on the same digits with inverted colours.

    python examples/search.py [FOLDER]

writes everything below FOLDER (default: the current folder).
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import ftae

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".").absolute()
storage = str(folder / "searches")

# 1. Pretrain a model. Any autoencoder of diffusers, or one of your own, could stand in its place.
pretraining = ftae.ProductionSpec.model_validate(
    {
        "name": "digits-vae",
        "finetune": {
            "model": {"family": "conv_vae", "channels": 8, "depth": 2, "latent_dim": 8},
            "data": {"source": "digits", "resolution": 16, "classes": [3, 7]},
            "losses": {"mse": 1.0, "kl": 1e-3},
            "optimizer": {"name": "adamw", "lr": 2e-3},
            "batch_size": 32,
            "max_steps": 200,
            "num_evals": 2,
            "metrics": ["psnr"],
            "num_threads": 1,
        },
    }
)
pretrained = ftae.run_training(pretraining, folder / "digits-vae", storage=storage, notify=print)
print(f"pretrained: {pretrained.metrics['val/psnr']:.2f} dB")

# 2. Describe the search: a complete run, the values to vary, and what to optimise.
spec = ftae.SearchSpec(
    name="inverted-digits",
    finetune=ftae.FinetuneSpec.model_validate(
        {
            "model": {"family": "conv_vae", "pretrained": str(pretrained.model)},
            "data": {"source": "digits", "resolution": 16, "classes": [3, 7], "shift": "invert"},
            "losses": {"mse": 1.0, "kl": 1e-3},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "batch_size": 32,
            "max_steps": 60,
            "num_evals": 2,
            "metrics": ["psnr"],
        }
    ),
    search_space={
        "optimizer.lr": ftae.Range(low=1e-4, high=1e-2, log=True),
        "freeze_depth": ftae.Range(low=0, high=3),
    },
    objective={"metric": "val/psnr", "direction": "maximize"},
    search={"num_trials": 4, "storage": storage},
)
print("\n".join(ftae.validate(spec)))

# 3. Run it. ``notify`` receives a line for each trial.
search = ftae.run_search(spec, notify=print)
print(search.leaderboard()[["kind", "status", "val/psnr", "params.optimizer.lr", "params.freeze_depth"]])
print(search.verdict())

# 4. Export the best trial, load it, and use it on images.
model = ftae.load_model(search.export(folder / "exports" / search.name))
digits = load_digits()
threes = digits.images[digits.target == 3][:6] / 16.0  # (6, 8, 8) in [0, 1]
images = 1.0 - np.kron(threes, np.ones((2, 2)))[..., np.newaxis]  # (6, 16, 16, 1), inverted
reconstructions = model.reconstruct(images)  # float32 (6, 16, 16, 1) in [0, 1]
print(f"mean squared error of six reconstructions: {np.mean((reconstructions - images) ** 2):.4f}")
