"""One fine-tuning run: model, data, losses, metrics, optimizer."""
