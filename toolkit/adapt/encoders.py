"""Encoders that can be adapted, and how each is written so that its own command starts from it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast, get_args

import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from converters.errors import InputError
from toolkit.adapt.private import DomainName, PrivateConvolution, grey_direction
from toolkit.architectures import ResNetName
from toolkit.classify.data import DEVIATION, MEAN
from toolkit.classify.model import Architecture, build_resnet
from toolkit.classify.weights import Description, load_backbone
from toolkit.config import AdaptConfig
from toolkit.runs import RunFolder

if TYPE_CHECKING:
    from toolkit.detect.weights import StartingPoint
    from toolkit.segment.sam import Sam

Channels = Mapping[DomainName, int]
"""Of each domain: 3, or 1 where its pictures are grey."""


class Encoder(nn.Module):
    """A network from pictures to features, whose first convolution is partly private.

    Private are the deviation of that convolution and the statistics of batch norms, which each
    batch of one domain takes from itself and which are those of the target in the end (AdaBN, Li et
    al., arXiv 1603.04779); on drawn shapes they alone raised the balanced accuracy of a target
    without labels from chance (1/3) to 0.69. What is deeper is shared: private layers that see more
    of a picture can map the classes of a target without labels onto the wrong ones of the source,
    and nothing that makes the domains alike would notice.

    Attributes:
        network: the plain network, its first convolution in a ``PrivateConvolution``.
        width: channels of the features.
        model: what the network is called.
    """

    def __init__(self, network: nn.Module, first: str, channels: Channels, grey: Tensor) -> None:
        """Wrap a network.

        Args:
            network: the plain one.
            first: name of its first convolution.
            channels: of each domain.
            grey: see ``grey_direction``.
        """
        super().__init__()
        parent, _, name = first.rpartition(".")
        owner = network.get_submodule(parent)
        self._first = first
        shared = cast(nn.Conv2d, getattr(owner, name))
        setattr(owner, name, PrivateConvolution(shared, channels, grey))
        self.network = network
        self.width = 0
        self.model = ""

    @property
    def private(self) -> PrivateConvolution:
        """The first convolution."""
        return cast(PrivateConvolution, self.network.get_submodule(self._first))

    def features(self, pictures: Tensor, domain: DomainName) -> Tensor:
        """Features of a domain's pictures.

        Args:
            pictures: normalised as for torchvision's networks, shape (n, 3, height, width).
            domain: whose they are.

        Returns:
            shape (n, width).
        """
        self.private.domain = domain
        return self.encode(pictures)

    @abstractmethod
    def encode(self, pictures: Tensor) -> Tensor:
        """As ``features``, of the domain that was said."""

    def state(self) -> dict[str, Tensor]:
        """The plain network of the target, by its own names."""
        state: dict[str, Tensor] = {}
        for name, tensor in self.network.state_dict().items():
            if name.startswith(f"{self._first}.private."):
                continue
            state[name.replace(f"{self._first}.shared.", f"{self._first}.")] = tensor
        state[f"{self._first}.weight"] = self.private.kernels("target").detach()
        return state

    def with_head(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """The same, with a linear layer from features to the target's classes where it has one."""
        del weight, bias
        return self.state()

    @abstractmethod
    def describe(self, run: RunFolder, classes: tuple[str, ...], image_size: int) -> None:
        """Write what is needed to build the network again, in the run's ``checkpoints/``."""


class ResNetEncoder(Encoder):
    """A ResNet, pooled. ``head`` is the layer that it came with."""

    def __init__(self, network: ResNet, architecture: Architecture, channels: Channels) -> None:
        """Take the head off."""
        head = network.fc
        network.fc = nn.Identity()
        super().__init__(network, "conv1", channels, grey_direction(MEAN, DEVIATION))
        self.width, self.model = head.in_features, architecture

    def encode(self, pictures: Tensor) -> Tensor:
        """As ``Encoder.encode``."""
        return cast(Tensor, self.network(pictures))

    def with_head(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """As ``Encoder.with_head``: torchvision's names."""
        return {**self.state(), "fc.weight": weight, "fc.bias": bias}

    def describe(self, run: RunFolder, classes: tuple[str, ...], image_size: int) -> None:
        """As ``Encoder.describe``: a classifier's."""
        description = Description(cast(Architecture, self.model), classes, image_size)
        run.write_model(description.to_json())


class SamEncoder(Encoder):
    """The image encoder of SAM nano, averaged over the picture; the rest of the SAM stays."""

    def __init__(self, sam: Sam, channels: Channels) -> None:
        """Freeze what does not encode pictures."""
        sam.requires_grad_(False)
        sam.image_encoder.requires_grad_(True)
        # SAM normalises by the same means and deviations, times 255.
        grey = grey_direction(MEAN, DEVIATION)
        super().__init__(sam, "image_encoder.patch_embed.stages.0.0", channels, grey)
        self.width, self.model = sam.embedding_width, "nano"

    def encode(self, pictures: Tensor) -> Tensor:
        """As ``Encoder.encode``; pictures must have the side of SAM nano's input."""
        return cast("Sam", self.network).embed(pictures).mean(dim=(2, 3))

    def describe(self, run: RunFolder, classes: tuple[str, ...], image_size: int) -> None:
        """As ``Encoder.describe``: as ``pretrain sam`` does."""
        del classes, image_size
        run.write_model({"architecture": self.model})


class DetectorEncoder(Encoder):
    """The backbone of YOLO-World, averaged over the picture; neck and head stay."""

    _mean: Tensor
    _deviation: Tensor

    def __init__(self, start: StartingPoint, channels: Channels) -> None:
        """Freeze neck and head."""
        from toolkit.detect.models import backbone_layers

        network, layers = start.model, backbone_layers(start.model)
        network.requires_grad_(False)
        network.model[:layers].requires_grad_(True)
        # A detector takes pixels of 0 to 1 as they are.
        grey = grey_direction((0, 0, 0), (1, 1, 1))
        super().__init__(network, "model.0.conv", channels, grey)
        self._layers, self._start, self.model = layers, start, start.arch
        self.register_buffer("_mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("_deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)
        self.width = network.model[layers - 1].cv2.conv.out_channels

    def encode(self, pictures: Tensor) -> Tensor:
        """As ``Encoder.encode``; sides are multiples of 32."""
        x = pictures * self._deviation + self._mean
        layers = cast(nn.Sequential, self.network.model)
        for layer in layers[: self._layers]:
            x = layer(x)
        return x.mean(dim=(2, 3))

    def describe(self, run: RunFolder, classes: tuple[str, ...], image_size: int) -> None:
        """As ``Encoder.describe``: as ``pretrain yolo`` does, with the embeddings that it had."""
        from toolkit.detect.weights import RunModel, save_description

        start = self._start
        source = f"domain adaptation from {start.source}"
        save_description(
            run,
            RunModel(
                start.model, start.scale, start.embeddings, image_size, source, arch=start.arch
            ),
        )


def open_encoder(
    config: AdaptConfig, classes: tuple[str, ...], channels: Channels
) -> tuple[Encoder, nn.Linear]:
    """What a configuration starts from.

    Args:
        config: with model, weights and seed.
        classes: of the target, "good" first.
        channels: of each domain.

    Returns:
        the encoder, and a layer from its features to the classes: that of the weights where they
        have these very classes, else random.

    Raises:
        InputError: the weights cannot be used.
    """
    torch.manual_seed(config.seed)
    if config.model in get_args(ResNetName):
        network, architecture = _resnet(config, classes)
        head = cast(nn.Linear, network.fc)
        return ResNetEncoder(network, architecture, channels), head
    encoder: Encoder
    if config.model == "nano":
        encoder = _sam(config, channels)
    else:
        encoder = _detector(config, classes, channels)
    return encoder, nn.Linear(encoder.width, len(classes))


def _resnet(config: AdaptConfig, classes: tuple[str, ...]) -> tuple[ResNet, Architecture]:
    name = cast(Architecture, config.model)
    if config.weights == "none":
        return build_resnet(name, len(classes)), name
    return load_backbone(
        config.weights, name if "model" in config.model_fields_set else None, classes
    )


def _sam(config: AdaptConfig, channels: Channels) -> SamEncoder:
    from toolkit.segment.model import build_sam
    from toolkit.segment.weights import load_sam

    if config.weights == "none":
        return SamEncoder(build_sam("nano"), channels)
    sam, name = load_sam(config.weights)
    if name != "nano":
        raise InputError(f"{config.weights}: is {name}: only nano is adapted")
    return SamEncoder(sam, channels)


def _detector(config: AdaptConfig, classes: tuple[str, ...], channels: Channels) -> DetectorEncoder:
    from toolkit.detect.checkpoints import load_starting_point
    from toolkit.detect.embeddings import anchored_embeddings
    from toolkit.detect.models import set_classes

    start = load_starting_point(config.weights, "n", config.seed, trust=False)
    known = start.embeddings or anchored_embeddings(classes[1:], config.seed)
    set_classes(start.model, known)
    return DetectorEncoder(replace(start, embeddings=known), channels)
