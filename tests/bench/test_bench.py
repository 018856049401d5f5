"""`maxsup-hf bench`, on small shapes."""

import json

import pytest
import torch

from maxsup_hf import bench, cli, create_loss, list_losses
from maxsup_hf.bench import linear, logits, variants
from maxsup_hf.losses import Loss


def run(*flags):
    return bench.main([*flags, "--rounds", "2"])


def test_report(tmp_path, capsys):
    path = tmp_path / "made" / "cpu.json"
    cli.main(["bench", "--shapes", "8x10,300x40", "--dtypes", "float32,bfloat16", "--rounds", "2", "--no-compile",
              "--output", str(path)])  # fmt: skip
    report = json.loads(path.read_text())
    assert report["loss"] == "maxsup" and report["parameters"] == {"alpha": 0.1}
    assert {"processor", "cores", "threads", "torch"} <= set(report["machine"])
    assert [(row["shape"], row["dtype"]) for row in report["results"]] == [
        ([8, 10], "float32"), ([8, 10], "bfloat16"), ([300, 40], "float32"), ([300, 40], "bfloat16"),
    ]  # fmt: skip
    for row in report["results"]:
        assert set(row["ratios"]) == {"loss"}
        assert set(row["ratios"]["loss"]) == {"label smoothing", "LabelSmoother", "naive", "plain path", "copy"}
        assert all(ratio > 0 for ratios in row["ratios"].values() for ratio in ratios.values())
        assert row["graph_breaks"] is None
        assert all(error < 1e-5 for error in row["gradient_error_times_rows"].values()) or row["dtype"] == "bfloat16"
        ours, theirs = (row["peak_memory_over_logits"][name] for name in ("loss", "label smoothing"))
        assert ours < theirs or row["shape"] == [8, 10] or row["dtype"] == "bfloat16"  # one float32 block is larger
    out = capsys.readouterr().out
    assert "| 300×40 | bfloat16 | loss |" in out and "threads: " in out


def test_compiled(capsys):
    torch._dynamo.reset()
    (row,) = run("--shapes", "16x10")["results"]
    assert row["graph_breaks"] == 0
    assert "compiled label smoothing" in row["ratios"]["compiled loss"]
    torch._dynamo.reset()


@pytest.mark.parametrize("name", list_losses())
def test_every_loss(name):
    (row,) = run("--loss", name, "--shapes", "16x10", "--no-compile")["results"]
    assert row["milliseconds"]["loss"] > 0


@pytest.mark.parametrize("what", ["value", "gradient"])
def test_a_wrong_loss_is_not_timed(what, monkeypatch):
    right = logits.candidates

    def wrong(*args):
        found = right(*args)
        function = found["loss"].function
        found["loss"] = found["loss"]._replace(
            function=lambda z, t: function(z, t) + (1e-3 if what == "value" else 1e-3 * (z.sum() - z.sum().detach()))
        )
        return found

    monkeypatch.setattr(logits, "candidates", wrong)
    with pytest.raises(ArithmeticError, match="loss is wrong: loss .* is right, gradient off by"):
        run("--shapes", "16x10", "--no-compile")


def test_fused_linear(tmp_path, capsys):
    report = run("--linear_shapes", "300x32x500", "--output", str(tmp_path / "linear.json"))
    assert report["results"] == [] and json.loads((tmp_path / "linear.json").read_text()) == report
    (row,) = report["linear_results"]
    assert row["shape"] == [300, 32, 500] and row["logits_bytes"] == 300 * 500 * 4
    assert set(row["ratios"]) == set(linear.NEIGHBOURS) and row["ignored_to_full"] > 0
    assert row["peak_bytes"]["fused"] < row["peak_bytes"]["unfused"] < row["peak_bytes"]["unfused label smoothing"]
    assert row["gradient_error"] < 1e-5
    assert "| 300×32×500 | float32 |" in capsys.readouterr().out


def test_a_wrong_fused_loss_is_not_timed(monkeypatch):
    right = linear.candidates

    def wrong(loss, case):
        found = right(loss, case)
        return found | {"fused": lambda: found["fused"]() + 1e-3 * (case.weight.sum() - case.weight.sum().detach())}

    monkeypatch.setattr(linear, "candidates", wrong)
    with pytest.raises(ArithmeticError, match="gradient of weight off by"):
        run("--linear_shapes", "30x8x50")


def test_variants(capsys):
    (row,) = run("--variant_shapes", "16x10")["variant_results"]
    assert row["shape"] == [16, 10] and set(row["ratios"]) == {"bfloat16", "(N, K, …)", *variants.NONLINEAR}
    assert all(ratio > 0 for ratio in row["ratios"].values())
    assert "| 16×10 |" in capsys.readouterr().out
    (row,) = run("--loss", "focal", "--variant_shapes", "16x10")["variant_results"]
    assert "focal" not in row["ratios"]


def test_a_wrong_variant_is_not_timed(monkeypatch):
    right = Loss.compute

    def wrong(self, *args, kernel="auto", **options):
        return right(self, *args, kernel=kernel, **options).map(lambda x: x + (kernel == "auto"))

    monkeypatch.setattr(Loss, "compute", wrong)
    with pytest.raises(ArithmeticError, match="maxsup is wrong: .* is right"):
        run("--variant_shapes", "16x10")


def test_peak_memory():
    case = logits.Case(100, 1000, torch.float32, torch.device("cpu"))
    clones = logits.Candidate(lambda z, _: z.detach().clone() + z.detach().clone() * 0, backward=False)
    assert case.peak(clones) == pytest.approx(3 * 4 * 100 * 1000, rel=1e-4)


def test_the_reference_is_the_plain_path():
    case, loss = logits.Case(50, 20, torch.float32, torch.device("cpu")), create_loss("maxsup")
    found = logits.reference(loss, case)
    leaf = case.source.double().requires_grad_()
    value = loss(leaf, case.labels, kernel="plain")
    value.backward()
    torch.testing.assert_close(found, (value.detach(), leaf.grad))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shapes", "64"], "expected rows x classes as 64x10"),
        (["--shapes", "64x1"], "at least 2 classes"),
        (["--linear_shapes", "64x10"], "expected rows x width x classes as 2048x512x32000"),
        (["--dtypes", "int8"], "expected comma-separated names out of float32, bfloat16, float16, got 'int8'"),
        (["--loss", "maxup"], "invalid choice: 'maxup'"),
    ],
)
def test_bad_flags(flags, message, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["bench", *flags])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_flags_of_bench_are_rejected_by_other_commands(capsys):
    with pytest.raises(SystemExit):
        cli.main(["losses", "--shapes", "1x2"])
    assert "unrecognized arguments: --shapes 1x2" in capsys.readouterr().err
