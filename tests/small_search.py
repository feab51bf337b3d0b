"""A search that several test modules run for a moment."""

from ftae.specs import SearchSpec

SEARCH = SearchSpec.model_validate(
    {
        "name": "small",
        "finetune": {
            "model": {"family": "conv_vae", "channels": 4, "depth": 1, "latent_dim": 4},
            "data": {"source": "digits", "resolution": 16, "classes": [3, 7]},
            "losses": {"mse": 1.0, "kl": 1e-3, "ce": 0.1},
            "optimizer": {"lr": 1e-2},
            "ema_half_life_fraction": 0.1,
            "max_steps": 12,
            "num_evals": 2,
            "metrics": ["psnr", "ssim", "accuracy"],
        },
        "search_space": {"optimizer.lr": {"low": 1e-6, "high": 1e-2, "log": True}},
        "objective": {"metric": "val/psnr", "direction": "maximize"},
        "search": {"num_trials": 2, "scheduler": {"name": "fifo"}},
    }
)
