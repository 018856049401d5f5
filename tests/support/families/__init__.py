"""What single families of models need beyond the general rules of `build` and `inputs`."""
