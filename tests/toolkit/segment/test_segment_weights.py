from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from segment_anything import SamPredictor, sam_model_registry

from converters.errors import InputError
from toolkit.runs import RunFolder
from toolkit.segment.model import ARCHITECTURES, Architecture, build_sam
from toolkit.segment.segmenter import Segmenter
from toolkit.segment.weights import COMMAND, load_sam


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights are files; nothing may be fetched")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture(scope="module")
def nano_state():
    torch.manual_seed(0)
    return build_sam("nano").state_dict()


def _pth(tmp_path, state, name="sam_nano.pth"):
    path = tmp_path / name
    torch.save(state, path)
    return path


def _run(tmp_path, state, architecture="nano"):
    root = tmp_path / "run"
    (root / "checkpoints").mkdir(parents=True)
    (root / "config.yaml").write_text(f"command: {COMMAND}\n")
    save_file(state, root / "checkpoints" / "best.safetensors")
    RunFolder(root).write_model({"architecture": architecture})
    return root


def test_an_official_vit_b_file_opens_and_predicts_as_sam_predictor(tmp_path):
    torch.manual_seed(0)
    with torch.device("meta"):
        official = sam_model_registry["vit_b"]()
    state = {name: 0.02 * torch.randn(t.shape) for name, t in official.state_dict().items()}
    segmenter = Segmenter.load(_pth(tmp_path, state, "sam_vit_b_01ec64.pth"), "cpu")
    assert segmenter.architecture == "vit_b"
    assert all(torch.equal(t, state[name]) for name, t in segmenter.sam.state_dict().items())

    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    encoder = _Once(segmenter.sam.image_encoder)
    segmenter.sam.image_encoder = encoder
    masks, estimates = segmenter(image, [(10, 8, 25, 30)])
    predictor = SamPredictor(segmenter.sam)
    predictor.set_image(image)
    expected, scores, _ = predictor.predict(box=np.array([10, 8, 35, 38]), multimask_output=False)
    assert (masks == expected).all()
    assert estimates[0] == pytest.approx(scores[0], abs=1e-4)


class _Once(torch.nn.Module):
    """An encoder that answers the same input again from memory: vit_b takes seconds."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = [encoder]
        self.img_size = encoder.img_size

    def forward(self, images):
        if not hasattr(self, "seen"):
            self.seen = images
            self.answer = self.encoder[0](images)
        torch.testing.assert_close(images, self.seen, atol=1e-5, rtol=0)
        return self.answer


def test_a_run_opens_with_its_own_architecture(tmp_path, nano_state):
    sam, architecture = load_sam(_run(tmp_path, nano_state))
    assert architecture == "nano"
    assert all(torch.equal(t, nano_state[name]) for name, t in sam.state_dict().items())


def test_a_checkpoint_of_ours_opens_in_plain_segment_anything(tmp_path, monkeypatch):
    # The architecture alone is exchanged for a tiny one: names and shapes are what counts.
    small = Architecture(64, 16, 32, 2, 2, (1,), 2, 256, 2048)
    monkeypatch.setitem(ARCHITECTURES, "vit_b", small)
    root = _run(tmp_path, build_sam("vit_b").state_dict(), "vit_b")
    state = load_file(root / "checkpoints" / "best.safetensors")
    with torch.device("meta"):
        official = sam_model_registry["vit_b"]()
    blocks = {name for name in official.state_dict() if ".blocks." not in name}
    assert blocks == {name for name in state if ".blocks." not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("mask_decoder.iou_token.weight"), r"looks like nano but lacks mask_dec"),
        (lambda s: s.update(extra=torch.zeros(1)), r"looks like nano but has unknown extra"),
        (
            lambda s: s.update({"mask_decoder.iou_token.weight": torch.zeros(2, 2)}),
            r"iou_token\.weight is \[2, 2\], not \[1, 128\]",
        ),
        (lambda s: s.pop("image_encoder.pos_embed"), r"is not a SAM"),
        (
            lambda s: s.update({"image_encoder.pos_embed": torch.zeros(1, 9, 9, 9)}),
            r"no known architecture .*: give one of nano, vit_t, vit_b",
        ),
    ],
)
def test_files_that_do_not_fit_are_one_clear_line(tmp_path, nano_state, change, message):
    state = dict(nano_state)
    change(state)
    with pytest.raises(InputError, match=message) as error:
        load_sam(_pth(tmp_path, state))
    assert "\n" not in str(error.value)
    assert "sam_nano.pth" in str(error.value)


class _Payload:
    def __reduce__(self):
        return print, ("a pickle that runs code",)


@pytest.mark.parametrize("content", ["empty", "text", "half", "code", "list"])
def test_damaged_and_foreign_files_are_one_clear_line(tmp_path, nano_state, content, capfd):
    path = _pth(tmp_path, nano_state)
    if content == "empty":
        path.write_bytes(b"")
    elif content == "text":
        path.write_text("<html>not found</html>")
    elif content == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content == "code":
        torch.save({"a": _Payload()}, path)
    else:
        torch.save([1, 2], path)
    with pytest.raises(InputError, match=r"sam_nano\.pth: is") as error:
        load_sam(path)
    assert "\n" not in str(error.value)
    assert "runs code" not in capfd.readouterr().out


def test_missing_weights_say_what_may_be_given(tmp_path):
    with pytest.raises(InputError, match="no such weights: give an official file"):
        load_sam(tmp_path / "nothing.pth")


def test_a_damaged_run_is_named(tmp_path, nano_state):
    root = _run(tmp_path, nano_state)
    (root / "checkpoints" / "best.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match=r"best\.safetensors: is damaged"):
        load_sam(root)
    RunFolder(root).write_model({"architecture": "vit_z"})
    with pytest.raises(InputError, match="names no known architecture"):
        load_sam(root)
