import hashlib
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace

import pytest

from common.runs import read_json
from pipelines.models.download import DownloadError, RetryPolicy
from pipelines.models.fetch import LicenceError, _refuse_outside, _unpack, fetch
from pipelines.models.lock import LOCK_FILE, read_lock
from pipelines.models.published import HubSource, Published, UrlSource, read_published
from tests.pipelines.models.conftest import COMMIT

QUICK = RetryPolicy(attempts=2, pause=0.01)
REPO = {"config.json": b"{}", "shard-1.safetensors": os.urandom(200_000), "other.bin": b"not asked for"}


@pytest.fixture
def hub(web):
    web.publish("team/base", REPO)
    source = HubSource("team/base", ("config.json", "shard-*"))
    return Published("base", "team", 1, {"transformer": ".", "vae": "config.json"}, "Apache-2.0", hub=source)


def _fetch(web, folder, accept=False, **entries):
    return fetch(entries, folder, accept, endpoint=web.address, retries=QUICK)


def test_a_repository_arrives_by_pattern_with_commit_and_digests(web, hub, tmp_path):
    roles = _fetch(web, tmp_path, base=hub)
    assert roles == {"base": {"transformer": tmp_path / "base", "vae": tmp_path / "base" / "config.json"}}
    assert sorted(os.listdir(tmp_path / "base")) == ["config.json", "shard-1.safetensors"]
    locked = read_lock(tmp_path)["base"]
    assert (locked.revision, locked.licence) == (COMMIT, "Apache-2.0")
    for name, file in locked.files.items():
        assert file.sha256 == hashlib.sha256((tmp_path / "base" / name).read_bytes()).hexdigest()
        assert COMMIT in file.source and file.bytes == len(REPO[name])


def test_what_is_there_is_not_fetched_again_and_what_was_lost_is(web, hub, tmp_path):
    _fetch(web, tmp_path, base=hub)
    (tmp_path / "base" / "config.json").unlink()
    web.requests.clear()
    _fetch(web, tmp_path, base=hub)
    assert [path for path, _ in web.requests if "resolve" in path] == [f"team/base/resolve/{COMMIT}/config.json"]


def test_the_locked_commit_is_fetched_and_no_newer_one(web, hub, tmp_path):
    _fetch(web, tmp_path, base=hub)
    web.requests.clear()
    _fetch(web, tmp_path, base=replace(hub, hub=replace(hub.hub, revision="newer")))
    assert web.requests[0][0].startswith(f"api/models/team/base/revision/{COMMIT}")


def test_a_cut_on_the_way_is_gone_on_with(web, hub, tmp_path):
    digest = hashlib.sha256(REPO["shard-1.safetensors"]).hexdigest()
    web.mishaps[f"cdn/{digest}"].append("cut 70000")
    _fetch(web, tmp_path, base=hub)
    assert web.ranges(f"cdn/{digest}") == [None, "bytes=70000-"]


def test_content_that_is_not_what_the_hub_lists_is_refused(web, hub, tmp_path):
    digest = hashlib.sha256(REPO["shard-1.safetensors"]).hexdigest()
    web.files[f"cdn/{digest}"] = bytes(200_000)
    with pytest.raises(DownloadError, match=f"expected {digest}"):
        _fetch(web, tmp_path, base=hub)
    assert set(read_lock(tmp_path)["base"].files) == {"config.json"}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (HubSource("team/base", ("weights.pt",)), "has no file weights.pt; its files are .*shard-1"),
        (HubSource("team/none", ("a",)), "team/none at main is not on the hub"),
        (HubSource("team/base", ("a",), "v9"), "team/base at v9 no longer has this revision"),
    ],
)
def test_what_the_hub_does_not_have_is_named(web, hub, tmp_path, source, words):
    with pytest.raises(DownloadError, match=words):
        _fetch(web, tmp_path, base=replace(hub, hub=source))


def test_a_repository_behind_terms_says_so(web, hub, tmp_path):
    web.mishaps["api/models/team/base/revision/main?blobs=true"].append("403 GatedRepo")
    with pytest.raises(DownloadError, match="requires accepting its terms"):
        _fetch(web, tmp_path, base=hub)


def test_licences_are_accepted_before_anything_moves(web, hub, tmp_path):
    for shut in (replace(hub, forbids="commercial use"), replace(hub, licence="not stated")):
        with pytest.raises(LicenceError, match=r"^base (forbids commercial use|states no licence).* --accept"):
            _fetch(web, tmp_path / "w", open=hub, base=shut)
        assert not web.requests and not (tmp_path / "w").exists()
    assert _fetch(web, tmp_path, accept=True, base=shut)


def test_an_archive_is_unpacked_to_what_is_asked_of_it(web, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("pack/det.onnx", b"detector")
        archive.writestr("pack/age.onnx", b"not asked for")
    web.files["pack.zip"] = packed.getvalue()
    pack = Published("p", "q", 1, {"face_detector": "."}, "MIT", urls=(UrlSource(web.url("pack.zip"), "pack.zip"),))
    pack = replace(pack, urls=(replace(pack.urls[0], unpack=("det.onnx",)),))
    for _ in range(2):
        _fetch(web, tmp_path, pack=pack)
    assert os.listdir(tmp_path / "pack") == ["det.onnx"] and len(web.requests) == 1
    assert read_lock(tmp_path)["pack"].files["det.onnx"].sha256 == hashlib.sha256(b"detector").hexdigest()
    with pytest.raises(DownloadError, match=r"lacks rec.onnx; it contains age.onnx, det.onnx"):
        _fetch(web, tmp_path / "2", pack=replace(pack, urls=(replace(pack.urls[0], unpack=("rec.onnx",)),)))


def test_what_only_a_person_can_get_is_stated_with_its_place(web, tmp_path):
    with pytest.raises(ValueError, match=r"i3d-torchscript cannot be fetched by a command.*i3d_torchscript.pt"):
        _fetch(web, tmp_path, accept=True, **{"i3d-torchscript": read_published()["i3d-torchscript"]})


def test_a_damaged_lock_file_is_named(web, hub, tmp_path):
    (tmp_path / LOCK_FILE).write_text('{"base": {"files": 3}}')
    with pytest.raises(ValueError, match=f"{LOCK_FILE} is not a lock file"):
        _fetch(web, tmp_path, base=hub)


def test_the_command_killed_in_the_middle_goes_on_where_it_was(web, tmp_path):
    files = {"config.json": b"{}", "pytorch_model.pt": os.urandom(3_000_000)}
    web.publish("OmniAvatar/OmniAvatar-1.3B", files)
    content = f"cdn/{hashlib.sha256(files['pytorch_model.pt']).hexdigest()}"
    web.mishaps[content].append("hold 2000000")
    command = [sys.executable, "-m", "pipelines.cli.main", "models", "fetch", "omniavatar-1.3b", "--accept"]
    command += ["--to", str(tmp_path)]
    environment = os.environ | {"HF_ENDPOINT": web.address, "HF_HUB_OFFLINE": "0"}
    part = tmp_path / "omniavatar-1.3b" / "pytorch_model.pt.part"
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size == 2_000_000):
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert web.ranges(content) == [None, "bytes=2000000-"]
    assert part.with_name("pytorch_model.pt").read_bytes() == files["pytorch_model.pt"]
    assert "licence not stated; it states" in done.stdout and f"adapter: {tmp_path}/omniavatar-1.3b" in done.stdout
    assert len(read_json(tmp_path / LOCK_FILE)["omniavatar-1.3b"]["files"]) == 2


@pytest.mark.parametrize(
    "name",
    ["../out.json", "/etc/out.json", "a/../../out.json", "c:/out.json", "a\\out.json", "a\0.json", "a" * 300 + ".json"],
)
def test_names_of_a_hub_stay_in_the_folder(name):
    with pytest.raises(DownloadError, match="no plain path"):
        _refuse_outside(name, "some/repo", [])
    with pytest.raises(DownloadError, match="one file on some disks"):
        _refuse_outside("Config.json", "some/repo", ["config.json"])
    _refuse_outside("sub/model-00001-of-00002.safetensors", "some/repo", ["config.json"])


def _link(name):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o120777 << 16
    return entry


@pytest.mark.parametrize(
    ("entries", "damage", "said"),
    [
        ({"a/net.onnx": bytes(200_000)}, b"", "would unpack to 200000 bytes"),
        ({_link("net.onnx"): b"/etc/passwd"}, b"", "lacks net.onnx"),
        ({"net.onnx/": b""}, b"", "lacks net.onnx"),
        ({"net.onnx": b"weights"}, b"weights", "Bad CRC-32"),
    ],
)
def test_an_archive_of_something_else_leaves_nothing(tmp_path, monkeypatch, entries, damage, said):
    monkeypatch.setattr("common.untrusted.weight_files.SLACK", 1000)
    pack = tmp_path / "pack.zip"
    with zipfile.ZipFile(pack, "w", zipfile.ZIP_STORED if damage else zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    if damage:
        pack.write_bytes(pack.read_bytes().replace(damage, damage[::-1]))
    with pytest.raises(DownloadError, match=said):
        _unpack(pack, ["net.onnx"])
    assert set(os.listdir(tmp_path)) <= {"pack.zip"}
