from __future__ import annotations

import hashlib
import io
import json
import socket
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from torchvision.models import get_model_weights

from converters.errors import InputError
from toolkit import cli, known_weights, weights_folder
from toolkit.architectures import ResNetName
from toolkit.config import WeightsGetConfig, WeightsListConfig, WeightsVerifyConfig
from toolkit.known_weights import KNOWN, find, located, named
from toolkit.weights_folder import Checked, Got, get_weights, list_weights, verify_weights

SAM = "sam_vit_b_01ec64"
RESNET = "resnet34-b627a593"
YOLO = "yolov8s-worldv2"
CLIP = "clip-vit-b-32"


def _zip() -> bytes:
    """As a checkpoint of PyTorch: a zip archive, here of 300 kB."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("data.pkl", np.random.default_rng(0).bytes(300_000))
    return content.getvalue()


CONTENT = _zip()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """This module may reach servers of its own, on this machine; names of others are unknown."""
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def only_here(host: object, *arguments: object, **options: object) -> object:
        if host != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *arguments, **options)  # type: ignore[arg-type]

    def connect_here(self: socket.socket, address: tuple[str, int]) -> None:
        assert address[0] == "127.0.0.1"
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)
    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass
class Server:
    """One file, served as the fields say; ``asked`` has the Range header of each request."""

    content: bytes = CONTENT
    cut_after: int | None = None
    with_ranges: bool = True
    with_length: bool = True
    tag: str = '"1"'
    status: int = 200
    url: str = ""
    asked: list[str | None] = field(default_factory=list)


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            server.asked.append(asked)
            start = 0
            unchanged = self.headers.get("If-Range", server.tag) == server.tag
            if asked and server.with_ranges and unchanged:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start and start >= len(server.content):
                self.send_error(416)
                return
            self.send_response(206 if start else server.status)
            if start:
                last = len(server.content) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{last + 1}")
            if server.tag:
                self.send_header("ETag", server.tag)
            if server.with_length:
                self.send_header("Content-Length", str(len(server.content) - start))
            self.end_headers()
            body = server.content[start:]
            if server.cut_after is not None:
                body, server.cut_after = body[: server.cut_after], None
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of CONTENT, from which all official weights come."""
    server = Server()
    listening = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listening.server_port}/file"
    changes = {
        SAM: {"sha256": SHA256, "size_bytes": len(CONTENT)},
        RESNET: {"sha256_prefix": SHA256[:8]},
        YOLO: {},
        CLIP: {"sha256": SHA256},
    }
    table = tuple(
        replace(each, url=server.url, **changes[each.name]) if each.name in changes else each
        for each in KNOWN
    )
    monkeypatch.setattr(known_weights, "KNOWN", table)
    monkeypatch.setattr(weights_folder, "KNOWN", table)
    yield server
    listening.shutdown()
    listening.server_close()
    thread.join()


def get(name: str, **fields: str) -> Got:
    return get_weights(WeightsGetConfig(name=name, **fields))


def verify(name: str | None = None) -> list[Checked]:
    return verify_weights(WeightsVerifyConfig(name_or_path=name))


def names_in(folder: str = "weights") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


# The list


def test_every_entry_is_consistent() -> None:
    names = [each.name for each in KNOWN] + [each.file_name for each in KNOWN]
    assert len(set(names)) == len(names)
    for each in KNOWN:
        assert each.url is None or each.url == f"{each.url.rpartition('/')[0]}/{each.file_name}"
        assert each.url is None or each.url.startswith("https://")
        assert each.sha256 is None or (len(each.sha256) == 64 and int(each.sha256, 16))
        if each.sha256 and each.sha256_prefix:
            assert each.sha256.startswith(each.sha256_prefix)
        commands = ("finetune yolo", "finetune sam", "finetune classifier", "prompts make")
        assert each.task in commands


def test_torchvision_names_carry_the_first_digits_and_sam_names_do_not() -> None:
    assert named("resnet50-11ad3fa6").sha256_prefix == "11ad3fa6"
    assert named("sam_vit_h_4b8939.pth").sha256_prefix is None


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'yolov8s-worldv2'"):
        get("yolov8s-world2")
    with pytest.raises(InputError, match="did you mean 'sam_vit_b_01ec64'"):
        get("sam_vit_b")
    with pytest.raises(InputError, match="`toolkit weights list` has all names"):
        get("qqq")


def test_the_list_says_what_is_here_and_how_to_get_the_rest(server: Server, capsys) -> None:
    get(SAM)
    assert call("weights", "list") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert f"weights/{SAM}.pth" in rows[SAM] and "Apache-2.0" in rows[SAM]
    assert f"not here: toolkit weights get {YOLO}" in rows[YOLO]
    assert "no SHA-256 of it is known" in rows[YOLO]
    assert "comes with the toolkit" in rows["sam_nano"]
    assert call("weights", "list", "--folder", "elsewhere", "--json") == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert len(listed) == len(KNOWN)
    assert (listed[SAM]["path"], listed[SAM]["size_bytes"]) == (None, len(CONTENT))
    assert listed[SAM]["sha256"] == SHA256


# Getting


def test_a_whole_download_is_checked_and_written_down(server: Server) -> None:
    got = get(SAM)
    assert got.downloaded and got.checked is not None
    assert (got.checked.status, got.checked.sha256) == ("ok", SHA256)
    assert Path(f"weights/{SAM}.pth").read_bytes() == CONTENT
    assert names_in() == [f"{SAM}.pth", f"{SAM}.pth.json"]
    facts = json.loads(Path(f"weights/{SAM}.pth.json").read_text())
    assert facts == {
        "url": server.url,
        "licence": "Apache-2.0",
        "sha256": SHA256,
        "size_bytes": len(CONTENT),
    }


def test_what_is_here_and_whole_is_not_downloaded_again(server: Server, capsys) -> None:
    get(SAM)
    assert not get(SAM).downloaded
    assert call("weights", "get", SAM) == 0
    assert "is here already, nothing was downloaded" in capsys.readouterr().out
    assert len(server.asked) == 1


@pytest.mark.parametrize("name", [SAM, RESNET, YOLO])
def test_a_download_that_broke_off_is_gone_on_with(server: Server, name: str) -> None:
    server.cut_after = 120_000
    with pytest.raises(
        InputError, match=r"broke off \(120,000 of 300,.* bytes came.*give the same"
    ):
        get(name)
    assert not known_weights.named(name).place().exists()
    assert get(name).downloaded
    assert known_weights.named(name).place().read_bytes() == CONTENT
    assert server.asked == [None, "bytes=120000-"]
    assert not [name for name in names_in() if ".part" in name]


def test_a_server_that_knows_no_ranges_gives_the_whole_file_again(server: Server) -> None:
    server.cut_after, server.with_ranges = 120_000, False
    with pytest.raises(InputError, match="broke off"):
        get(SAM)
    get(SAM)
    assert server.asked == [None, "bytes=120000-"]
    assert Path(f"weights/{SAM}.pth").read_bytes() == CONTENT


def test_a_file_that_has_changed_since_is_not_mixed_with_its_old_half(server: Server) -> None:
    server.cut_after = 120_000
    with pytest.raises(InputError, match="broke off"):
        get(YOLO)
    server.tag, server.content = '"2"', CONTENT[::-1] + CONTENT
    get(YOLO)
    assert Path(f"weights/{YOLO}.pt").read_bytes() == server.content


def test_without_digest_or_version_a_download_begins_again(server: Server) -> None:
    server.cut_after, server.tag = 120_000, ""
    with pytest.raises(InputError, match="broke off"):
        get(YOLO)
    get(YOLO)
    assert server.asked == [None, None]
    assert Path(f"weights/{YOLO}.pt").read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_begins_again(server: Server) -> None:
    Path("weights").mkdir()
    Path(f"weights/{SAM}.pth.part").write_bytes(bytes(len(CONTENT) + 5))
    get(SAM)
    assert server.asked == [f"bytes={len(CONTENT) + 5}-", None]
    assert Path(f"weights/{SAM}.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("name", [SAM, RESNET])
def test_a_wrong_digest_removes_the_part(server: Server, name: str) -> None:
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(InputError, match=r"gave another file \(SHA-256 is .*, not") as caught:
        get(name)
    assert "\n" not in str(caught.value)
    assert names_in() == []


def test_a_half_of_something_else_is_found_out(server: Server) -> None:
    Path("weights").mkdir()
    Path(f"weights/{SAM}.pth.part").write_bytes(bytes(1000))
    with pytest.raises(InputError, match="gave another file"):
        get(SAM)
    assert server.asked == ["bytes=1000-"] and names_in() == []
    assert get(SAM).downloaded


def test_another_size_is_refused_before_it_is_downloaded(server: Server) -> None:
    server.content = CONTENT + b"more"
    with pytest.raises(InputError, match=r"what is there has 300,\d+ bytes, not 300,"):
        get(SAM)
    assert names_in() == []


def test_a_short_file_of_a_server_that_says_no_length(server: Server) -> None:
    server.with_length, server.cut_after = False, 120_000
    with pytest.raises(InputError, match="broke off"):
        get(SAM)
    get(SAM)
    assert Path(f"weights/{SAM}.pth").read_bytes() == CONTENT


def test_a_page_in_place_of_weights_that_have_no_digest_is_refused(server: Server) -> None:
    server.content = b"<html>Please log in</html>"
    with pytest.raises(InputError, match=r"gave another file \(it is no PyTorch file"):
        get(YOLO)
    assert names_in() == []


def test_a_mirror_gets_the_same_checks(server: Server, capsys) -> None:
    mirror = server.url
    assert call("weights", "get", "sam_vit_h_4b8939", "--url", mirror) == 2
    assert "bytes, not 2,564,550,879" in capsys.readouterr().err
    assert call("weights", "get", YOLO, "--url", mirror, "--folder", "brought", "--json") == 0
    got = json.loads(capsys.readouterr().out)
    assert got["path"] == f"brought/{YOLO}.pt" and got["downloaded"]
    assert call("weights", "get", YOLO, "--url", "file:///etc/passwd") == 2
    assert "error: field 'url'" in capsys.readouterr().err


@pytest.mark.parametrize("name", [SAM, "resnet34-b627a593", YOLO, CLIP])
def test_offline_is_one_line_that_says_what_to_bring(name: str, capsys) -> None:
    known = named(name)
    assert call("weights", "get", name) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(f"error: {known.file_name}: cannot be downloaded from")
    digest = known.sha256 or known.sha256_prefix or "no SHA-256 of it is known"
    for part in (str(known.url), digest, f"put it at weights/{known.file_name}", "not known"):
        assert part in captured.err


def test_a_server_that_is_down_or_lacks_the_file(server: Server) -> None:
    server.status = 404
    with pytest.raises(InputError, match=r"cannot be downloaded from .* \(404 Not Found\)"):
        get(SAM)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}/file"
        with pytest.raises(InputError, match="Connection refused"):
            get(SAM, url=closed)


def test_a_text_encoder_says_what_it_is_for(server: Server, capsys) -> None:
    assert call("weights", "get", CLIP) == 0
    out = capsys.readouterr().out
    assert "weights/ViT-B-32.pt: downloaded; SHA-256 as on the list" in out
    assert "use it with `toolkit prompts make" in out and "--weights" not in out


def test_starters_come_with_the_toolkit(capsys) -> None:
    assert call("weights", "get", "sam_nano") == 0
    assert "comes with the toolkit: use --weights starter" in capsys.readouterr().out
    assert not Path("weights").exists()


# Verifying


def test_verify_tells_whole_damaged_and_unknown_files(server: Server, capsys) -> None:
    get(SAM)
    get(RESNET)
    Path("weights/mine.pt").write_bytes(b"mine")
    assert {each.path.name: each.status for each in verify()} == {
        f"{RESNET}.pth": "ok",
        f"{SAM}.pth": "ok",
        "mine.pt": "unknown",
    }
    assert call("weights", "verify") == 0
    out = capsys.readouterr().out
    assert "no SHA-256 of it is on the list" in out
    assert hashlib.sha256(b"mine").hexdigest() in out

    Path(f"weights/{SAM}.pth").write_bytes(CONTENT[:-1])
    assert call("weights", "verify", "--json") == 1
    statuses = {each["path"]: each["status"] for each in json.loads(capsys.readouterr().out)}
    assert statuses[f"weights/{SAM}.pth"] == "damaged"
    assert statuses[f"weights/{RESNET}.pth"] == "ok"
    assert call("weights", "verify", SAM) == 1
    assert call("weights", "verify", f"weights/{RESNET}.pth") == 0
    with pytest.raises(InputError, match="remove it and get it again"):
        get(SAM)


def test_what_has_no_digest_is_compared_with_what_was_downloaded(server: Server) -> None:
    got = get(YOLO)
    assert got.checked is not None and got.checked.status == "unknown"
    assert SHA256 in got.checked.detail
    [whole] = verify(YOLO)
    assert whole.status == "ok" and f"downloaded from {server.url}" in whole.detail
    Path(f"weights/{YOLO}.pt").write_bytes(CONTENT + b"?")
    [changed] = verify(YOLO)
    assert changed.status == "damaged"


def test_a_file_brought_by_hand_is_known_by_its_name(server: Server) -> None:
    Path("stick").mkdir()
    Path(f"stick/{RESNET}.pth").write_bytes(CONTENT)
    Path(f"stick/{YOLO}.pt").write_bytes(CONTENT)
    assert [each.status for each in verify(f"stick/{RESNET}.pth")] == ["ok"]
    assert [each.status for each in verify(f"stick/{YOLO}.pt")] == ["unknown"]
    Path(f"stick/{RESNET}.pth").write_bytes(CONTENT + b"?")
    assert [each.status for each in verify(f"stick/{RESNET}.pth")] == ["damaged"]


def test_verify_of_what_is_not_there(capsys) -> None:
    assert call("weights", "verify") == 2
    assert "weights: no such folder" in capsys.readouterr().err
    assert call("weights", "verify", SAM) == 2
    assert f"no such file: `toolkit weights get {SAM}`" in capsys.readouterr().err
    assert call("weights", "verify", "a/b.pt") == 2
    assert "a/b.pt: no such file" in capsys.readouterr().err
    Path("weights").mkdir()
    assert call("weights", "verify") == 0
    assert "no weights here" in capsys.readouterr().out


def test_a_starter_that_is_cut_off_is_damaged(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    from safetensors.numpy import save_file

    monkeypatch.setattr(known_weights, "_STARTERS", here)
    path = here / "sam_nano.safetensors"
    save_file({"weight": np.zeros(100, np.float32)}, path)
    [whole] = verify("sam_nano")
    assert whole.status == "unknown" and whole.sha256 in whole.detail
    path.write_bytes(path.read_bytes()[:-1])
    [cut] = verify("sam_nano")
    assert cut.status == "damaged"


# What --weights takes


def test_names_are_found_in_the_folder_and_paths_are_left_alone() -> None:
    assert find(SAM) is None
    Path("weights").mkdir()
    Path(f"weights/{SAM}.pth").touch()
    assert find(SAM) == find(f"{SAM}.pth") == Path(f"weights/{SAM}.pth")
    assert located(SAM) == Path(f"weights/{SAM}.pth")
    Path(f"{SAM}.pth").touch()
    assert located(f"{SAM}.pth") == Path(f"{SAM}.pth")
    assert located("runs/mine") == Path("runs/mine")
    assert find("sam_nano") is None and located("sam_nano") == Path("sam_nano")


@pytest.mark.parametrize("weights", [YOLO, f"{YOLO}.pt", f"elsewhere/{YOLO}.pt"])
def test_finetune_yolo_says_how_to_get_its_weights(weights: str) -> None:
    from toolkit.detect.checkpoints import load_starting_point

    with pytest.raises(InputError) as caught:
        load_starting_point(weights, "n", 0, trust=False)
    assert f"`toolkit weights get {YOLO}`" in str(caught.value)
    assert f"put it at weights/{YOLO}.pt by hand" in str(caught.value)


def test_the_finetune_commands_say_how_to_get_theirs() -> None:
    from toolkit.classify.weights import load_backbone
    from toolkit.segment.weights import load_sam

    with pytest.raises(InputError, match=f"`toolkit weights get {SAM}`, or put it at weights/"):
        load_sam(SAM)
    with pytest.raises(InputError, match=f"`toolkit weights get {RESNET}`, or put it at weights/"):
        load_backbone(RESNET, None, ("good", "hole"))


def test_the_finetune_commands_read_the_file_in_the_folder() -> None:
    import torch

    from toolkit.classify.model import build_resnet
    from toolkit.classify.weights import load_backbone
    from toolkit.detect.checkpoints import load_starting_point
    from toolkit.segment.weights import load_sam

    Path("weights").mkdir()
    expected = build_resnet("resnet18", 1000).state_dict()
    torch.save(expected, "weights/resnet18-f37072fd.pth")
    model, found = load_backbone("resnet18-f37072fd", None, ("good", "hole"))
    assert found == "resnet18"
    assert torch.equal(model.conv1.weight, expected["conv1.weight"])
    Path(f"weights/{SAM}.pth").write_bytes(b"no weights")
    with pytest.raises(InputError, match=rf"weights/{SAM}\.pth: is damaged"):
        load_sam(SAM)
    Path(f"weights/{YOLO}.pt").write_bytes(b"no weights")
    with pytest.raises(InputError, match=rf"weights/{YOLO}\.pt: is damaged"):
        load_starting_point(YOLO, "n", 0, trust=False)


def test_listing_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", None)
    monkeypatch.setattr(socket.socket, "connect", None)
    assert len(list_weights(WeightsListConfig())) == len(KNOWN)


def test_the_files_of_torchvision_are_listed_with_the_digits_of_their_names() -> None:
    listed = {known.url: known for known in KNOWN}
    for name in get_args(ResNetName):
        for weights in get_model_weights(name):
            known = listed[weights.url]
            digits = Path(weights.url).stem.rpartition("-")[2]
            assert known.file_name == Path(weights.url).name
            assert known.sha256_prefix == digits
            assert (known.sha256 or digits).startswith(digits)
