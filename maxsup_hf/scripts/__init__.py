"""Training scripts, one a task; `maxsup-hf train` lists this folder. What they share is in `body`."""
