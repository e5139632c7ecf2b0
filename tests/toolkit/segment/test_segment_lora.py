from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converters.errors import InputError
from toolkit.segment.learning import choose, rate_factors
from toolkit.segment.lora import (
    AdaptedQkv,
    Base,
    add_lora,
    load_lora,
    lora_parameters,
    merged_state,
    pack_lora,
    state_sha256,
)
from toolkit.segment.model import ARCHITECTURES, Architecture, _build, build_sam, decode, encode

# As the official sizes: windows that do not fill the grid, relative positions, no zoom.
OFFICIAL_LIKE = Architecture(64, 16, 32, 3, 2, (1,), 3, 32, 64)


def _sam(kind):
    torch.manual_seed(3)
    sam = _build(ARCHITECTURES["nano"] if kind == "nano" else OFFICIAL_LIKE)
    with torch.no_grad():  # positions start at zero, and would test nothing
        for name, parameter in sam.named_parameters():
            if "pos" in name:
                parameter.normal_(std=0.1)
    return sam


both = pytest.mark.parametrize("kind", ["nano", "official-like"])


def _predict(sam):
    """Logits and estimates for three boxes on two pictures."""
    generator = torch.Generator().manual_seed(1)
    side = sam.image_encoder.img_size
    images = [
        torch.randint(0, 256, (3, side, side // 2 * k), generator=generator, dtype=torch.uint8)
        for k in (1, 2)
    ]
    boxes = torch.tensor([[10, 20, 30, 50], [5, 5, 40, 30], [20.5, 30.2, 21.0, 60]])
    return decode(sam, encode(sam, images)[[0, 1, 1]], boxes)


def _learn(sam, seed=4):
    """As if adapters and mask decoder had learnt."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lora_parameters(sam).items():
            if name.endswith("_b"):
                parameter.normal_(std=0.3)
        sam.mask_decoder.mask_tokens.weight.add_(0.1)


def _adapted(kind="official-like", rank=4, alpha=None):
    sam = _sam(kind)
    base = Base.of(sam, "base.pth")
    add_lora(sam, rank, alpha)
    _learn(sam)
    return sam, base


@both
@pytest.mark.parametrize("half", [False, True])
@torch.no_grad()
def test_before_they_learn_adapters_change_nothing_bit_for_bit(kind, half):
    sam = _sam(kind)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        before, state = _predict(sam), {n: t.clone() for n, t in sam.state_dict().items()}
        add_lora(sam)
        assert all(map(torch.equal, before, _predict(sam)))
    merged = merged_state(sam)
    assert merged.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in merged.items())


@both
@torch.no_grad()
def test_merged_adapters_do_what_adapters_do(kind):
    sam, _ = _adapted(kind, rank=3, alpha=6.0)
    applied = _predict(sam)
    assert (applied[0] - _predict(_sam(kind))[0]).abs().max() > 0.01
    plain = _sam(kind)
    plain.load_state_dict(merged_state(sam))
    merged = _predict(plain)
    for a, b in zip(applied, merged, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    clear = applied[0].abs() > 1e-4
    assert torch.equal((applied[0] > 0)[clear], (merged[0] > 0)[clear])


@torch.no_grad()
def test_adapters_are_of_queries_and_values_and_as_strong_as_alpha_over_rank():
    change = {}
    for alpha in (None, 4.0, 8.0):
        sam, _ = _adapted(rank=4, alpha=alpha)
        qkv = sam.image_encoder.blocks[0].attn.qkv
        change[alpha] = qkv.merged() - qkv.weight
    queries, keys, values = change[None].chunk(3)
    assert torch.equal(keys, torch.zeros_like(keys))
    assert torch.linalg.matrix_rank(queries) == torch.linalg.matrix_rank(values) == 4
    torch.testing.assert_close(queries, qkv.q_b @ qkv.q_a)
    assert torch.equal(change[None], change[4.0])
    torch.testing.assert_close(change[8.0], 2 * change[4.0])


@both
def test_gradients_reach_the_adapters_and_the_mask_decoder_alone(kind):
    sam, _ = _adapted(kind)
    choose(sam, "lora")
    logits, estimates = _predict(sam)
    (logits.square().mean() + estimates.sum()).backward()
    reached = {n for n, p in sam.named_parameters() if p.grad is not None and p.grad.any()}
    adapters = lora_parameters(sam).keys()
    assert len(adapters) == 4 * len(sam.image_encoder.blocks)
    assert adapters < reached
    assert {name.split(".")[0] for name in reached - adapters} == {"mask_decoder"}
    with_any = {name for name, p in sam.named_parameters() if p.grad is not None}
    assert all(name in adapters or name.startswith("mask_decoder.") for name in with_any)


def test_what_learns_is_what_is_asked_for():
    def parts(learns):
        sam, _ = _adapted()
        choose(sam, learns)
        adapters = lora_parameters(sam)
        learning = {n for n, p in sam.named_parameters() if p.requires_grad}
        return {"adapters" if name in adapters else name.split(".")[0] for name in learning}

    assert parts("decoder") == {"mask_decoder"}
    assert parts("decoder+prompt") == {"mask_decoder", "prompt_encoder"}
    assert parts("lora") == {"mask_decoder", "adapters"}
    assert parts("all") == {"mask_decoder", "prompt_encoder", "image_encoder", "adapters"}


@both
def test_a_file_of_adapters_on_its_base_is_the_model_that_learnt(kind, tmp_path):
    sam, base = _adapted(kind, rank=2, alpha=5.0)
    path = tmp_path / "lora.safetensors"
    path.write_bytes(pack_lora(sam, base))

    again = _sam(kind)
    load_lora(again, path)
    first, second = merged_state(sam), merged_state(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    # Of the decoder, what it did not change is not in there again.
    stored = load_file(path).keys()
    assert stored == {*lora_parameters(sam), "mask_decoder.mask_tokens.weight"}
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["lora"])
    assert description == {
        "rank": 2,
        "alpha": 5.0,
        "base": "base.pth",
        "base_sha256": state_sha256(_sam(kind).state_dict()),
    }


def test_the_file_of_vit_b_is_a_twentieth_of_the_model():
    with torch.device("meta"):
        sam = build_sam("vit_b")
        add_lora(sam, 4)
    size = sum(4 * tensor.numel() for tensor in merged_state(sam).values())
    sam.to_empty(device="cpu")  # memory that nothing touches costs nothing
    with torch.no_grad():
        for parameter in [*sam.mask_decoder.parameters(), *lora_parameters(sam).values()]:
            parameter.zero_()
    decoder = {f"mask_decoder.{n}": t.clone() for n, t in sam.mask_decoder.state_dict().items()}
    with torch.no_grad():  # what gives the masks of ambiguous prompts never learns from a box
        for name, parameter in sam.mask_decoder.named_parameters():
            if not name.startswith(tuple(f"output_hypernetworks_mlps.{k}." for k in (1, 2, 3))):
                parameter.fill_(1)
    content = pack_lora(sam, Base("sam_vit_b_01ec64.pth", "0" * 64, decoder))

    adapters = 4 * sum(parameter.numel() for parameter in lora_parameters(sam).values())
    assert adapters == 4 * 12 * 2 * 2 * 4 * 768  # bytes; blocks; q and v; A and B; rank; width
    hypernetwork = 4 * (2 * (256 * 256 + 256) + 256 * 32 + 32)
    learnt = 4 * sum(parameter.numel() for parameter in sam.mask_decoder.parameters())
    tensors = adapters + learnt - 3 * hypernetwork
    assert tensors < len(content) < tensors + 40_000  # names and shapes
    assert len(content) < 0.042 * size
    assert 15e6 < len(content) < 15.5e6


def test_the_hash_is_of_names_shapes_and_values():
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.0)}
    same = {"b": torch.tensor(1.0), "a": torch.arange(6.0).reshape(3, 2).reshape(2, 3)}
    assert state_sha256(state) == state_sha256(same)
    others = [
        {**state, "a": state["a"].reshape(3, 2)},
        {**state, "a": state["a"].T.contiguous().reshape(2, 3)},
        {**state, "b": torch.tensor(1.0, dtype=torch.float64)},
        {"a": state["a"], "c": state["b"]},
    ]
    assert len({state_sha256(other) for other in [state, *others]}) == 5


QKV = "image_encoder.blocks.0.attn.qkv"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, lora: tensors.pop(f"{QKV}.q_a"), "rank 4 but lacks .*q_a: get a whole"),
        (
            lambda tensors, lora: lora.update(rank=5),
            r"rank 5 but .*q_a is \[4, 32\], not \[5, 32\]",
        ),
        (lambda tensors, lora: tensors.update(x=torch.ones(1)), "has unknown x"),
        (
            lambda tensors, lora: tensors[f"{QKV}.v_b"].fill_(torch.nan),
            "v_b has values that are not finite",
        ),
        (
            lambda tensors, lora: lora.update(base_sha256="ab" * 32),
            r"belongs to the weights base\.pth \(SHA-256 of their state abababababab…\), not to",
        ),
        (lambda tensors, lora: lora.clear(), "holds no adapters: give the lora.safetensors of"),
    ],
)
def test_a_file_that_does_not_fit_is_one_clear_line_and_changes_nothing(tmp_path, change, message):
    sam, base = _adapted()
    path = tmp_path / "lora.safetensors"
    path.write_bytes(pack_lora(sam, base))
    with safe_open(path, "pt") as file:
        lora = json.loads(file.metadata()["lora"])
    tensors = load_file(path)
    change(tensors, lora)
    save_file(tensors, path, {"lora": json.dumps(lora)} if lora else None)
    _refused(path, message)


@pytest.mark.parametrize("content", [None, b"", b"half a file"])
def test_a_damaged_or_missing_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "lora.safetensors"
    if content is not None:
        path.write_bytes(content)
    _refused(path, "no such file" if content is None else "is damaged or no safetensors file")


def _refused(path, message):
    other = _sam("official-like")
    before = state_sha256(other.state_dict())
    with pytest.raises(InputError, match=message) as error:
        load_lora(other, path)
    assert "\n" not in str(error.value)
    assert "lora.safetensors: " in str(error.value)
    assert state_sha256(other.state_dict()) == before


def test_adapters_are_put_on_once_and_no_wider_than_the_encoder(tmp_path):
    sam, base = _adapted()
    path = tmp_path / "lora.safetensors"
    path.write_bytes(pack_lora(sam, base))
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(sam)
    with pytest.raises(ValueError, match="has adapters already"):
        load_lora(sam, path)
    plain = _sam("official-like")
    with pytest.raises(InputError, match=r"lora_rank: 33 is not between 1 and .* width, 32"):
        add_lora(plain, 33)
    assert not any(isinstance(module, AdaptedQkv) for module in plain.modules())
    with pytest.raises(ValueError, match="has no adapters"):
        pack_lora(plain, base)


def test_earlier_blocks_learn_more_slowly():
    sam, _ = _adapted()  # three blocks
    factors = rate_factors(sam, 0.5)
    found = {
        name: factors.get(name, 1.0)
        for name in (
            "image_encoder.pos_embed",
            "image_encoder.patch_embed.proj.weight",
            "image_encoder.blocks.0.norm1.bias",
            "image_encoder.blocks.0.attn.qkv.q_a",
            "image_encoder.blocks.1.attn.rel_pos_h",
            "image_encoder.blocks.2.mlp.lin1.weight",
            "image_encoder.neck.0.weight",
            "prompt_encoder.not_a_point_embed.weight",
            "mask_decoder.iou_token.weight",
        )
    }
    assert found.keys() <= dict(sam.named_parameters()).keys()
    assert list(found.values()) == [1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 2, 1, 1, 1, 1]
    assert set(rate_factors(sam, 1.0).values()) == {1.0}
    stem = rate_factors(_sam("nano"), 0.5)
    assert stem["image_encoder.patch_embed.stages.0.0.weight"] == 1 / 16
