"""Memory and exactness of the streamed geometry: `python -m tests.metrics.geometry_at_scale [--rows 1000000 …]`.

Three processes make the same features batch by batch: one only reads them, one streams them through `FeatureGeometry` and
`NearestCentre`, one collects them and passes them to the reference implementation. Peak memory and differences are printed.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from maxsup_hf.metrics import FeatureGeometry, NearestCentre
from tests.metrics import reference


def batches(args):
    """Features of a ReLU layer around one point for each class, and what a classifier of eight of them would predict."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(args.classes, args.dim)).astype(np.float32)
    for start in range(0, args.rows, args.batch):
        count = min(args.batch, args.rows - start)
        labels = rng.permutation(np.arange(start, start + count) % args.classes)
        features = rng.standard_normal((count, args.dim), np.float32)
        features += centres[labels]
        np.maximum(features, 0, out=features)
        yield features, labels, (features[:, :8] @ centres[:, :8].T).argmax(1)


def classifier(args):
    return np.random.default_rng(1).normal(size=(args.classes, args.dim))


def read(args):
    return {"rows": sum(len(labels) for _, labels, _ in batches(args))}


def stream(args):
    geometry = FeatureGeometry(args.classes)
    for features, labels, _ in batches(args):
        geometry.update(features, labels)
    found = geometry.compute(classifier(args))
    nearest = NearestCentre(geometry.class_means())
    for features, _, predictions in batches(args):
        nearest.update(features, predictions)
    return found | nearest.compute()


def whole(args):
    x, y, predictions = np.empty((args.rows, args.dim)), [], []
    for i, (features, labels, guesses) in enumerate(batches(args)):
        x[i * args.batch : i * args.batch + len(labels)] = features
        y.append(labels)
        predictions.append(guesses)
    return reference.geometry(x, np.concatenate(y), classifier(args), np.concatenate(predictions))


def measure(mode, args):
    """What a mode finds in a process of its own, the peak of its memory in MB, and its seconds."""
    flags = [word for name in ("rows", "dim", "classes", "batch") for word in (f"--{name}", str(getattr(args, name)))]
    command = [sys.executable, "-m", "tests.metrics.geometry_at_scale", "--mode", mode, *flags]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(args):
    """Peak memory of each mode, and the greatest difference between the streamed and the plain results."""
    runs = {mode: measure(mode, args) for mode in ("read", "stream", "whole")}
    expected, found = runs["whole"].pop("found"), runs["stream"].pop("found")
    runs["read"].pop("found")
    differences = {name: float(np.abs(np.subtract(found[name], value)).max()) for name, value in expected.items()}
    return {
        **runs,
        "above_reader_mb": runs["stream"]["peak_mb"] - runs["read"]["peak_mb"],
        "values": {name: value for name, value in found.items() if isinstance(value, float)},
        "differences": differences,
    }


def parse(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=["read", "stream", "whole"])
    for name, default in (("rows", 1_000_000), ("dim", 512), ("classes", 1000), ("batch", 4096)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args(argv)


def main():
    args = parse()
    if args.mode is None:
        print(json.dumps(compare(args), indent=1))
        return
    start = time.perf_counter()
    found = {"read": read, "stream": stream, "whole": whole}[args.mode](args)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {name: np.asarray(value).tolist() for name, value in found.items()}
    print(json.dumps({"found": found, "peak_mb": round(peak, 1), "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
