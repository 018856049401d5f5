"""What the tables and figures of model_cards call losses and metrics."""

from maxsup_hf.losses._labels import loss_label

LOSSES = {name: loss_label(name) for name in ("cross_entropy", "label_smoothing", "maxsup")}
METRICS = {
    "accuracy": "accuracy", "chrf": "chrF", "perplexity": "perplexity", "nll": "NLL", "ece": "ECE",
    "confidence_when_wrong": "confidence when wrong", "error_auroc": "AUROC, right predictions against wrong ones",
    "feature_within": "within-class variation", "feature_r2": "R²",
    "probe_accuracy": "accuracy of a linear probe on other data", "corrupted_accuracy": "accuracy under corruptions",
    "ood_auroc": "AUROC, own images against foreign ones", "oos_auroc": "AUROC, own sentences against foreign ones",
    "many": "accuracy, classes of more than 100 images", "medium": "accuracy, classes of 20 to 100 images",
    "few": "accuracy, classes of fewer than 20 images",
    "token_accuracy": "accuracy of the next token", "token_ece": "ECE of the next token",
    "token_confidence_when_wrong": "confidence when the next token is wrong",
    "choice2_accuracy": "accuracy, two options", "choice2_ece": "ECE, two options",
    "choice4_accuracy": "accuracy, four options", "choice4_ece": "ECE, four options",
}  # fmt: skip
# Measured beyond a comparison and not in the overview
MORE_METRICS = {
    "train_accuracy": "accuracy, training data", "train_confidence_when_wrong": "confidence when wrong, training data",
    "train_feature_within": "within-class variation, training data", "train_feature_r2": "R², training data",
    "token_nll": "NLL of the next token", "token_perplexity": "perplexity of the next token",
    "choice2_nll": "NLL, two options", "choice2_confidence_when_wrong": "confidence when wrong, two options",
    "choice4_nll": "NLL, four options", "choice4_confidence_when_wrong": "confidence when wrong, four options",
}  # fmt: skip


def metric_label(metric: str) -> str:
    return METRICS.get(metric) or MORE_METRICS[metric]
