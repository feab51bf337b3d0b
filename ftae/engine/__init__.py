"""Fine-tuning in pure PyTorch. Knows nothing of Ray, MLflow, Optuna or searches."""
