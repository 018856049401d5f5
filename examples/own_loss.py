"""Your own loss on the `--loss` flag: `python examples/own_loss.py image-classification --loss half_maxsup`.

With MAXSUP_HF_LOSSES=examples/own_loss.py in the environment, every command of `maxsup-hf` finds it, for example `compare`.
"""

import sys

from maxsup_hf import register_loss
from maxsup_hf.cli import main


@register_loss("half_maxsup")
def half_maxsup(cross_entropy, top, mean, *, alpha=0.1):
    """Half of MaxSup."""
    return cross_entropy, alpha / 2 * (top - mean)


if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
