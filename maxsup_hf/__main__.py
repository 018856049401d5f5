"""`python -m maxsup_hf` is `maxsup-hf`."""

from maxsup_hf.cli import main

main()
