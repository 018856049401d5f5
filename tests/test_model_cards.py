"""Scripts and results in model_cards. Tables and pages are compared with the JSON files by numbers, not by words."""

import json
import re
import shutil
import sys
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from maxsup_hf import cli
from maxsup_hf.comparison import cli as compare_cli
from maxsup_hf.comparison.statistics import best, differences, stands_out
from maxsup_hf.comparison.tables import main_metrics, markdown
from maxsup_hf.data.builtin import digits
from maxsup_hf.hub.card import write_card
from maxsup_hf.losses._labels import loss_label
from maxsup_hf.scripts.common.output_dir import in_use
from tests import warm
from tests.hub.conftest import hub, hub_environment  # noqa: F401

FOLDER = Path(__file__).parents[1] / "model_cards"
RESULTS = FOLDER / "results"
sys.path.insert(0, str(FOLDER))
import derived  # noqa: E402
import experiments  # noqa: E402
import gap  # noqa: E402
import labels  # noqa: E402
import overview  # noqa: E402
import publish  # noqa: E402
import speed  # noqa: E402
import store  # noqa: E402
import verdicts  # noqa: E402
import write_tables  # noqa: E402

NAMES = list(experiments.experiments(Path("data")))
COMPARISONS = store.comparisons()
BEYOND = sorted(RESULTS.glob("*-beyond.json"))
AT_ACCURACY = [name for name in COMPARISONS if name in experiments.TITLES]
NUMBER = re.compile(r"\**[-+−]?\d[\d,]*(?:\.\d+)?\**")  # with the asterisks of bold ones
PAIR = re.compile(r"([-+−]?\d+\.\d+) ± (\d+\.\d+)")


@pytest.mark.parametrize("name", NAMES)
def test_each_experiment_is_a_valid_comparison(name, tmp_path):
    words = [*experiments.experiments(Path("data"))[name], "--seeds", "0,1,2", "--output_dir", str(tmp_path / "out")]
    args, flags = compare_cli.parser(cli.tasks()).parse_known_args(words)
    plan, folder, _ = compare_cli.make_plan(args, cli.find_task(args.task), flags)
    assert len(plan.runs()) >= 3 * len(plan.losses) >= 9 and not in_use(str(folder))
    alphas = {(kwargs["alpha"], kwargs["alpha_end"]) for kwargs in plan.losses.values() if "alpha" in kwargs}
    assert alphas == {(0.1, None if name == "constant" else 0.2)}, "losses with an alpha share its schedule"


# ---- how numbers are read from Markdown ----


def tables(text):
    """Rows of cells of each table, without its header."""
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE)
    return [[line[2:-2].split(" | ") for line in block.splitlines()[2:]] for block in blocks]


def numbers(text):
    return NUMBER.findall(text)


def cells(text):
    """Of all tables, without the names of the rows."""
    return [[row[1:] for row in table] for table in tables(text)]


def check(cell, values):
    """A cell `mean ± standard deviation` against the values of the seeds, to the digits that it shows."""
    found = np.array([np.nan if value is None else value for value in values.values()])
    mean, sd = PAIR.fullmatch(cell.strip("*")).groups()
    half_a_digit = 0.5001 * 10.0 ** -len(mean.rpartition(".")[2])
    assert float(mean) == pytest.approx(np.nanmean(found), abs=half_a_digit)
    assert float(sd) == pytest.approx(np.nanstd(found, ddof=1), abs=half_a_digit)


# ---- results ----


def test_every_result_belongs_to_an_experiment():
    found = {path.stem.removesuffix("-beyond").removesuffix("-plane") for path in RESULTS.glob("*.json")}
    assert found <= {*NAMES, *speed.REPORTS}


def test_results_are_small():
    assert sum(path.stat().st_size for path in RESULTS.rglob("*.json")) < 1_000_000
    assert all(path.stat().st_size < 3_000_000 for path in RESULTS.rglob("*.html"))


def test_the_report_shows_the_table_of_its_experiment():
    text = (RESULTS / f"{experiments.REPORTED}.html").read_text(encoding="utf-8")
    shown = re.sub(r"<[^>]+>", " ", text)
    for row in tables((RESULTS / f"{experiments.REPORTED}.md").read_text(encoding="utf-8"))[0]:
        assert all(cell.strip("*") in shown for cell in row), row[0]
    assert "/tmp/" not in text and "/home/" not in text


@pytest.mark.parametrize("name", COMPARISONS)
def test_results_were_made_with_the_flags_of_the_experiment(name):
    _, _, losses, *flags = experiments.experiments(Path("DATA"), Path("runs/made"))[name]
    flags = [flag.replace(experiments.minilm(), "MINILM") for flag in flags]
    found = COMPARISONS[name]
    assert list(found["losses"]) == losses.split(",")
    of_compare = {"--alpha", "--grid"}
    asked = [flag for at, flag in enumerate(flags) if not of_compare & set(flags[max(0, at - 1) : at + 1])]
    recorded = " ".join(found["flags"]).replace(" ".join(experiments.as_it_was(name)), "").split()
    assert [*asked, "--save_strategy", "no"] == recorded


@pytest.mark.parametrize("path", sorted((RESULTS / "reruns").glob("*.json")), ids=lambda path: path.stem)
def test_a_rerun_agrees_within_the_spread(path):
    first, again = COMPARISONS[path.stem]["tables"]["shared"], store.read(path)["tables"]["shared"]
    for metric in ("accuracy", "nll", "brier", "ece", "confidence_when_wrong", "feature_within", "feature_r2"):
        for loss, other in again[metric]["summary"].items():
            of = first[metric]["summary"][loss]
            if other["n"] > 1:
                reach = of["sd"] + other["sd"]
            else:  # the 95 % prediction interval of one more run
                reach = student.ppf(0.975, of["n"] - 1) * of["sd"] * (1 + 1 / of["n"]) ** 0.5
            assert abs(of["mean"] - other["mean"]) <= reach, (loss, metric)


def test_tables_hold_the_numbers_of_the_results():
    found = write_tables.texts()
    assert set(found) == set(RESULTS.glob("*.md"))
    for path, text in found.items():
        written = path.read_text(encoding="utf-8")
        assert cells(text) == cells(written) and numbers(text) == numbers(written), f"{path}: run write_tables.py"


@pytest.mark.parametrize(("name", "which"), [(name, which) for name in AT_ACCURACY for which in COMPARISONS[name]["tables"]])
def test_a_table_shows_means_and_deviations_of_the_values(name, which):
    found = COMPARISONS[name]
    metrics = found["tables"][which]
    table = tables((RESULTS / f"{name}.md").read_text(encoding="utf-8"))[list(found["tables"]).index(which)]
    for loss, (label, *row) in zip(found["losses"], table, strict=True):
        assert label.partition(" (")[0] == loss_label(loss)
        for metric, cell in zip(main_metrics(metrics), row, strict=True):
            of = metrics[metric]
            check(cell, of["values"][loss])
            assert cell.startswith("**") == (of["significant"] and of["best"] == loss), (loss, metric)


@pytest.mark.parametrize("name", COMPARISONS)
def test_what_is_best_follows_from_the_stored_values(name):
    for metrics in COMPARISONS[name]["tables"].values():
        for metric, of in metrics.items():
            values = {
                loss: {seed: np.nan if value is None else value for seed, value in seeds.items()}
                for loss, seeds in of["values"].items()
            }
            first = None if of["higher_is_better"] is None else best(values, of["higher_is_better"])
            assert of["significant"] == (first is not None and stands_out(first, differences(values, "t"))), metric
            assert of["best"] == first or not of["significant"], metric


@pytest.mark.parametrize("name", [name for name in AT_ACCURACY if RESULTS / f"{name}-beyond.json" in BEYOND])
def test_a_table_beyond_the_comparison_shows_its_values(name):
    path = RESULTS / f"{name}-beyond.json"
    values = store.read(path)["values"]
    (table,) = tables(path.with_suffix(".md").read_text(encoding="utf-8"))
    for (metric, of), (label, *row) in zip(values.items(), table, strict=True):
        assert label == labels.metric_label(metric)
        for loss, cell in zip(labels.LOSSES, row, strict=True):
            check(cell, of[loss])


def pairs_of_tables():
    """(summary, details) of each part of verdicts.md."""
    found = tables((RESULTS / "verdicts.md").read_text(encoding="utf-8"))
    return list(zip(found[::2], found[1::2], strict=True))


@pytest.mark.parametrize("file", overview.texts())
def test_an_overview_shows_the_values_of_its_comparisons(file):
    of_label = {label: metric for metric, label in labels.METRICS.items()}
    of_title, name, found = {title: name for name, title in experiments.TITLES.items()}, "", set()
    for title, label, *means, apart in (row for table in tables((RESULTS / file).read_text("utf-8")) for row in table):
        name = of_title.get(title, title) if title else name
        found.add(name)
        values = verdicts.measured(name)[of_label[label]]
        for loss, mean in zip(labels.LOSSES, means, strict=True):
            assert (mean == "–") == (loss not in values)
            assert mean == "–" or float(mean) == pytest.approx(np.mean(list(values[loss].values())), abs=5.001e-5)
        one = np.array([values["maxsup"][seed] - values["label_smoothing"][seed] for seed in values["maxsup"]])
        half = student.ppf(0.975, len(one) - 1) * one.std(ddof=1) / len(one) ** 0.5
        shown = [float(x) for x in re.findall(r"[-+]\d+\.\d+", apart)]
        assert shown == pytest.approx([one.mean(), one.mean() - half, one.mean() + half], abs=5.001e-5)
    of_file = AT_ACCURACY if file == "overview.md" else COMPARISONS.keys() - experiments.TITLES.keys()
    assert found == set(of_file)


def test_verdicts_follow_from_the_values():
    parts = pairs_of_tables()
    summary, details = ([row for pair in parts for row in pair[i]] for i in range(2))
    names = {labels.metric_label(metric): metric for _, _, metric, _, _ in verdicts.CLAIMS}
    of_label = {loss_label(loss): loss for claim in verdicts.CLAIMS for loss in claim[:2]}
    for _, data, compared, difference, said in details:
        metric, one, other = re.fullmatch(r"(.+): (.+) − (.+)", compared).groups()
        values, one, other = verdicts.measured(data)[names[metric]], of_label[one], of_label[other]
        found = {seed: values[one][seed] - values[other][seed] for seed in values[one]}
        check(difference, found)
        t, p = ttest_1samp(list(found.values()), 0)
        assert (said == "undecided") == (abs(t) <= 2 or p >= 0.05)
    said = [row[-1] for row in details]
    assert {row[1] for row in details} == {name for name in COMPARISONS if "accuracy" in verdicts.measured(name)}
    for column, name in enumerate(verdicts.VERDICTS, 1):
        assert sum(len(row[column].split(", ")) for row in summary if row[column]) == said.count(name) > 0


@pytest.mark.parametrize("metric", gap.SHOWN)
def test_the_figure_has_a_point_for_each_comparison(metric):
    points = gap.points(metric)
    names = {path.stem.removesuffix("-beyond") for path in BEYOND}
    assert set(points) == {name for name in names if "train_accuracy" in verdicts.measured(name)}
    assert all(0 <= error < 1 and spread >= 0 for error, _, spread in points.values())
    assert set(points) <= (gap.TITLES | gap.SHORT_RUNS).keys(), "a comparison is named in words"


# ---- what the documentation quotes ----

PAGES = [path for path in (FOLDER.parent / "README.md", *(FOLDER.parent / "docs").rglob("*.md")) if path.exists()]


@cache
def measured_pairs(digits):
    """(mean, standard deviation) of all metrics, and of all differences behind the verdicts."""
    summaries = [
        summary
        for of in COMPARISONS.values()
        for metrics in of["tables"].values()
        for metric in metrics.values()
        for summary in metric["summary"].values()
    ]
    found = {(f"{s['mean']:.{digits}f}", f"{s['sd']:.{digits}f}") for s in summaries if None not in s.values()}
    return found | set(PAIR.findall(verdicts.text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_quoted_means_and_deviations_were_measured(page):
    quoted = [(mean.replace("−", "-"), sd) for mean, sd in PAIR.findall(page.read_text(encoding="utf-8"))]
    assert quoted or page.stem != "short_runs"
    for mean, sd in quoted:
        assert (mean, sd) in measured_pairs(len(sd.rpartition(".")[2])), f"{mean} ± {sd}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_row_of_results_is_that_of_its_table(page):
    rows = {line for line in page.read_text(encoding="utf-8").splitlines() if re.match(r"\|.*(±| \[[-+])", line)}
    written = [*write_tables.texts().values(), *(markdown(of) for of in COMPARISONS.values())]
    assert rows <= {line for text in written for line in text.splitlines()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_paragraph_quotes_the_tables_that_it_links_to(page):
    for paragraph in page.read_text(encoding="utf-8").split("\n\n"):
        linked = re.findall(r"results/([\w-]+\.md)", paragraph)
        if paragraph.startswith("|") or not linked:
            continue
        known = " ".join((RESULTS / name).read_text(encoding="utf-8") for name in [*linked, "verdicts.md"])
        quoted = [number.lstrip("-+−") for number in numbers(paragraph) if re.search(r"\.\d{4}$", number)]
        assert all(number in known for number in quoted), linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_quoted_times_are_those_of_the_bench(page):
    found = {speed.shape(of): of for of in store.read(RESULTS / "bench_cpu.json")["results"]}
    for shapes, time, memory in re.findall(r"^(\|.*\d×\d.*)\n\|[-:| ]+\n(.*)\n(.*)$", page.read_text(), flags=re.MULTILINE):
        of = [found[shape] for shape in re.findall(r"\d+×\d+", shapes)]
        times = [f"{x['ratios']['loss']['label smoothing']:.2f}" for x in of]
        assert time[2:-2].split(" | ")[1:] == times
        assert memory[2:-2].split(" | ")[1:] == [f"{x['peak_memory_over_logits']['loss']:.2f}" for x in of]


def test_maxsup_is_calibrated_best_on_the_longer_tail():
    """As docs/explanation/short_runs.md says."""
    tail = COMPARISONS["longtail100"]["tables"]["shared"]
    assert all(tail[metric]["best"] == "maxsup" and tail[metric]["significant"] for metric in ("ece", "nll", "brier"))


# ---- the scripts ----


@pytest.mark.parametrize(
    ("differences", "sign", "said"),
    [
        ([0.01, 0.011, 0.012], 1, "holds"),
        ([0.01, 0.011, 0.012], -1, "contradicted"),
        ([0.01, -0.011, 0.012], 1, "undecided"),
        ([0.01, 0.03, 0.08], 1, "undecided"),  # beyond two standard errors, but p = 0.19
        ([0.01, 0.01, 0.01], 1, "undecided"),  # no spread to judge by
    ],
)
def test_a_verdict_needs_more_than_the_spread(differences, sign, said):
    assert verdicts.verdict(differences, sign) == said


def test_trimmed_results_keep_what_their_table_shows(tmp_path):
    values = {"a": {0: 0.123456789012, 1: 0.5, 2: None}, "b": {0: 1e-12, 1: 0.25, 2: 1234567.891}}
    metric = {"values": values, "summary": {"a": {"mean": 1 / 3}}, "best": "b", "significant": False, "differences": [1, 2]}
    run = {"loss": "a", "seed": 0, "state": "finished", "rows": {"test": 9}, "model": "net", "history": [1], "metrics": {}}
    full = {
        "losses": {"a": {}, "b": {}},
        "runs": [{"name": "1", **run}, {"name": "2", **run}],
        "tables": {"shared": {"m": metric}},
    }
    store.write(tmp_path / "x.json", store.trim(full))
    found = store.read(tmp_path / "x.json")
    assert found["tables"]["shared"]["m"]["values"] == {
        "a": {"0": 0.12345679, "1": 0.5, "2": None},
        "b": {"0": 1e-12, "1": 0.25, "2": 1234567.9},
    }
    assert "differences" not in found["tables"]["shared"]["m"] and found["setup"] == {"model": "net"}
    assert set(found["runs"][0]) == {"name", "loss", "seed", "state", "rows"}
    lines = (tmp_path / "x.json").read_text().splitlines()
    assert sum('"name":"' in line for line in lines) == 2, "one line for each run"


def test_results_of_a_grid_keep_a_few_metrics_of_each_run():
    run = {"name": "1", "loss": "a", "state": "finished", "metrics": {"eval": {"accuracy": 0.5, "mce": 0.1}}}
    kept = store.trim({"grid": {"alpha": [0.1, 0.2]}, "runs": [run]})
    assert kept["runs"][0]["metrics"] == {"eval": {"accuracy": 0.5}}


def test_a_search_is_judged_at_the_alpha_that_each_loss_chose():
    for name, found in COMPARISONS.items():
        which = "chosen" if found["grid"] else "shared"
        assert verdicts.measured(name)["loss"] == found["tables"][which]["loss"]["values"]


def call(script, monkeypatch, *words, env=None):
    """Run a script in this process, and its commands in processes that begin with everything imported."""
    monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=partial(warm.run_instead, env=env)))
    monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, words)])
    script.main()


def test_an_experiment_and_its_measurements_beyond_the_table(tmp_path, monkeypatch):
    words = ["noise20", "--data", tmp_path, "--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    fewer = ["--losses", "label_smoothing,maxsup", "--seeds", "0", "--max_steps", "2", "--max_train_samples", "60"]
    call(experiments, monkeypatch, *words, *fewer)
    run = warm.run(FOLDER / "beyond.py", *words, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    text = (tmp_path / "results" / "noise20.json").read_text()
    assert str(tmp_path) not in text and "runs/made/noise20/train.parquet" in text
    table = (tmp_path / "runs" / "noise20" / "table.md").read_text()
    assert markdown(json.loads(text)) == table, "trimming must not change the table"
    values = json.loads((tmp_path / "results" / "noise20-beyond.json").read_text())["values"]
    assert {loss: list(of) for loss, of in values["train_feature_r2"].items()} == {"label_smoothing": ["0"], "maxsup": ["0"]}


def test_noise_is_a_share_of_the_labels():
    (clean, _), (noisy, test), (noisier, _) = (derived.noisy_digits(share) for share in (0, 0.2, 0.4))
    few, many = (np.flatnonzero(np.array(of["label"]) != np.array(clean["label"])) for of in (noisy, noisier))
    assert set(few) < set(many) and len(few) == pytest.approx(0.18 * len(clean), rel=0.2)  # a tenth is drawn as it was
    assert len(clean) + len(test) == 1797


@pytest.mark.parametrize("name", [path.parent.name for path in sorted(FOLDER.glob("*/run.json"))])
def test_a_card_shows_what_was_measured(name, tmp_path):
    folder = shutil.copytree(FOLDER / name, tmp_path / name)
    card, results = (folder / "README.md").read_text(), store.read(folder / "all_results.json")
    for of in yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]:
        prefixes = ["test_"] if of["dataset"]["split"] == "test" else ["eval_", ""]
        for metric in of["metrics"]:
            assert metric["value"] == next(results[p + metric["type"]] for p in prefixes if p + metric["type"] in results)
    write_card(str(folder))
    again = (folder / "README.md").read_text()
    assert numbers(again) == numbers(card) and cells(again) == cells(card), f"run `maxsup-hf card` on {name}"
    (row,) = [row for table in tables((FOLDER / "README.md").read_text()) for row in table if f"({name})" in row[0]]
    assert [row] == [line[2:-2].split(" | ") for line in publish.row(name, folder).splitlines()]


def test_a_model_is_published_by_one_command(hub, hub_environment, tmp_path, monkeypatch):  # noqa: F811
    flags = ["--max_steps", "2", "--max_train_samples", "60", "--max_eval_samples", "30", "--push", "me/digits"]
    monkeypatch.chdir(tmp_path)
    words = ["digits-maxsup", "--runs", "runs", "--cards", tmp_path / "cards", *flags]
    call(publish, monkeypatch, *words, env=hub_environment)
    card = tmp_path / "cards" / "digits-maxsup"
    figures = {path.name for path in (card / "figures").glob("*.png")}
    assert {"reliability.png", "within_class.png", "confidence.png"} <= figures
    text = (card / "README.md").read_text()
    assert str(tmp_path) not in text + (card / "run.json").read_text() and "--output_dir runs/digits-maxsup" in text
    assert all(f"(figures/{name})" in text for name in figures) and "| R² |" in text
    assert {"README.md", "model.safetensors", "figures/reliability.png"} <= set(hub.repos["me/digits"].files("main"))
    assert set(publish.models(Path())) >= {"digits-maxsup"}


def test_the_card_of_a_model_with_code_of_its_own(tmp_path):
    derived.write_network("resnet20", tmp_path / "network")
    digits()[0]["image"].save(tmp_path / "digit.png")
    few = ["--max_steps", "1", "--max_train_samples", "60", "--max_eval_samples", "30", "--trust_remote_code", "true"]
    words = ["image-classification", "--config_name", "network", "--output_dir", "out", *few]
    trained = warm.run("maxsup-hf", "train", *words, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr[-3000:]
    (tmp_path / "rows.csv").write_text("image_path,label\ndigit.png,0\n")
    predicted = warm.run("maxsup-hf", "predict", "out", "--test_file", "rows.csv", "--trust_remote_code", cwd=tmp_path)
    assert predicted.returncode == 0 and "wrote 1 prediction" in predicted.stdout, predicted.stderr[-3000:]
    card = ["maxsup-hf", "card", "out", "--example", "digit.png"]
    refused = warm.run(*card, cwd=tmp_path)
    assert refused.returncode == 2 and "allow it by --trust_remote_code" in refused.stderr
    shown = warm.run(*card, "--trust_remote_code", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr[-3000:]
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    answered = warm.run("-c", code, cwd=tmp_path)
    assert answered.stdout.splitlines() == re.findall("^# (.*)$", code, re.MULTILINE), answered.stderr[-3000:]
