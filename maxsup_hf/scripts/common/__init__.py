"""What every training script does: read its arguments, load and check its data, train, evaluate and save."""
