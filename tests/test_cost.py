"""The expected memory and hours of experiments."""

from __future__ import annotations

import pytest

from benchmarks import comparison, cost, markdown, memory, parts
from tests import tiny

BENCHMARKS = parts.ROOT / "docs" / "BENCHMARKS.md"


def step(peak: float, flops: float) -> dict:
    return {"peak": peak, "flops": flops}


def test_lines_through_both_batches():
    assert [cost.at_batch(3.0, 10.0, batch) for batch in (1, 8, 128)] == [3, 10, 130]


def test_hours():
    """A third of 100 TFLOP/s, for two hours."""
    flops = 100e12 / 3 * 2 * 3600
    assert cost.hours(flops, cost.Device("", 100e12), 1 / 3) == pytest.approx(2)


@pytest.mark.parametrize(
    ("gigabytes", "batch", "devices"),
    [(0.5, 128, 1), (1, 128, 2), (10, 128, 32), (40, 6, 6), (70, 6, None)],
)
def test_devices_needed(gigabytes, batch, devices):
    """The state takes 12 GB, an image the given number; the batch is split evenly."""
    small, large = (step((12 + n * gigabytes) * 1e9, 0) for n in (1, 8))
    assert cost.devices_needed(small, large, batch) == devices


def test_row():
    config = tiny.config(**{"training.batch_size": 16, "training.n_iters": 10})
    samples = {"forward": 1e9, "nfe": 20}
    row = cost.expected(config, step(2e9, 3e9), step(9e9, 24e9), samples, 0.5)
    assert (row["steps"], row["batch"], row["devices"]) == (10, 16, 1)
    assert row["memory"] == pytest.approx(17e9)
    assert row["flops"] == pytest.approx(10 * 48e9)
    assert row["A100, TF32"] == pytest.approx(480e9 / 78e12 / 3600)
    assert row["sampling"] == pytest.approx(config.eval.num_samples * 20e9 / 247.5e12 / 3600)


@pytest.mark.parametrize(
    ("path", "evaluations"),
    [
        ("configs/ve/cifar10_ncsnpp_continuous.py", 2000),  # Each step has a correction.
        ("configs/vp/ddpm/cifar10.py", 1000),
        ("configs/ve/ncsn/cifar10.py", 1000),  # 10 levels with 100 Langevin steps, no predictor
    ],
)
def test_evaluations(path, evaluations):
    assert cost.evaluations(comparison.load_config(path)) == evaluations


def test_the_page_agrees_with_the_memory_table():
    """Its configs are listed; FLOPs are those of BENCHMARKS.md, whose last digits are rounded."""
    memory_section = BENCHMARKS.read_text().partition("### Memory")[2]
    counted = {
        row["config"]: float(row["GFLOP"]) for row in markdown.read_table(memory_section, "config")
    }
    rows = {row["config"]: row for row in markdown.read_table(cost.PAGE.read_text(), "config")}
    configs = {comparison.config_name(path) for path in memory.all_configs()}
    assert counted.keys() <= rows.keys() <= configs
    for name, row in rows.items():
        if counted.get(name, 0) > 20:
            images = int(row["steps"].replace(",", "")) * int(row["batch"])
            total = float(row["training, EFLOP"].replace(",", "")) * 1e18
            assert total == pytest.approx(images * counted[name] * 1e9, rel=0.04), name


def test_rows_of_other_configs_stay():
    """Unless they were computed in another way; the order is that of the names."""

    def written(text: str, utilisation: float, **steps: int) -> str:
        found = [{"name": name, "steps": count} for name, count in steps.items()]
        return cost.page(text, found, utilisation)

    def steps(text: str) -> dict[str, str]:
        return {row["config"]: row["steps"] for row in markdown.read_table(text, "config")}

    first = written("# A page", 0.3, b=1, c=2)
    assert list(steps(written(first, 0.3, a=3, c=4)).items()) == [
        ("a", "3"),
        ("b", "1"),
        ("c", "4"),
    ]
    assert steps(written(first, 0.4, a=3)) == {"a": "3"}


def test_configs_with_the_same_network_share_its_count(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(cost.sampling, "forward_flops", lambda *_: calls.append(1) or 5.0)
    monkeypatch.setattr(cost, "Experiment", lambda *_: None)
    paths = [f"configs/{sde}/digits_ddpmpp_continuous.py" for sde in ("vp", "subvp")]
    paths.append("configs/ve/digits_ncsnpp_continuous.py")
    for _ in range(2):  # The second time from the file.
        found = cost.count_samples(parts.Records(tmp_path / "results.jsonl"), paths)
    assert len(calls) == 2
    assert [found[path]["forward"] for path in paths] == [5.0] * 3
    assert found[paths[0]]["nfe"] == 250
