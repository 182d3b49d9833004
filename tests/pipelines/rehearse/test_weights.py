import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from common.errors import ExistingFileError, InputError
from omniavatar.weights.tensor_files import read_tensors
from pipelines.models.check import check
from pipelines.rehearse.depth import random_roles
from pipelines.rehearse.weights import MARKER, check_room, identity, missing_files, remove_random, write_missing
from tests.pipelines.rehearse.sizes import TINY

ROLES = ("transformer", "vae", "text_encoder", "tokenizer", "audio_encoder", "adapter")


def written(root, *roles, sizes=TINY):
    roles = random_roles(roles, sizes, root, "wan2.1-t2v-1.3b")
    missing, damage = missing_files(roles)
    write_missing(roles, missing, lambda text: None)
    return {role.role: role for role in roles}, damage


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    root = tmp_path_factory.mktemp("rehearsal") / "random-weights"
    return root, written(root, *ROLES)[0]


def test_random_weights_pass_the_check_of_every_role(weights):
    root, roles = weights
    findings = {finding.role: finding for finding in check({role.role: role.path for role in roles.values()})}
    assert {role: findings[role].problems for role in ROLES} == dict.fromkeys(ROLES, ())
    assert missing_files(list(roles.values())) == ({}, [])


def test_torch_files_are_whole_archives_of_the_values_that_safetensors_have(weights):
    root, roles = weights
    file = roles["text_encoder"].path
    assert zipfile.ZipFile(file).testzip() is None
    unmapped, mapped = torch.load(file, weights_only=True), dict(read_tensors(file))
    assert all(torch.equal(unmapped[name], mapped[name]) for name in mapped)
    assert mapped["blocks.0.attn.q.weight"].float().std() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(mapped["norm.weight"].float(), torch.ones(64))


def test_the_same_weights_have_the_same_bytes(weights, tmp_path):
    root, roles = weights
    again, _ = written(tmp_path / "again", "vae", "adapter")
    for role in ("vae", "adapter"):
        paths = [each[role].folder / each[role].files[-1].path for each in (roles, again)]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_what_is_gone_or_cut_short_is_named_and_written_again(tmp_path):
    roles, _ = written(tmp_path, "vae", "adapter")
    vae, adapter = roles["vae"].path, roles["adapter"].path / "pytorch_model.pt"
    before = adapter.read_bytes()
    vae.unlink()
    with open(adapter, "r+b") as file:
        file.truncate(1000)
    _, damage = written(tmp_path, "vae", "adapter")
    assert len(damage) == 2 and f"vae: {vae} is gone" in damage
    assert any(f"adapter: {adapter} has 1,000 bytes of {len(before):,}" in sentence for sentence in damage)
    assert adapter.read_bytes() == before and vae.exists()


def test_a_file_of_another_shape_is_named_and_kept(tmp_path):
    roles, _ = written(tmp_path, "transformer")
    shard = roles["transformer"].path / "diffusion_pytorch_model-00002-of-00003.safetensors"
    name, tensor = next(iter(read_tensors(shard)))
    save_file(dict(read_tensors(shard)) | {name: torch.zeros(700, *tensor.shape)}, shard)
    with pytest.raises(ExistingFileError, match=rf"00002-of-00003.*\({name} is \(700, .*not overwritten"):
        missing_files(list(roles.values()))
    assert dict(read_tensors(shard))[name].shape[0] == 700


def test_a_file_without_a_marker_is_not_overwritten(tmp_path):
    roles, _ = written(tmp_path, "vae")
    (roles["vae"].folder / MARKER).unlink()
    with pytest.raises(ExistingFileError, match="nothing is overwritten"):
        missing_files(list(roles.values()))


def test_another_depth_replaces_our_own_files_and_leaves_no_shard_of_the_old_one(tmp_path):
    deep, _ = written(tmp_path, "transformer", sizes=TINY.shallower(4, 2))
    shallow, damage = written(tmp_path, "transformer", sizes=replace(TINY, layers=5, shards=1))
    assert any("has other sizes" in sentence or "another than" in sentence for sentence in damage)
    names = sorted(file.name for file in shallow["transformer"].path.glob("*.safetensors*"))
    assert names == ["diffusion_pytorch_model.safetensors"]
    assert identity({}, list(deep.values())) != identity({}, list(shallow.values()))


def test_removal_takes_what_is_ours_and_leaves_the_rest(tmp_path):
    roles, _ = written(tmp_path, "vae", "adapter")
    size = sum(role.bytes for role in roles.values())
    own = roles["vae"].folder / "notes.txt"
    own.write_text("mine")
    assert remove_random(tmp_path) >= size
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [own]


def test_a_full_disk_is_said_before_anything_is_written(tmp_path):
    roles = random_roles(ROLES, TINY, tmp_path / "weights", "wan2.1-t2v-1.3b")
    missing, _ = missing_files(roles)
    with pytest.raises(InputError, match=r"where only 2\.0 MB are free; free .* more, .*--layers"):
        check_room(missing, 0, tmp_path / "weights", free=2_000_000)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
