import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from miniature.weights import WEIGHT_PATHS, weights_dir
from perception.packaged import packaged_weights
from pipelines.models.check import check
from pipelines.models.lock import LockedEntry, LockedFile, write_lock
from pipelines.recipe import read_recipe
from pipelines.roles import MODEL_ROLES

TRANSFORMER = "wan/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def weights(tmp_path):
    """A copy of the shipped weights, to damage, and their paths by role."""
    shutil.copytree(weights_dir(), tmp_path / "w")
    return {role: tmp_path / "w" / path for role, path in WEIGHT_PATHS.items()}


def _root(weights) -> Path:
    return weights["adapter"].parent


def _edit(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def _only_wrong(paths, role):
    """The text about `role`, after making sure that it is the only one found wrong."""
    findings = check(paths)
    assert [finding.role for finding in findings if finding.problems] == [role]
    finding = next(finding for finding in findings if finding.role == role)
    assert next(finding.lines()) == f"{role:16} WRONG  {paths[role]}"
    return "\n".join(finding.lines())


def test_the_shipped_weights_are_all_right_and_the_other_roles_say_what_is_missing():
    findings = {finding.role: finding for finding in check(read_recipe("demo").named_models())}
    assert list(findings) == list(MODEL_ROLES)
    here = WEIGHT_PATHS.keys() | packaged_weights().keys() - {"text_detector"}  # which the demo takes away
    for role, finding in findings.items():
        (line,) = finding.lines()
        assert not finding.problems and (" ok  " in line) == (role in here)
    assert findings["transformer"].facts == "177 tensors, 1,560,256 parameters, bfloat16, 3.1 MB"
    (line,) = findings["active_speaker"].lines()
    assert "no weights: lips and audio alone" in line and "`omniavatar models fetch light-asd`" in line


def test_a_renamed_tensor_is_named_twice(weights):
    def rename(tensors):
        tensors["proj_outs.bias"] = tensors.pop("proj_out.bias")

    _edit(_root(weights) / TRANSFORMER, rename)
    text = _only_wrong(weights, "transformer")
    assert "missing: proj_out.bias" in text and "unexpected: proj_outs.bias" in text


def test_a_tensor_of_another_shape_is_named_with_both(weights):
    _edit(
        weights["vae"] / "diffusion_pytorch_model.safetensors",
        lambda t: t.update({"decoder.conv_out.bias": torch.zeros(7)}),
    )
    assert "shape: decoder.conv_out.bias is (7,), expected (12,)" in _only_wrong(weights, "vae")


@pytest.mark.parametrize(
    ("role", "file"),
    [
        ("transformer", TRANSFORMER),
        ("adapter", "omniavatar/pytorch_model.pt"),
        ("sync_scorer", "syncnet/syncnet_v2.model"),
        ("face_detector", "insightface/det_miniature.onnx"),
        ("text_encoder", "wan/text_encoder/config.json"),
    ],
)
def test_a_file_cut_in_half_is_found(weights, role, file):
    path = _root(weights) / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(path.parent) in _only_wrong(weights, role)


@pytest.mark.parametrize(
    ("role", "other"), [("transformer", "vae"), ("audio_encoder", "text_encoder"), ("fid_features", "fvd_features")]
)
def test_weights_of_another_role_are_found(weights, role, other):
    assert _only_wrong(weights | {role: weights[other]}, role)


def test_a_path_that_does_not_exist_is_a_finding_like_any_other(weights):
    assert "nowhere does not exist; correct models.vae" in _only_wrong(weights | {"vae": Path("nowhere")}, "vae")


def test_a_judge_that_was_not_fetched_is_absent_and_nothing_is_wrong(weights):
    findings = {finding.role: finding for finding in check(weights | {"sync_scorer": Path("weights/nowhere")})}
    assert not any(finding.problems for finding in findings.values())
    (line,) = findings["sync_scorer"].lines()
    assert "absent  weights/nowhere does not exist: " in line and "models fetch syncnet-v2`, or correct models" in line


def test_many_differences_are_shown_in_part(weights):
    text = _only_wrong(weights | {"vae": weights["transformer"]}, "vae")
    assert text.count("missing:") == 8 and text.splitlines()[-1].split()[-1] == "more"


def test_fetched_files_are_held_against_their_lock_file(weights, tmp_path):
    file = weights["sync_scorer"]
    files = {"syncnet/syncnet_v2.model": LockedFile(file.stat().st_size, "0" * 64, "https://somewhere")}
    write_lock(tmp_path, {"w": LockedEntry("not stated", "", files)})
    assert not any(finding.problems for finding in check(weights))
    found = {finding.role: finding for finding in check(weights, content=True)}
    assert found["sync_scorer"].problems == (
        "syncnet_v2.model has changed since it was fetched (its SHA-256 differs); fetch it again",
    )
    assert found["vae"].facts.endswith("no lock file to compare with")
    write_lock(
        tmp_path, {"w": LockedEntry("not stated", "", {"omniavatar/gone.pt": files["syncnet/syncnet_v2.model"]})}
    )
    assert "gone.pt is absent" in _only_wrong(weights, "adapter")


def test_an_adapter_beside_a_wrong_transformer_says_that_it_was_not_compared(weights):
    (weights["transformer"] / "config.json").write_text(json.dumps({"dim": 8}))
    found = {finding.role: finding for finding in check(weights)}
    assert found["transformer"].problems and "not compared with the transformer" in found["adapter"].facts
