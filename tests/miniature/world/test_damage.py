"""Damage does what its numbers say, and its severity is the stated rule."""

import numpy as np
import pytest

from miniature.world.clips import draw_clip
from miniature.world.damage import CLEAN_CRF, Composition, Damage, code, draw_composition, draw_damage, together


@pytest.fixture(scope="module")
def clip():
    return draw_clip(7, 0.2)


def test_severity_of_damage_is_the_stated_rule():
    faults = Damage(blur=1.0, noise=25, reduction=2.5, exposure=1.25, crf=45)
    np.testing.assert_allclose(faults.parts(), [0.5, 1.0, 0.5, 0.25, 1.0])
    assert not Damage().parts().any() and not Damage(crf=0).parts().any()


def test_faults_together_leave_the_product():
    assert together(np.array([0.5, 0.5, 0.0])) == pytest.approx(0.75)
    assert together(np.zeros(4)) == 0 and together(np.array([1.0, 0.2])) == 1


def test_no_damage_changes_nothing(clip):
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(Damage().apply(clip.frames, rng), clip.frames)
    np.testing.assert_array_equal(code(clip.frames, 0), clip.frames)


def test_noise_and_exposure_have_the_given_size():
    rng, grey = np.random.default_rng(0), np.full((4, 64, 64, 3), 100, dtype=np.uint8)
    assert Damage(noise=20).apply(grey, rng).std() == pytest.approx(20, rel=0.03)
    assert (Damage(exposure=1.5).apply(grey, rng) == 150).all()


@pytest.mark.parametrize("fault", [Damage(blur=1.5), Damage(reduction=3)])
def test_blur_and_reduction_remove_detail_and_keep_the_mean(clip, fault):
    damaged = fault.apply(clip.frames, np.random.default_rng(0)).astype(float)
    steps = [np.abs(np.diff(frames.astype(float), axis=2)).max() for frames in (clip.frames, damaged)]
    assert steps[1] < 0.75 * steps[0]
    assert damaged.mean() == pytest.approx(clip.frames.mean(), abs=1)


def test_coding_loses_more_at_higher_crf(clip):
    errors = [np.square(code(clip.frames, crf).astype(float) - clip.frames).mean() for crf in (CLEAN_CRF, 32, 45)]
    assert errors[0] < errors[1] < errors[2]


def test_composition_moves_the_face_with_its_box(clip):
    frames, boxes = Composition(shift=(0.125, 0.0)).apply(clip.frames, clip.boxes)
    np.testing.assert_allclose(boxes, clip.boxes + [8, 0, 8, 0])
    np.testing.assert_array_equal(frames[:, :, 8:], clip.frames[:, :, :-8])


def test_severity_of_composition_is_the_stated_rule(clip):
    centred = np.array([[16.0, 10.0, 48.0, 50.0]])
    assert not Composition().parts(centred, 64).any()
    half_out = np.array([[-16.0, 10.0, 16.0, 50.0]])
    tones = Composition(contrast=0.5, cast=(1.0, 0.7, 1.0))
    np.testing.assert_allclose(tones.parts(half_out, 64), [1.0, 0.9, 0.75, 0.5])


def test_an_untouched_drawn_face_has_good_composition():
    severities = [Composition().parts(clip.boxes, 64) for clip in (draw_clip(seed, 0.2) for seed in range(12))]
    assert np.mean([together(parts) for parts in severities]) < 0.03


def test_drawn_faults_are_spread_over_all_kinds():
    rng = np.random.default_rng(0)
    parts = np.array([draw_damage(rng).parts() for _ in range(300)])
    assert ((parts > 0).mean(0) > 0.05).all() and (together(parts) == 0).mean() > 0.2
    moved = [draw_composition(rng) for _ in range(200)]
    assert 0.3 < np.mean([composition == Composition() for composition in moved]) < 0.6
