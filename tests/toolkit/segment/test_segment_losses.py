from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torchvision
from torch.nn import functional as F

from converters.errors import InputError
from toolkit import config as configs
from toolkit.commands import COMMANDS
from toolkit.config import FinetuneSamConfig, build, to_yaml
from toolkit.config.losses import MASK_LOSS_NAMES, PRESETS
from toolkit.segment.losses import (
    MASK_LOSSES,
    MEDSAM_LOSSES,
    SAM_LOSSES,
    Criterion,
    binary_targets,
    boundary_loss,
    cross_entropy,
    dice_loss,
    focal_loss,
    iou_loss,
    mask_iou,
    signed_distances,
)

ALL = Criterion({"focal": 20, "dice": 1, "bce": 1, "boundary": 5, "iou": 1})


def _square(cells=8, low=2, high=6):
    target = torch.zeros(1, cells, cells)
    target[:, low:high, low:high] = 1
    return target


def _logits(target, strength=20.0):
    return strength * (target * 2 - 1)


def _random(n=3, m=1, cells=8, dtype=torch.float32, seed=0):
    """Logits, estimates, soft targets, and images of which the right quarter is padding."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, m, cells, cells, generator=random, dtype=dtype)
    estimates = torch.rand(n, m, generator=random, dtype=dtype)
    inside = torch.ones(n, cells, cells, dtype=dtype)
    inside[..., cells * 3 // 4 :] = 0
    targets = torch.rand(n, cells, cells, generator=random, dtype=dtype)
    return logits, estimates, (targets - 0.4).clamp(min=0) * inside, inside


def _cells(inside):
    return [tuple(cell) for cell in inside.nonzero().tolist()]


class TestMaskLosses:
    inside = torch.ones(1, 8, 8)

    def test_pixel_losses_are_means_over_the_cells_of_the_image(self):
        logits, _, targets, inside = _random(n=1, dtype=torch.float64)
        entropies, focal = [], []
        for index in _cells(inside):
            p, t = logits[0][index].sigmoid().item(), targets[index].item()
            entropies.append(-t * math.log(p) - (1 - t) * math.log(1 - p))
            focal.append(abs(t - p) ** 2 * entropies[-1])
        for loss, values in ((cross_entropy, entropies), (focal_loss, focal)):
            expected = sum(values) / len(values)
            assert loss(logits[0], targets, inside).item() == pytest.approx(expected, rel=1e-9)

    def test_focal_equals_the_published_form_on_hard_targets(self):
        torch.manual_seed(0)
        logits, target = torch.randn(1, 8, 8), _square()
        expected = torchvision.ops.sigmoid_focal_loss(logits, target, alpha=-1, reduction="mean")
        torch.testing.assert_close(focal_loss(logits, target, self.inside)[0], expected)

    def test_focal_is_least_where_the_probability_is_the_share(self):
        share = torch.full((1, 1, 1), 0.3)
        losses = [
            focal_loss(torch.tensor([[[p]]]).logit(), share, torch.ones(1, 1, 1)).item()
            for p in (0.1, 0.3, 0.5)
        ]
        assert losses[1] == min(losses)

    def test_dice_is_one_minus_twice_the_overlap_over_both(self):
        # 4 of 16 cells right, 4 wrong, at probability one: (2 * 4 + 1) / (8 + 16 + 1).
        mask = torch.zeros(1, 8, 8)
        mask[:, 2, :] = 1
        loss = dice_loss(_logits(mask, 100), _square(), self.inside)
        assert loss.item() == pytest.approx(1 - 9 / 25)

    @pytest.mark.parametrize("loss", [*MASK_LOSSES.values(), mask_iou])
    def test_padding_counts_nowhere(self, loss):
        target, inside = _square(), torch.ones(1, 8, 8)
        inside[:, 6:] = 0
        quiet, loud = torch.randn(1, 8, 8), torch.zeros(1, 8, 8)
        loud[:, 6:] = 50
        assert torch.equal(loss(quiet, target, inside), loss(quiet + loud, target, inside))

    def test_iou_counts_shares(self):
        logits = _logits(_square(), 1)
        assert mask_iou(logits, _square() * 0.5, self.inside).item() == pytest.approx(0.5)

    def test_the_error_of_an_estimate_is_squared_and_teaches_the_estimate_alone(self):
        logits = _logits(_square(), 1).requires_grad_()
        estimates = torch.tensor([0.8], requires_grad=True)
        loss = iou_loss(logits, estimates, _square() * 0.5, self.inside)
        assert loss.tolist() == pytest.approx([0.09])
        assert torch.autograd.grad(loss.sum(), estimates)[0].item() == pytest.approx(0.6)
        assert not mask_iou(logits, _square(), self.inside).requires_grad

    @pytest.mark.parametrize("loss", MASK_LOSSES.values(), ids=MASK_LOSSES)
    def test_gradients_are_those_of_the_values(self, loss):
        logits, _, targets, inside = _random(n=2, m=2, cells=5, dtype=torch.float64)
        targets, inside = targets[:, None], inside[:, None]
        logits.requires_grad_()
        assert torch.autograd.gradcheck(lambda x: loss(x, targets, inside), (logits,))


class TestBoundary:
    def test_distances_are_those_between_cells_to_the_edge_between_them(self):
        """Against all pairs of cells."""
        _, _, targets, inside = _random(n=4, cells=12, seed=1)
        masks = (targets > 0.4).float()
        found = signed_distances(masks, inside)
        for n in range(4):
            cells = _cells(inside[n])
            of = {bool(v): [c for c in cells if masks[n][c] == v] for v in (0, 1)}
            assert of[True] and of[False]
            for cell in cells:
                own = bool(masks[n][cell])
                away = min(math.dist(cell, other) for other in of[not own]) - 0.5
                expected = (-away if own else away) / 12
                assert found[n][cell].item() == pytest.approx(expected, abs=1e-6)

    def test_the_end_of_the_image_is_no_edge(self):
        masks, inside = torch.zeros(1, 8, 8), torch.ones(1, 8, 8)
        masks[..., 3:6], inside[..., 6:] = 1, 0
        distances = signed_distances(masks, inside)[..., :6] * 8
        expected = torch.tensor([2.5, 1.5, 0.5, -0.5, -1.5, -2.5]).expand(1, 8, 6)
        torch.testing.assert_close(distances, expected)

    def test_without_an_edge_every_distance_is_one_side(self):
        masks = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])
        distances = signed_distances(masks, torch.ones(2, 4, 4))
        assert distances[0].eq(1).all() and distances[1].eq(-1).all()

    def test_it_is_the_mean_of_probability_times_distance_but_for_a_constant(self):
        logits, _, targets, inside = _random(n=2)
        masks = binary_targets(targets)
        distances = signed_distances(masks, inside)
        published, constant = (
            torch.stack([sum(p[n][c] * distances[n][c] for c in _cells(inside[n])) for n in (0, 1)])
            for p in (logits[:, 0].sigmoid(), masks)
        )
        expected = (published - constant) / inside.sum((-2, -1))
        torch.testing.assert_close(boundary_loss(logits[:, 0], targets, inside), expected)

    def test_nothing_for_the_right_mask_and_more_the_farther_it_is_shifted(self):
        target = _square(32, 12, 20)
        inside = torch.ones(1, 32, 32)
        losses = [
            boundary_loss(_logits(target.roll(shift, -1)), target, inside).item()
            for shift in range(12)
        ]
        assert losses[0] == pytest.approx(0, abs=1e-7)
        assert all(b > a + 1e-4 for a, b in pairwise(losses))

    def test_it_does_not_depend_on_the_number_of_cells(self):
        coarse, fine = (
            boundary_loss(
                _logits(_square(cells, cells // 4, cells // 2)),
                _square(cells, cells // 2, cells * 3 // 4),
                torch.ones(1, cells, cells),
            ).item()
            for cells in (32, 128)
        )
        assert coarse == pytest.approx(fine, rel=0.05)

    def test_the_edge_of_a_wide_defect_is_where_half_of_a_cell_is_covered(self):
        target = _square()
        target[:, 6, 2:6], target[:, 1, 2:6] = 0.6, 0.4
        assert torch.equal(binary_targets(target), (target >= 0.5).float())

    def test_a_scratch_thinner_than_a_cell_stays_in_all_its_length(self):
        target = _square(16, 9, 15)
        target[:, 3, 1:12] = torch.linspace(0.05, 0.3, 11)
        masks = binary_targets(target)
        assert torch.equal(masks, (target > 0).float())
        logits = torch.zeros(1, 16, 16, requires_grad=True)
        boundary_loss(logits, target, torch.ones(1, 16, 16)).sum().backward()
        assert (logits.grad[0, 3, 1:12] < 0).all(), "nothing draws the mask to the scratch"

    def test_an_empty_target_makes_every_false_alarm_count_alike(self):
        target = torch.zeros(1, 8, 8)
        logits = torch.zeros(1, 8, 8, requires_grad=True)
        loss = boundary_loss(logits, target, torch.ones(1, 8, 8))
        assert loss.item() == pytest.approx(0.5)
        assert len(torch.autograd.grad(loss.sum(), logits)[0].unique()) == 1


class TestCriterion:
    def test_the_default_is_what_sam_was_trained_with_to_the_last_bit(self):
        def frozen(logits, estimates, targets, inside):
            entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
            weight = (targets - logits.sigmoid()).abs() ** 2.0 * inside
            focal = ((weight * entropy).sum((-2, -1)) / inside.sum((-2, -1))).mean()
            p = logits.sigmoid() * inside
            total = p.sum((-2, -1)) + targets.sum((-2, -1))
            dice = (1 - (2 * (p * targets).sum((-2, -1)) + 1) / (total + 1)).mean()
            masks = (logits.detach() > 0) * inside
            overlap = masks.minimum(targets).sum((-2, -1))
            union = masks.maximum(targets).sum((-2, -1))
            iou = F.mse_loss(estimates, overlap / union.clamp(min=1e-6))
            return {"loss": 20.0 * focal + dice + iou, "focal": focal, "dice": dice, "iou": iou}

        default = Criterion(FinetuneSamConfig(data=Path("d"), out=Path("r")).loss)
        for n in (1, 7, 16):
            logits, estimates, targets, inside = _random(n=n, cells=96, seed=n)
            logits.requires_grad_()
            estimates.requires_grad_()
            expected = frozen(logits[:, 0], estimates[:, 0], targets, inside)
            found = default(logits, estimates, targets, inside)
            assert list(found) == list(expected)
            assert all(torch.equal(found[name], expected[name]) for name in expected)
            grads = (torch.autograd.grad(x["loss"], (logits, estimates)) for x in (expected, found))
            assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))

    def test_the_right_mask_costs_nothing_and_the_wrong_one_much(self):
        target, inside, sure = _square(), torch.ones(1, 8, 8), torch.ones(1, 1)
        for criterion, least in ((SAM_LOSSES, 20), (MEDSAM_LOSSES, 15), (ALL, 40)):
            right = criterion(_logits(target)[:, None], sure, target, inside)
            wrong = criterion(-_logits(target)[:, None], sure, target, inside)
            assert right["loss"] < 1e-4
            assert wrong["loss"] > least
            assert wrong["iou"] == pytest.approx(1)

    def test_medsam_has_plain_cross_entropy_in_place_of_focal(self):
        target, inside = _square(), torch.ones(1, 8, 8)
        unsure = MEDSAM_LOSSES(torch.zeros(1, 1, 8, 8), torch.ones(1, 1), target, inside)
        assert set(unsure) == {"loss", "bce", "dice", "iou"}
        assert unsure["bce"] == pytest.approx(math.log(2))
        assert unsure["loss"] == pytest.approx(
            float(sum(unsure[k] for k in ("bce", "dice", "iou")))
        )

    def test_parts_are_told_without_their_weights(self):
        batch = _random()
        parts = ALL(*batch)
        assert set(parts) == {"loss", *ALL.weights}
        total = sum(weight * parts[name] for name, weight in ALL.weights.items())
        assert parts["loss"].item() == pytest.approx(float(total))
        alone = Criterion({"dice": 0.5})(*batch)
        assert set(alone) == {"loss", "dice"}
        assert alone["loss"].item() == pytest.approx(0.5 * parts["dice"].item())

    def test_a_loss_of_weight_0_is_measured_and_teaches_nothing(self):
        logits, estimates, targets, inside = _random()
        estimates.requires_grad_()
        found = Criterion({"dice": 1, "iou": 0})(logits, estimates, targets, inside)
        assert found["iou"] > 0
        assert torch.equal(found["loss"], found["dice"])
        assert not torch.autograd.grad(found["loss"], estimates)[0].any()

    def test_the_best_of_three_masks_learns_alone_and_all_estimates_do(self):
        targets = torch.cat([_square(), _square(low=0, high=3), _square(low=5, high=8)])
        inside = torch.ones(3, 8, 8)
        best = [2, 0, 1]
        logits = torch.full((3, 3, 8, 8), -1.0)
        for n, m in enumerate(best):
            logits[n, m] += 2 * targets[n]  # barely right, where the others see nothing
        logits.requires_grad_()
        estimates = torch.full((3, 3), 0.5, requires_grad=True)
        found = ALL(logits, estimates, targets, inside)
        found["loss"].backward()
        learns = logits.grad.abs().sum((-2, -1)) > 0
        assert learns.nonzero().tolist() == [[n, m] for n, m in enumerate(best)]
        assert (estimates.grad != 0).all()

        chosen = logits.detach()[range(3), best][:, None]
        alone = ALL(chosen, estimates.detach()[:, :1], targets, inside)
        for name in MASK_LOSS_NAMES:
            assert found[name].item() == pytest.approx(alone[name].item())
        # One estimate of 0.5 is of an IoU of 1, two of an IoU of 0.
        assert found["iou"].item() == pytest.approx(0.25)

    def test_the_best_mask_is_that_of_the_weighed_sum(self):
        """Four cells wrong at the edge cost more entropy than two far away, but less distance."""
        target, inside = _square(16, 1, 5), torch.ones(1, 16, 16)
        near, far = _logits(target, 8), _logits(target, 8)
        near[:, 1:5, 5] = 8
        far[:, 14:, 15] = 8

        def chosen(**weights):
            logits = torch.stack([near, far], 1).requires_grad_()
            Criterion(weights)(logits, torch.zeros(1, 2), target, inside)["loss"].backward()
            return logits.grad.abs().sum((-2, -1)).argmax().item()

        assert chosen(bce=1) == chosen(bce=1, boundary=5) == 1
        assert chosen(boundary=1) == chosen(bce=1, boundary=20) == 0

    def test_gradients_of_several_masks_are_those_of_the_loss(self):
        logits, estimates, targets, inside = _random(n=2, m=3, cells=5, dtype=torch.float64)
        arguments = (logits.requires_grad_(), estimates.requires_grad_())
        assert torch.autograd.gradcheck(lambda x, e: ALL(x, e, targets, inside)["loss"], arguments)

    @pytest.mark.parametrize("masks", [1, 3])
    def test_a_prompt_without_an_object_teaches_a_low_estimate_and_leaves_masks_alone(self, masks):
        logits, estimates, targets, inside = _random(n=3, m=masks)
        targets[1] = 0
        logits.requires_grad_(), estimates.requires_grad_()
        found = ALL(logits, estimates, targets, inside)
        found["loss"].backward()
        assert not logits.grad[1].any()
        assert logits.grad[[0, 2]].flatten(1).any(1).all()
        assert torch.allclose(estimates.grad[1], 2 * estimates.detach()[1] / estimates.numel())
        others = ALL(logits[[0, 2]], estimates[[0, 2]], targets[[0, 2]], inside[[0, 2]])
        assert all(found[name].item() == others[name].item() for name in MASK_LOSS_NAMES)

    def test_prompts_without_any_object_have_losses_that_are_0_and_gradients(self):
        logits, estimates, targets, inside = _random(n=2, m=1)
        logits.requires_grad_(), estimates.requires_grad_()
        found = ALL(logits, estimates, torch.zeros_like(targets), inside)
        found["loss"].backward()
        assert all(found[name].item() == 0 for name in MASK_LOSS_NAMES)
        assert not logits.grad.any() and estimates.grad.all()

    def test_the_estimate_for_nothing_with_nothing_is_to_be_0(self):
        empty, inside = torch.zeros(1, 8, 8), torch.ones(1, 8, 8)
        assert mask_iou(empty - 5, empty, inside).item() == 0
        found = SAM_LOSSES(empty[:, None] - 30, torch.full((1, 1), 0.5), empty, inside)
        assert found["iou"].item() == pytest.approx(0.25)
        assert found["loss"].item() == pytest.approx(0.25, abs=1e-4)

    def test_masks_without_an_estimate_each_are_refused(self):
        logits, _, targets, inside = _random(n=3, m=3)
        with pytest.raises(ValueError, match=r"\(3, 3, 8, 8\) have estimates of \(3, 1\)"):
            SAM_LOSSES(logits, torch.ones(3, 1), targets, inside)


REQUIRED = {"data": "d", "out": "r"}


class TestWeights:
    def _read(self, value):
        return build(configs.FinetuneSamConfig, None, {**REQUIRED, "loss": value}).loss

    def test_every_name_has_a_loss(self):
        assert tuple(MASK_LOSSES) == MASK_LOSS_NAMES

    def test_pairs_a_mapping_and_a_preset_say_the_same(self):
        for value in ("iou=1, dice=1,focal=2e1", {"dice": "1", "focal": 20, "iou": 1.0}, "sam"):
            assert list(self._read(value).items()) == [("focal", 20), ("dice", 1), ("iou", 1)]
        assert self._read("medsam") == PRESETS["medsam"]
        assert build(configs.FinetuneSamConfig, None, REQUIRED).loss == PRESETS["sam"]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("focl=20", "loss: no loss is called 'focl': did you mean 'focal'?"),
            ({"x": 1}, "loss: no loss is called 'x': known: focal, dice, bce, boundary, iou"),
            ("focal=-1", "loss: weight '-1' of focal is negative: give 0 or more"),
            ("focal=much", "loss: weight 'much' of focal is no finite number: write focal=1"),
            ("focal=", "loss: weight '' of focal is no finite number: write focal=1"),
            ("focal=nan", "loss: weight 'nan' of focal is no finite number: write focal=1"),
            ({"dice": True}, "loss: weight True of dice is no finite number: write dice=1"),
            ({"dice": None}, "loss: weight None of dice is no finite number: write dice=1"),
            ("focal", "loss: 'focal' has no weight: write focal=1"),
            ("dice=1,focal", "loss: 'focal' has no weight: write focal=1"),
            ("medsm", "loss: 'medsm' is no preset and has no weight: did you mean 'medsam'?"),
            ("dice=1,dice=2", "loss: dice comes twice: give it one weight"),
            ("iou=1", "loss: nothing tells masks what is right: give one of focal, dice, bce, "),
            ("focal=0,iou=1", "loss: nothing tells masks what is right: give one of focal, "),
            ("", "loss: nothing tells masks what is right: give one of focal, "),
            (3, "loss: 3 gives no weights by name: write focal=20,dice=1,iou=1"),
        ],
    )
    def test_wrong_weights_are_refused_in_one_line(self, value, message):
        with pytest.raises(InputError) as error:
            self._read(value)
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)

    def test_a_criterion_checks_its_weights_too(self):
        with pytest.raises(ValueError, match="no loss is called 'focl'"):
            Criterion({"focl": 1})

    def test_weights_in_a_file_are_read_back(self, tmp_path):
        config = build(configs.FinetuneSamConfig, None, {**REQUIRED, "loss": "dice=.5,bce=1"})
        file = tmp_path / "c.yaml"
        file.write_text(to_yaml(config))
        assert build(configs.FinetuneSamConfig, file, {}) == config
        file.write_text("loss: {dice: 1, boundery: 2}\n")
        with pytest.raises(InputError, match=r"c\.yaml: loss: .* did you mean 'boundary'\?"):
            build(configs.FinetuneSamConfig, file, REQUIRED)

    def test_the_command_line_gives_the_weights_back(self):
        command = COMMANDS["finetune sam"]
        config = build(configs.FinetuneSamConfig, None, {**REQUIRED, "loss": "dice=.5,bce=1"})
        line = command.line("finetune sam", config)
        assert line == "toolkit finetune sam --data d --out r --loss dice=0.5,bce=1"
        words = line.split()
        again = dict(zip((w[2:] for w in words[3::2]), words[4::2], strict=True))
        assert build(configs.FinetuneSamConfig, None, again) == config
        assert "--loss" not in command.line("finetune sam", FinetuneSamConfig(**REQUIRED))
