"""The peers' networks: the published architectures in plain PyTorch, with the names of the published weights.

MobileNet-V2 (Sandler et al. 2018, arXiv 1801.04381) in the variant of arXiv 2503.13008, and the residual networks of
He et al. 2015 (arXiv 1512.03385), section 4.2. Runs in the peers' environment, which has no Keras.
"""

from collections.abc import Sequence

import torch
from torch import nn

STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and first stride of each stage of inverted residuals."""


def conv_norm_relu(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return convolution, batch normalization and ReLU6."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection, and a shortcut where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int):
        super().__init__()
        hidden = inputs * expansion
        expand = [conv_norm_relu(inputs, hidden, 1)] if expansion != 1 else []
        project = [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*expand, conv_norm_relu(hidden, hidden, 3, stride, groups=hidden), *project)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B,C,H,W] to [B,C',H',W']."""
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """The first 19 - `drop_blocks` feature blocks and a classifier, for 32x32 images in [0,1]."""

    def __init__(self, classes: int = 10, drop_blocks: int = 0):
        super().__init__()
        blocks: list[nn.Module] = [conv_norm_relu(3, 32, 3)]
        widths = [32]
        for expansion, channels, repeats, first_stride in STAGES:
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                blocks.append(InvertedResidual(widths[-1], channels, expansion, stride))
                widths.append(channels)
        blocks.append(conv_norm_relu(widths[-1], 1280, 1))
        widths.append(1280)
        kept = len(blocks) - drop_blocks
        self.features = nn.Sequential(*blocks[:kept])
        self.classifier = nn.Sequential(nn.Dropout(0.0 if drop_blocks else 0.2), nn.Linear(widths[kept - 1], classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [B,3,H,W] to logits [B,classes]."""
        return self.classifier(self.features(x).mean((2, 3)))


class Residual(nn.Module):
    """Two convolutions and a shortcut without parameters (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        # captum requires that each module is used only once
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.stride, self.missing = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B,C,H,W] to [B,C',H',W']."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.missing:
            half = self.missing // 2
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.missing - half))
        return self.relu2(y + x)


class ResNet(nn.Module):
    """ResNet of depth 6n + 2 for 32x32 images in [0,1]; its first operation is the input normalization."""

    def __init__(self, depth: int, classes: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        for number, (inputs, outputs, stride) in enumerate([(16, 16, 1), (16, 32, 2), (32, 64, 2)], start=1):
            blocks = [Residual(inputs, outputs, stride)]
            blocks += [Residual(outputs, outputs, 1) for _ in range((depth - 2) // 6 - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [B,3,H,W] to logits [B,classes]."""
        x = self.relu(self.bn1(self.conv1((x - self.mean) / self.std)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class ConvNet(nn.Module):
    """A whitening stem that does not learn, three blocks of two 3x3 convolutions, global max pooling and a head.

    The fast network of Jordan 2024 (arXiv 2404.00498) without its initialization, which costs no time.
    """

    def __init__(self, classes: int = 10, widths: Sequence[int] = (64, 256, 256)):
        super().__init__()
        self.whitening = nn.Conv2d(3, 24, 2, bias=False).requires_grad_(False)
        channels, layers = 24, []
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.MaxPool2d(2)]
            layers += [_shifted_norm(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False)]
            layers += [_shifted_norm(width), nn.ReLU()]
            channels = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [B,3,H,W] to logits [B,classes]."""
        x = self.blocks(torch.relu(self.whitening(x)))
        return self.head(x.amax((2, 3))) / 9


def _shifted_norm(channels: int) -> nn.BatchNorm2d:
    """Return batch normalization whose scale does not learn."""
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm
