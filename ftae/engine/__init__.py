"""Fine-tuning in pure PyTorch: knows nothing of trials, Ray, MLflow or Optuna."""
