"""`python -m maxsup_hf` runs `maxsup-hf`."""

from maxsup_hf.cli import main

main()
