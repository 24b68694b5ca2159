"""Measured training steps, and the command that prints them."""

from __future__ import annotations

import pytest

from fastdiff.bench.measure import Options, measure, reduced, smallest_width
from fastdiff.cli import main
from fastdiff.errors import FastdiffError
from fastdiff.models import UNetConfig
from fastdiff.zoo import PRESETS


def test_measured_rows_fit_together() -> None:
    result = measure("fashion-mnist", Options(batch=2, rounds=1, compile=False))
    assert [row.side for row in result.rows] == ["eager, contiguous", "eager, channels_last", "fastdiff"]
    for row in result.rows:
        assert row.images_per_second == pytest.approx(2 / row.step_seconds)
        assert row.mfu == pytest.approx(row.images_per_second * result.compute.training_flops / result.peak)
        assert row.equivalent == pytest.approx(row.normalised)
        assert row.device_days == pytest.approx(1e6 / row.images_per_second / 86400)


@pytest.mark.parametrize("name", ["adm-64", "adm-128", "adm-256", "adm-512", "adm-64-256", "adm-128-512"])
def test_every_denoiser_can_be_reduced(name: str) -> None:
    config = PRESETS[name].model
    assert isinstance(config, UNetConfig)
    small = reduced(config, smallest_width(config))
    assert small.model_channels in (32, 64)
    assert (small.channel_mult, small.num_res_blocks) == (config.channel_mult, config.num_res_blocks)


@pytest.mark.parametrize(
    ("name", "sentence"), [("adm-65", "unknown preset 'adm-65'"), ("adm-64-classifier", "is a classifier")]
)
def test_what_cannot_be_measured(name: str, sentence: str) -> None:
    with pytest.raises(FastdiffError, match=sentence):
        measure(name, Options())


def test_command_prints_the_published_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "v100-days"]) == 0
    told = capsys.readouterr().out
    assert "| adm-64 | 295,904,454 | 109.68 | 658.1 |" in told
    assert "| LSUN horse 256 | StyleGAN2 |  |  |  | 130 | 3.84 |" in told
    assert "| ImageNet 512 | ADM-G 4360K + ADM-U 1050K | 1873.6 | 1878 | 36 | 1914 |" in told


def test_command_measures_and_says_what_it_reduced(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "v100-days", "--measure", "--presets", "ddpm-cifar10", "--device", "cpu"]
    assert main([*command, "--no-compile", "--batch", "1", "--rounds", "1"]) == 0
    told = capsys.readouterr().out
    assert "REDUCED to 32 channels" in told and "| fastdiff |" in told
    assert "| seconds here, at the speed of networks REDUCED to 32 channels |" in told
    assert main([*command, "--rounds", "0"]) == 2
