"""Project the features of three classes under each loss of an experiment, for a figure.

    python model_cards/planes.py cifar10_resnet20 --data DATA   # after experiments.py with the same name

Writes model_cards/results/NAME-plane.json, from which figures.py draws. The plane is the one through the classifier's rows
of the three classes (Müller et al. 2019, arXiv 1906.02629). Each loss is shown by its model of the first seed, on test rows.
"""

from typing import Any

import numpy as np
from beyond import TrainedModel
from experiments import REPORTED, parser, training
from store import write

from maxsup_hf.analysis.measure import project, rows_of
from maxsup_hf.comparison.plan import load_plan, run_folder

CLASSES = ("cat", "dog", "ship")  # two that are confused, and one that is not
ROWS = 150  # of each class


def points(trained: TrainedModel) -> dict[str, Any]:
    """Class -> coordinates of its features. They are moved and scaled so that the means of the classes have the origin as
    their centre, and lie at a distance of 1 from it (root mean square): what is left to compare is the spread."""
    chosen = [trained.trainer.model.config.label2id[name] for name in CLASSES]
    found = rows_of(trained.rows(trained.trainer.get_eval_dataloader(trained.test)), chosen, ROWS)
    templates = trained.classifier.weight[chosen].numpy()
    projected = [project(found[index], templates) for index in chosen]
    means = np.array([of.mean(0) for of in projected])
    size = np.sqrt(((means - means.mean(0)) ** 2).sum(1).mean())
    return {name: ((of - means.mean(0)) / size).round(3) for name, of in zip(CLASSES, projected, strict=True)}


def main() -> None:
    args = parser(__doc__, [REPORTED]).parse_args()
    folder, arguments = args.runs / args.name, training(args.name, args.data, args.runs / "made")
    plan = load_plan(folder)
    of_first_seed = [run for run in plan.runs() if run.seed == plan.seeds[0]]
    found = {run.loss: points(TrainedModel(arguments, run_folder(folder, run), args.data)) for run in of_first_seed}
    write(args.results / f"{args.name}-plane.json", {"points": found})


if __name__ == "__main__":
    main()
