"""Devices: of the table, of a site, and unknown ones."""

from pathlib import Path

import pytest

from toolkit.errors import ConfigError
from toolkit.plan.hardware import find_hardware, read_hardware


def test_an_unknown_gpu_is_refused_with_the_known_ones_and_how_to_add_it() -> None:
    with pytest.raises(ConfigError) as caught:
        find_hardware("tpu_v5")
    text = str(caught.value)
    assert "tpu_v5" in text
    assert all(name in text for name in ("v100", "a100", "h100", "b200", "mi300x"))
    assert "hardware.yaml" in text


def test_a_site_describes_its_own(tmp_path: Path) -> None:
    path = tmp_path / "hardware.yaml"
    path.write_text(
        "l40s: {based_on: a100, bf16_tflops: 362, memory_gib: 44.5, memory_tb_per_s: 0.86, link_gb_per_s: 32}\n"
        "h100: {based_on: h100, network: efa}\n"
        "x1: {based_on: h100, network_gb_per_s: 100, gather_gb_per_s: {2: 60, 16: 30}}\n"
    )
    site = read_hardware(path)
    l40s = find_hardware("nvidia_l40s", site=site)
    assert (l40s.peak_bf16_flops, l40s.gpus_per_node) == (362e12, 8)
    assert find_hardware("h100", site=site).network.name == "3200 Gbit/s EFA"
    assert find_hardware("x1", site=site).network.gather_points == ((2, 60e9), (16, 30e9))
    assert read_hardware(tmp_path / "none.yaml") == {}


def test_what_is_wrong_in_a_sites_file_is_named_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "hardware.yaml"
    path.write_text("a: {based_on: h100, flops: 3}\nb: {bf16_tflops: 100}\n")
    with pytest.raises(ConfigError) as caught:
        read_hardware(path)
    text = str(caught.value)
    assert "a: unknown flops" in text
    assert "b: missing fp32_tflops" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {based_on: h100, memory_gib: .nan}", "no finite number"),
        ("a: {based_on: h100, memory_gib: lots}", "a: memory_gib: lots"),
        ("a: {based_on: h100, gpus_per_node: -1}", "a number above 0"),
        ("a: {based_on: h100, matmul_part: true}", "a number above 0"),
        ("a: {based_on: h100, network: token-ring}", "known networks: edr"),
        ("a: {based_on: h100, gather_gb_per_s: 3}", "{nodes: GB/s}"),
        ("a: {based_on: h100, reduce_gb_per_s: {two: 3}}", "{nodes: GB/s}"),
        ("a: 3", "missing bf16_tflops"),
        ("[a]", "a mapping is wanted"),
        ("a: &x {b: *x}", "inside itself"),
        ("a: [", "not YAML"),
    ],
)
def test_what_cannot_be_in_a_sites_file_is_told_in_words(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "hardware.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_hardware(tmp_path / "hardware.yaml")
    assert message in str(caught.value)
    assert "hardware.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "found"),
    [("gpu:h100_pcie", "H100 PCIe"), ("gh200", "GH200"), ("NVIDIA-H800", "H800"), ("mi250x", "MI250X die")],
)
def test_variants_are_told_apart(name: str, found: str) -> None:
    assert find_hardware(name).name == found
