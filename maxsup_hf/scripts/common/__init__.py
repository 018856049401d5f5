"""Code that the training scripts share: arguments, model, tokenizer or image processor, recipes, and the run itself."""
