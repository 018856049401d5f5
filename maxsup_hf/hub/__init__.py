"""The Hugging Face Hub: checks before training, pushes that survive transient Hub errors, and model cards."""
