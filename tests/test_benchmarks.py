"""The benchmarks: the naive program is an oracle of ours, costs are those of the process, commands and tables work."""

import importlib
import itertools
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from app.__main__ import main
from app.body import body_box
from app.options import WEIGHTS
from app.weights import load_weights
from benchmarks import cold_case, memory, naive, network, plot, process, scaling, scan
from benchmarks.machine import cpu_flags, dtypes, result_path
from evaluation.tables.__main__ import make
from tests.scans import mask_array, save_ct, smooth_hu
from tests.test_tables import cells as table_cells


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small CT to take slices from."""
    return save_ct(tmp_path_factory.mktemp("source") / "ct.nii.gz", smooth_hu((3, 64, 64)))


# The naive program


def test_naive_program_and_ours_agree_on_real_slices(tmp_path):
    """Another reader, another orientation code, float32, no folding, another region filter, another writer."""
    whole = nib.as_closest_canonical(nib.load(scan.EXAMPLE)).slicer[:, :, 20:24]
    rows, columns = body_box(np.asarray(whole.dataobj).T.astype(np.int16), load_weights(WEIGHTS).frame_px)
    body = whole.slicer[columns, rows]  # the naive program does not look for it
    turned = body.as_reoriented([[1, 1], [0, -1], [2, -1]])  # axes swapped, two flipped
    ct = tmp_path / "scan_0000.nii.gz"
    nib.save(turned, ct)
    naive.segment_file(ct, tmp_path / "naive.nii.gz", WEIGHTS)
    assert main(["--inputs", str(ct), "--outputs", str(tmp_path / "ours"), "--device", "cpu", "--quiet"]) == 0
    paths = tmp_path / "ours" / "scan.nii.gz", tmp_path / "naive.nii.gz"
    np.testing.assert_allclose(*(nib.load(path).affine for path in paths), atol=1e-4)
    ours, oracle = map(mask_array, paths)
    assert (ours == oracle).mean() >= 0.998  # int8 moves an edge here and there
    assert (ours == oracle)[oracle > 0].mean() >= 0.99  # air agrees in any case
    assert len(np.unique(oracle)) > 5


# The scan


def test_mirrored_indices():
    assert scan.mirrored(0, 8, 3).tolist() == [0, 1, 2, 2, 1, 0, 0, 1]
    assert scan.mirrored(-2, 7, 3).tolist() == [1, 0, 0, 1, 2, 2, 1]
    assert scan.mirrored(1, 2, 4).tolist() == [1, 2]


@pytest.mark.parametrize("shape", [(7, 64, 64), (2, 32, 32), (3, 96, 80)])
def test_scan_is_made_of_the_sources_slices(tmp_path, source, shape):
    path = tmp_path / "made.nii.gz"
    scan.make_scan(path, shape, source, level=1)
    made, original = nib.load(path), np.asarray(nib.load(source).dataobj).T
    assert made.get_data_dtype() == np.int16
    np.testing.assert_array_equal(made.affine, nib.load(source).affine)
    pads = [(max(0, (want - have) // 2),) * 2 for want, have in zip(shape[1:], (64, 64), strict=True)]
    cuts = [slice((have - want) // 2, (have + want) // 2) if want < have else slice(None)
            for want, have in zip(shape[1:], (64, 64), strict=True)]  # fmt: skip
    expected = np.pad(original[(slice(None), *cuts)], [(0, 6), *pads], "symmetric")[: shape[0]]
    np.testing.assert_array_equal(np.asarray(made.dataobj).T, expected)


def test_thinner_slices_of_as_long_a_body(tmp_path, source):
    path = tmp_path / "made.nii.gz"
    scan.make_scan(path, (10, 64, 64), source, level=1, slice_mm=2.0)  # the source's are 5 mm
    made, original = nib.load(path), nib.load(source)
    for affine in (made.get_qform(), made.get_sform()):
        np.testing.assert_allclose(affine, original.affine @ np.diag([1, 1, 2 / 5, 1]), rtol=1e-6)
    z = [0, 0, 0, 1, 1, 2, 2, 2, 2, 2]  # where slices begin: at 0, 2, 4, 6 mm, and so on, back again from 15 mm
    np.testing.assert_array_equal(np.asarray(made.dataobj).T, np.asarray(original.dataobj).T[z])


def test_scan_of_another_type_is_refused(tmp_path):
    path = tmp_path / "float.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)), path)
    with pytest.raises(ValueError, match="int16"):
        scan.make_scan(tmp_path / "made.nii.gz", (2, 2, 2), path)


# What a process costs


def test_cost_is_that_of_the_process_alone():
    ballast = np.ones(400 << 17)  # 400 MiB of ours
    work = "import time; x = b'1' * (200 << 20); end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    code = f"{work}\ntime.sleep(0.3); print(*open('/proc/self/status'))"
    cost, printed = process.measured([sys.executable, "-c", code], 1)
    (peak_kib,) = (int(line.split()[1]) for line in printed.splitlines() if "VmHWM" in line)
    assert 200 < cost.peak_rss_mib < 300 and ballast[-1]
    assert cost.peak_rss_mib == pytest.approx(peak_kib / 1024, rel=0.01)
    assert 0.3 <= cost.cpu_s < 0.3 + 1
    assert cost.wall_s >= 0.6


def test_process_gets_as_many_cpus_as_threads():
    ask = "import os; print(len(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])"
    before = process.os.sched_getaffinity(0)
    assert process.measured([sys.executable, "-c", ask], 1)[1] == "1 1"
    assert process.os.sched_getaffinity(0) == before
    with pytest.raises(ValueError, match="CPUs"):
        process.measured(["true"], len(before) + 1)


def test_failure_of_a_process_is_told():
    with pytest.raises(process.CommandFailed, match=r"status 3: last words"):
        process.measured(["sh", "-c", "echo last words >&2; exit 3"], 1)


def test_cpu_flags(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("model name\t: X\nflags\t\t: fpu amx_bf16 avx2 amx_bf16_of_another\n")
    assert cpu_flags(file) == ["avx2", "amx_bf16"]
    assert cpu_flags(tmp_path / "absent") == []


# The commands, small, and their tables


@pytest.fixture(scope="module")
def cold_result(tmp_path_factory, source, weights_path):
    """What the command writes of one run of each program."""
    output = tmp_path_factory.mktemp("results") / "benchmark_cold_case.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold_case, "IDLE_S", 0.2)
        options = ["--threads", "1", "--runs", "1", "--slices", "5", "--size", "64", "--source", str(source)]
        cold_case.main([*options, "--weights", str(weights_path), "-o", str(output)])
    return output


def test_cold_case(cold_result):
    result = json.loads(cold_result.read_text())
    (ours,), (naive,) = result["ours"], result["naive"]
    for run in (ours, naive):
        stages = run["seconds"]
        assert {"start-up", "read", "preprocess", "segment", "postprocess", "write"} <= set(stages)
        assert sum(stages.values()) - stages["read"] < run["wall_s"]
        assert run["organizers"]["seconds"] == run["wall_s"]
    assert result["naive_over_ours"]["wall_s"]["median"] == pytest.approx(naive["wall_s"] / ours["wall_s"])
    assert 0 <= result["differing_share"]["naive"] < 0.15  # random weights: many a pixel is undecided
    assert 0 <= result["differing_share"]["ours_float32"] < 0.15  # in int8: batch norm knows nothing of random weights
    assert result["shape_zyx"] == [5, 64, 64] and result["threads"] == 1
    profile = result["profile"]
    stages = {stage for sample in profile["samples"] for stage in sample["stage"].split("+")}
    assert "start-up" in stages
    times = [sample["time_s"] for sample in profile["samples"]]
    assert times == sorted(times)
    assert profile["before_monitor_s"] + times[-1] + profile["after_monitor_s"] == pytest.approx(
        profile["wall_s"], abs=0.05
    )
    assert next(iter(profile["import_s"])) == "torch"


def test_cold_case_tables(cold_result):
    result = json.loads(cold_result.read_text())
    table = table_cells(make("benchmark_cold_case", cold_result.parent))
    assert table["64x64x5, 1 CPU"] == ["ours", "naive", "naive / ours"]
    assert float(table["from start to mask"][0].split()[0]) == pytest.approx(result["ours"][0]["wall_s"], rel=0.01)
    assert float(table["from start to mask"][1].split()[0]) == pytest.approx(result["naive"][0]["wall_s"], rel=0.01)
    stages = table_cells(make("benchmark_cold_case.stages", cold_result.parent))
    assert stages["segment"] == [f"{result[who][0]['seconds']['segment']:.2f}" for who in ("ours", "naive")]
    figures = table_cells(make("benchmark_cold_case.organizers", cold_result.parent))
    assert figures["Time, s"][-1] == "20.3" and figures["GPU_Mem, MiB"] == ["", "", "", "", "1,917"]
    timeline = make("benchmark_cold_case.timeline", cold_result.parent).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in timeline if line[:3] != "| -"]
    rows = [row for row in rows if len(row) == 5][1:]
    assert rows[0][0] == "0.0" and float(rows[-1][1]) == pytest.approx(result["profile"]["wall_s"], abs=0.06)
    for before, after in itertools.pairwise(rows):
        assert before[1] == after[0]  # no time is left out


def test_tables_of_a_gpu_without_the_naive_program(tmp_path, cold_result):
    result = json.loads(cold_result.read_text())
    assert "on the card" not in make("benchmark_cold_case", cold_result.parent)
    del result["differing_share"]["naive"]
    result["ours"][0]["torch_reserved_mib"] = 321.0
    result["ours"][0]["organizers"]["gpu_mib"] = 987.0
    (tmp_path / "benchmark_cold_case_cuda.json").write_text(json.dumps({**result, "naive": [], "naive_over_ours": {}}))
    for part in ("", ".stages", ".timeline", ".organizers"):
        assert "|" in make(f"benchmark_cold_case_cuda{part}", tmp_path)
    assert "321 MiB" in make("benchmark_cold_case_cuda", tmp_path)
    assert "| 987 |" in make("benchmark_cold_case_cuda.organizers", tmp_path)


def test_ratio_is_run_by_run():
    runs = [{"wall_s": value} for value in (10.0, 40.0, 60.0)], [{"wall_s": value} for value in (5.0, 10.0, 20.0)]
    assert cold_case.ratio(*runs, "wall_s") == {"median": 3.0, "min": 2.0, "max": 4.0}


def test_network(tmp_path, weights_path, monkeypatch):
    output = tmp_path / "benchmark_network.json"
    options = ["--threads", "1", "--batches", "1", "2", "--size", "64", "--min-time-s", "0.01", "--matrix", "100"]
    options += ["--weights", str(weights_path), "-o", str(output)]
    network.main(options)
    assert all(measured["slices_per_s"] > 0 for measured in json.loads(output.read_text())["measurements"])
    monkeypatch.setattr(network, "seconds", lambda *_: 0.5)
    network.main(options)
    result = json.loads(output.read_text())
    rows = sum(1 if dtype == torch.int8 else 5 for dtype in dtypes("cpu"))
    assert len(result["measurements"]) == rows * 2
    assert [measured["slices_per_s"] for measured in result["measurements"][:2]] == [2, 4]
    assert result["matmul_tflops"]["float32"] == pytest.approx(2 * 100**3 / 0.5 / 1e12)
    tflops = 2 * result["slice_gflop"] / 1000
    assert result["measurements"][0]["peak_share"] == pytest.approx(tflops / result["matmul_tflops"]["float32"])
    table = table_cells(make("benchmark_network", tmp_path))
    assert table["slices a second"] == ["1 a pass", "2 a pass"]
    assert len(table) == 2 + rows
    assert [cell.split()[0] for cell in table["float32, as trained, NCHW"]] == ["2", "4"]


def test_slice_flops():
    assert network.slice_gflop(512) == pytest.approx(40.56, abs=0.01)  # twice the multiply-adds of its convolutions
    assert network.slice_gflop(256) == pytest.approx(40.56 / 4, abs=0.01)


def test_scaling(tmp_path, source, weights_path):
    output = tmp_path / "benchmark_scaling.json"
    options = ["--threads", "1", "--slices", "2", "6", "--sizes", "64", "32", "--source", str(source)]
    options += ["--slice-mm", "1", "--length-mm", "10"]
    scaling.main([*options, "--weights", str(weights_path), "-o", str(output)])
    result = json.loads(output.read_text())
    assert [point["shape_zyx"] for point in result["by_slices"]] == [[2, 64, 64], [6, 64, 64]]
    assert [point["shape_zyx"] for point in result["by_size"]] == [[2, 32, 32]]
    thin = [(point["shape_zyx"], point["slice_mm"], point["slices_per_slab"]) for point in result["by_thickness"]]
    assert thin == [([10, 64, 64], 1, 3)]
    point = result["by_slices"][1]
    assert point["volumes_mib"] == pytest.approx(6 * 64 * 64 * 3 / 2**20)
    assert point["rest_mib"] == pytest.approx(point["peak_rss_mib"] - point["volumes_mib"])
    table = table_cells(make("benchmark_scaling", tmp_path))
    assert list(table)[2:] == ["64x64x2", "64x64x6", "32x32x2", "64x64x10 of 1 mm"]
    assert float(table["64x64x6"][0]) == pytest.approx(point["wall_s"], rel=0.01)
    assert len(table["64x64x6"]) == 4  # no card
    for point in (*result["by_slices"], *result["by_size"], *result["by_thickness"]):
        point["peak_gpu_mib"] = 654.0
    (tmp_path / "benchmark_scaling_cuda.json").write_text(json.dumps(result))
    assert table_cells(make("benchmark_scaling_cuda", tmp_path))["64x64x6"][-1] == "654"
    plot.main([str(output), "-o", str(tmp_path / "scaling.svg")])
    assert "slices of 64x64" in (tmp_path / "scaling.svg").read_text()


def test_line_through_seconds():
    points = [{"shape_zyx": [n, 1, 1], "wall_s": 2 + 0.5 * n} for n in (2, 4, 8)]
    line = scaling.line(points)
    assert line["start_s"] == pytest.approx(2) and line["per_slice_s"] == pytest.approx(0.5)
    assert line["r_squared"] == pytest.approx(1) and line["largest_deviation"] == pytest.approx(0, abs=1e-12)
    points = [{"shape_zyx": [n, 1, 1], "wall_s": s} for n, s in ((0, 10), (1, 13), (2, 10))]  # the line: 11
    assert scaling.line(points)["largest_deviation"] == pytest.approx(2 / 13)


def test_plot_of_this_repository_is_up_to_date(tmp_path):
    result = result_path("scaling", "cpu")
    if not result.exists():
        pytest.skip("no result file yet")
    plot.main([str(result), "-o", str(tmp_path / "scaling.svg")])
    assert (tmp_path / "scaling.svg").read_text() == plot.OUTPUT.read_text()


class Runs:
    """Stands in for subprocess.run: each command takes a minute of a clock of its own."""

    def __init__(self, monkeypatch, failing=()):
        self.module = importlib.import_module("benchmarks.__main__")
        self.commands, self.now_s, self.failing = [], 0.0, failing
        monkeypatch.setattr(self.module.subprocess, "run", self)
        monkeypatch.setattr(self.module.time, "monotonic", lambda: self.now_s)

    def __call__(self, command, cwd, timeout):
        if timeout is not None and timeout < 60:
            self.now_s += timeout
            raise subprocess.TimeoutExpired(command, timeout)
        self.now_s += 60
        self.commands.append(command[2:])
        return subprocess.CompletedProcess(command, int(command[2] in self.failing))

    @property
    def names(self):
        return [command[0] for command in self.commands]


def test_all_in_one_go(monkeypatch, capsys):
    runs = Runs(monkeypatch, failing=["benchmarks.network"])
    assert runs.module.main(["--device", "cuda"]) == 1
    assert runs.names == [f"benchmarks.{name}" for name in ("memory", "cold_case", "network")] + [
        "pytest", "benchmarks.scaling",
    ]  # fmt: skip
    assert runs.commands[1] == ["benchmarks.cold_case", "--device", "cuda", "--threads", "2"]
    assert capsys.readouterr().err == "network: exit status 1\n"
    on_cpu = Runs(monkeypatch)
    assert on_cpu.module.main([]) == 0
    assert on_cpu.names == ["benchmarks.cold_case", "benchmarks.network", "benchmarks.scaling"]
    with pytest.raises(SystemExit):  # toys in place of the results
        on_cpu.module.main(["--minutes", "3"])
    assert "give it --results" in capsys.readouterr().err


def test_a_short_visit_names_what_it_did_not_reach(monkeypatch, capsys, tmp_path):
    runs = Runs(monkeypatch)
    assert runs.module.main(["--device", "cuda", "--minutes", "2.5", "--results", str(tmp_path)]) == 1
    assert runs.names == ["benchmarks.memory", "benchmarks.cold_case"]
    assert str(tmp_path / "benchmark_cold_case_cuda.json") in runs.commands[1] and "--runs" in runs.commands[1]
    assert capsys.readouterr().err == "network: out of time\ngpu_tests: not reached\nscaling: not reached\n"


def test_memory_of_a_step_against_a_card_that_is_made_up(tmp_path, monkeypatch, weights_path):
    """A context of 500 MiB; a network of 40 MiB; 100 bytes a pixel of a step, of which torch keeps twice as much."""
    held = {"now": 40 * memory.MIB, "most": 0, "kept": 0}

    def segment(network, hu, statistics_hu, slices_per_step, frame_px):
        held["most"] = held["now"] + 100 * slices_per_step * frame_px**2
        held["kept"] = 2 * held["most"]

    monkeypatch.setattr(memory, "segment", segment)
    cards = iter([300, 300 + 500 + 40])
    meters = memory.Meters(
        lambda: next(cards), lambda: held["kept"], lambda: held["most"],
        lambda: held.update(most=held["now"]), lambda: held.update(kept=held["now"]),
    )  # fmt: skip
    result = memory.measure(weights_path, torch.device("cpu"), meters, [1, 8], 64)
    assert result["context_mib"] == 500
    assert [row["bytes_per_px"] for row in result["steps"]] == [100, 100]
    result["allowed"] = {"context_mib": 700, "step_bytes_per_px": 160}
    result |= {"processor": "CPU", "device": "Card", "flags": [], "torch": "2"}
    (tmp_path / "benchmark_memory_cuda.json").write_text(json.dumps(result))
    table = table_cells(make("benchmark_memory_cuda", tmp_path))
    assert table["context, MiB"] == ["500", "700"] and table["8 slices a step, bytes a pixel"] == ["100", "160"]


@pytest.mark.parametrize(
    ("name", "options", "flag"),
    [
        ("cold_case", ["--runs", "0"], "--runs: invalid positive int value: '0'"),
        ("cold_case", ["--slices", "-1"], "--slices: invalid positive int value: '-1'"),
        ("network", ["--batches", "1", "0"], "--batches: invalid positive int value: '0'"),
        ("network", ["--min-time-s", "nan"], "--min-time-s: invalid positive float value: 'nan'"),
        ("memory", ["--steps", "1.5"], "--steps: invalid positive int value: '1.5'"),
        ("scaling", ["--sizes", "0"], "--sizes: invalid positive int value: '0'"),
        ("scaling", ["--slice-mm", "0"], "--slice-mm: invalid positive float value: '0'"),
        ("scaling", ["--threads", "0"], "--threads: invalid positive int value: '0'"),
        ("__main__", ["--threads", "two"], "--threads: invalid positive int value: 'two'"),
        ("__main__", ["--minutes", "0"], "--minutes: invalid positive float value: '0'"),
    ],
)
def test_nothing_cannot_be_measured(capsys, name, options, flag):
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"benchmarks.{name}").main(options)
    assert caught.value.code == 2 and capsys.readouterr().err.splitlines()[-1].endswith(f"argument {flag}")
