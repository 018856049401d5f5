"""The Hugging Face Hub: checks before training, pushes that survive a bad day of the Hub, model cards."""
