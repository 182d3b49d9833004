"""The arithmetic of the plots, and what their SVG may contain."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from eval.reporting.plots import LEFT, RIGHT, per_clip, running_mean, voice_and_lips

EMPTY = np.zeros(0)


def test_running_mean_shrinks_at_the_ends() -> None:
    assert running_mean(np.array([0.0, 3.0, 6.0, 9.0]), 1) == pytest.approx([1.5, 3.0, 6.0, 7.5])
    assert running_mean(np.full(50, 2.5), 7) == pytest.approx(np.full(50, 2.5))


def test_plots_are_well_formed_and_carry_no_date_or_address() -> None:
    wave = np.sin(np.arange(32_000) / 30)
    svg = voice_and_lips(wave, 16_000, np.linspace(1, 2, 40), [0.5])
    ET.fromstring(svg)
    assert "<metadata>" not in svg and "<dc:date>" not in svg and "not scored" not in svg
    assert svg == voice_and_lips(wave, 16_000, np.linspace(1, 2, 40), [0.5])
    assert "not scored" in voice_and_lips(wave, 16_000, EMPTY, [])


def test_the_playhead_and_the_plot_agree_on_where_time_begins_and_ends() -> None:
    svg = voice_and_lips(np.ones(16_000), 16_000, EMPTY, [])
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg).group(1))  # type: ignore[union-attr]
    # The background patch of the first axes spans the plot area.
    patch = re.search(r'<g id="patch_2">\s*<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+)', svg)
    assert patch is not None
    assert [float(x) / width for x in patch.groups()] == pytest.approx([LEFT, RIGHT], abs=1e-3)


def test_every_clip_is_a_dot_and_every_method_a_mean() -> None:
    values = {"adapter": {"a": 1.0, "b": 3.0}, "base": {"a": 0.25}}
    svg = per_clip(values, "Sync-C")
    ET.fromstring(svg)
    assert "2.00" in svg and "0.25" in svg and "adapter" in svg
    assert svg.count("<use") >= 3


def test_a_hostile_name_is_text_in_a_plot() -> None:
    names = {"$x^2$ <script>alert(1)</script>": {"a": 1.0}, "$\\frac{": {"a": 2.0}}
    svg = per_clip(names, "Sync-C")
    assert "<script" not in svg and "$x^2$ &lt;script&gt;" in svg and "$\\frac{" in svg
