"""Long tails by hand, accuracy of class groups against a plain loop, and the 15 corruptions."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from maxsup_hf.metrics.robustness import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    long_tailed_counts,
    long_tailed_subset,
    shot_accuracy,
)

# ---- long tails ----


def test_long_tail_of_cifar10():
    """Classes of CIFAR-10-LT with imbalance ratio 100, as Cao et al. 2019 train on them."""
    assert long_tailed_counts(5000, 10, 100).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert long_tailed_counts(5000, 10, 50)[[0, -1]].tolist() == [5000, 100]
    assert long_tailed_counts(7, 3, 1).tolist() == [7, 7, 7]


@given(seed=st.integers(0, 99), ratio=st.sampled_from([1, 2, 10]))
def test_subset_has_these_counts_and_depends_on_the_seed_alone(seed, ratio):
    labels = np.random.default_rng(seed).permutation(np.arange(4).repeat(20))
    kept = long_tailed_subset(labels, ratio, seed=seed)
    assert np.bincount(labels[kept]).tolist() == long_tailed_counts(20, 4, ratio).tolist()
    assert (np.diff(kept) > 0).all() and (kept == long_tailed_subset(labels, ratio, seed=seed)).all()
    assert set(long_tailed_subset(labels, 2 * ratio, seed=seed)) <= set(kept)
    assert len(long_tailed_subset(labels, 1)) == 80


def test_unequal_classes():
    labels = np.repeat([0, 1, 2], [30, 10, 20])
    assert np.bincount(labels[long_tailed_subset(labels, 10)]).tolist() == [10, 3, 1]
    assert np.bincount(labels[long_tailed_subset(labels, 9, largest=30)]).tolist() == [30, 10, 3]
    with pytest.raises(ValueError, match="class 1 should keep 15 rows and has 10"):
        long_tailed_subset(labels, 4, largest=30)


@given(seed=st.integers(0, 99))
def test_groups_agree_with_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    counts = rng.choice([5, 19, 20, 100, 101, 500], 6)
    predictions, labels = rng.integers(0, 6, 30), rng.integers(0, 5, 30)  # class 5 is not tested
    groups = {"many": [], "medium": [], "few": [], "all": []}
    for k in sorted(set(labels.tolist())):
        of_class = [p == y for p, y in zip(predictions.tolist(), labels.tolist(), strict=True) if y == k]
        name = "many" if counts[k] > 100 else "few" if counts[k] < 20 else "medium"
        groups[name].append(sum(of_class) / len(of_class))
        groups["all"].append(sum(of_class) / len(of_class))
    expected = {name: np.mean(values) if values else np.nan for name, values in groups.items()}
    assert shot_accuracy(predictions, labels, counts) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: long_tailed_counts(100, 1, 10), "num_classes of at least 2"),
        (lambda: long_tailed_counts(0, 2, 10), "largest of at least 1"),
        (lambda: long_tailed_counts(100, 2, 0.5), "ratio of at least 1"),
        (lambda: long_tailed_counts(100, 2, float("nan")), "ratio of at least 1"),
        (lambda: long_tailed_counts(100, 2, 101), "leaves the smallest class empty"),
        (lambda: long_tailed_subset([0.0, 1.0], 1), "integers from 0 up"),
        (lambda: long_tailed_subset([-1, 1], 1), "integers from 0 up"),
        (lambda: long_tailed_subset([0, 0, 2, 2], 1), "largest of at least 1"),
        (lambda: shot_accuracy([0, 1], [0], [1, 1]), r"predictions \(N,\)"),
        (lambda: shot_accuracy([0, 2], [0, 1], [1, 1]), r"predictions must be integers in \[0, 2\)"),
        (lambda: shot_accuracy([0, 1], [0, -1], [1, 1]), r"labels must be integers in \[0, 2\)"),
        (lambda: shot_accuracy([0], [0], [1], many=10, few=20), "few must not exceed many"),
        (lambda: corrupt(np.zeros((32, 32, 3), np.uint8), "rain", 1), "corruption must be one of gaussian_noise, .*'rain'"),
        (lambda: corrupt(np.zeros((32, 32, 3), np.uint8), "fog", 6), "severity must be 1 to 5, got 6"),
        (lambda: corrupt(np.zeros((32, 32, 3)), "fog", 1), "uint8, got float64"),
        (lambda: corrupt(np.zeros((32, 32, 4), np.uint8), "fog", 1), r"got uint8 \(32, 32, 4\)"),
        (lambda: corrupt(np.zeros((32, 28, 3), np.uint8), "fog", 1), "at least 32 × 32 to be corrupted, got 32 × 28"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- corruptions ----

NEEDS = "needs imagecorruptions-imaug (pip install -e '.[robustness]') and, for its opencv-python, libGL of the system"


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("imagecorruptions", reason=NEEDS, exc_type=ImportError)


def picture(height=40, width=48):
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x, 5 * y, 2 * (x + y)], -1).astype(np.uint8)


def test_names_are_those_of_the_library(library):
    assert list(CORRUPTIONS) == library.get_corruption_names("common") and SEVERITIES == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_every_corruption_repeats_and_leaves_the_generator(library, corruption):
    image = picture()
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    for severity in SEVERITIES:
        changed = corrupt(image, corruption, severity, seed=3)
        assert changed.shape == image.shape and changed.dtype == np.uint8 and (changed != image).any()
        assert (changed == corrupt(Image.fromarray(image), corruption, severity, seed=3)).all()
    assert (np.random.get_state()[1] == before).all()
    assert (image == picture()).all()


@pytest.mark.parametrize("corruption", ["gaussian_noise", "impulse_noise", "glass_blur", "fog", "elastic_transform"])
def test_another_seed_is_another_image(library, corruption):
    assert (corrupt(picture(), corruption, 3, seed=0) != corrupt(picture(), corruption, 3, seed=1)).any()


def test_higher_severity_does_more_and_grey_images_become_rgb(library):
    image = picture().astype(int)
    errors = [np.abs(corrupt(picture(), "gaussian_noise", s) - image).mean() for s in SEVERITIES]
    assert errors == sorted(errors)
    assert corrupt(picture()[..., 0], "contrast", 1).shape == (40, 48, 3)


def test_without_the_library_the_error_says_what_to_install():
    source = (
        "import sys; sys.modules['imagecorruptions'] = None; import numpy as np\n"
        "from maxsup_hf.metrics.robustness import corrupt\n"
        "try: corrupt(np.zeros((32, 32, 3), np.uint8), 'fog', 1)\n"
        "except ImportError as error: sys.exit('pip install imagecorruptions-imaug' not in str(error))\n"
        "sys.exit(2)"
    )
    assert subprocess.run([sys.executable, "-c", source]).returncode == 0
