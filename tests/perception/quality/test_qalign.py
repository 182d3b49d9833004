"""Q-Align: numbers of the published scoring, prompts and preprocessing, and the folder format."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from miniature.train.qalign import new_model, write_folder, write_tokenizer
from perception.quality.qalign import LEVELS, Preprocessor, check_qalign, level_scores, load_qalign, prompt_for
from perception.quality.qalign_model import QAlignError

GOLDEN = [
    ((0, 0, 0, 0, 0), 3.0, 0.5),
    ((2, 1, 0, -1, -2), 4.451942, 0.862985),
    ((1, 3, 2, 0, -1), 3.753668, 0.688417),
    ((10, 0, 0, 0, 0), 4.999546, 0.999886),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model of the miniature's size in the published layout."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("one-align")
    write_folder(path, new_model())
    write_tokenizer(path / "tokenizer.model", 336)
    return path


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


def pictures(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize(("logits", "five", "one"), GOLDEN)
def test_level_scores_are_the_golden_ones(logits, five, one):
    assert level_scores(np.array([logits]))[0] == pytest.approx(five, abs=1e-6)
    assert level_scores(np.array([logits]))[0] == pytest.approx(1 + 4 * one, abs=4e-6)


def test_half_precision_logits_are_scored_in_double():
    assert level_scores(np.array([(2, 1, 0, -1, -2)], dtype=np.float16))[0] == pytest.approx(4.451942, abs=1e-6)


@pytest.mark.parametrize(
    ("variant", "task", "words"),
    [
        ("scorer", "quality", ("quality", "The quality of the image is")),
        ("scorer", "aesthetics", ("aesthetics", "The aesthetics of the image is")),
        ("automodel", "quality", ("quality", "The image of the quality is")),
        ("pyiqa", "aesthetics", ("aesthetic", "The aesthetic of the image is")),
    ],
)
def test_the_three_historical_prompts_are_literal(variant, task, words):
    expected = f"USER: How would you rate the {words[0]} of this image?\n<|image|>\nASSISTANT: {words[1]}"
    assert prompt_for(task, variant) == expected


def test_padding_is_centred_in_the_truncated_clip_mean_and_normalised():
    wide = np.full((20, 40, 3), 200, dtype=np.uint8)
    pixels = Preprocessor(40)([wide])[0].permute(1, 2, 0).numpy()
    levels = np.rint((pixels * Preprocessor(40).std + Preprocessor(40).mean) * 255)
    assert (levels[:8] == (122, 116, 104)).all() and (levels[-8:] == (122, 116, 104)).all()
    assert (levels[12:28] == 200).all()


def test_resize_is_pillow_bicubic():
    (picture,) = pictures((96, 96))
    expected = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BICUBIC)) / 255
    pixels = Preprocessor(64)([picture])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(pixels * Preprocessor(64).std + Preprocessor(64).mean, expected, atol=1e-6)


def test_prompt_is_tokenised_in_two_texts_and_levels_are_single_tokens(folder):
    judge = load_qalign(folder)
    before, after = judge.prompt_ids(prompt_for("quality"))
    assert judge.tokenizer.id_to_piece(before[0]) == "<s>"
    assert judge.tokenizer.decode(before) == "USER: How would you rate the quality of this image?\n"
    assert judge.tokenizer.decode(after).endswith("ASSISTANT: The quality of the image is")
    assert [judge.tokenizer.encode(word) for word in LEVELS] == [[i] for i in judge.level_ids]


def test_batch_equals_single_pictures_of_any_size(folder):
    judge = load_qalign(folder)
    images = pictures((64, 64), (96, 96), (40, 80), (90, 30), (64, 64))
    together = judge.rate(images, batch_size=4)
    for row, image in enumerate(images):
        for task, rating in judge.rate([image]).items():
            np.testing.assert_allclose(together[task].logits[row], rating.logits[0], atol=1e-5)


def test_pictures_are_seen_once_whatever_is_asked(folder):
    judge, seen, rows = load_qalign(folder), [], []
    judge.model.model.vision_model.register_forward_hook(lambda *_: seen.append(1))
    judge.model.model.layers[0].register_forward_hook(lambda _, __, out: rows.append(len(out)))
    both = judge.rate(pictures((64, 64), (64, 64)))
    assert len(seen) == 1
    queries = judge.model.config.abstractor.num_learnable_queries + 1
    for count, rating in zip(rows, both.values(), strict=True):
        before, after = judge.prompt_ids(rating.prompt)
        assert count == len(before) + 2 * (queries + len(after))  # the words before the picture once
    assert both["quality"].prompt != both["aesthetics"].prompt
    assert not np.allclose(both["quality"].logits, both["aesthetics"].logits)


def test_score_is_on_one_to_five_and_variants_differ(folder):
    judge = load_qalign(folder)
    images = pictures((64, 64), (64, 64))
    scores = judge.score(images)
    assert scores.shape == (2,) and ((scores > 1) & (scores < 5)).all()
    assert not np.allclose(scores, judge.score(images, variant="automodel"))
    assert judge.score([]).shape == (0,)


def test_sharded_and_binary_files_and_old_rotary_tables_load_alike(folder, copied):
    expected = load_qalign(folder).score(pictures((64, 64)))
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = (names[::2], names[1::2])
    for number, shard in enumerate(shards, 1):
        save_file({name: tensors[name] for name in shard}, copied / f"model-{number:05d}-of-00002.safetensors")
    np.testing.assert_array_equal(load_qalign(copied).score(pictures((64, 64))), expected)
    for path in copied.glob("*.safetensors"):
        path.unlink()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    torch.save(tensors, copied / "pytorch_model-00001-of-00001.bin")
    np.testing.assert_array_equal(load_qalign(copied).score(pictures((64, 64))), expected)


@pytest.mark.parametrize("read", [load_qalign, check_qalign])
def test_every_wrong_tensor_is_listed(copied, read):
    tensors = load_file(copied / "model.safetensors")
    del tensors["lm_head.weight"]
    tensors["model.norm.weight"] = torch.zeros(3)
    tensors["model.extra"] = torch.zeros(1)
    for write in (lambda: save_file(tensors, copied / "model.safetensors"), lambda: as_binary(copied, tensors)):
        write()
        with pytest.raises(QAlignError) as error:
            read(copied)
        for part in ("missing lm_head.weight", "model.norm.weight is (3,), expected (64,)", "unexpected model.extra"):
            assert part in str(error.value)


def as_binary(folder, tensors):
    """Weights as one PyTorch file instead of safetensors."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(tensors, folder / "pytorch_model.bin")


@pytest.mark.parametrize("read", [load_qalign, check_qalign])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "preprocessor_config.json", "model.safetensors"])
def test_absent_and_broken_files_are_named(copied, name, read):
    (copied / name).write_bytes((copied / name).read_bytes()[:-10] if "safetensors" in name else b"broken")
    with pytest.raises(QAlignError, match=name):
        read(copied)
    (copied / name).unlink()
    with pytest.raises(QAlignError, match=name.replace("model.safetensors", "no .*safetensors")):
        read(copied)
    (copied / "pytorch_model.bin").write_bytes(b"PK broken")
    with pytest.raises(QAlignError, match=name.replace("model.safetensors", "pytorch_model.bin")):
        read(copied)


def test_checking_reads_headers_only(folder, copied):
    check_qalign(folder)
    path = copied / "model.safetensors"
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    with path.open("r+b") as file:  # the numbers themselves are gone, names and shapes are not
        file.seek(header)
        file.write(bytes(path.stat().st_size - header))
    check_qalign(copied)


def test_a_configuration_of_another_kind_is_refused(copied):
    content = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(content | {"rope_scaling": {"type": "linear", "factor": 2.0}}))
    with pytest.raises(QAlignError, match="rope_scaling"):
        load_qalign(copied)


def test_pictures_that_are_not_rgb_bytes_are_refused(folder):
    with pytest.raises(QAlignError, match="float32"):
        load_qalign(folder).score([np.zeros((8, 8, 3), dtype=np.float32)])
