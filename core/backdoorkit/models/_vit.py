"""A vision transformer for small images, made of torch's own attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backdoorkit.contracts import Architecture
from backdoorkit.errors import InputError
from backdoorkit.models._building import require_images, size_text
from backdoorkit.models.catalog import ViTConfig

__all__ = ["VisionTransformer", "VisionTransformerArchitecture"]


class EncoderBlock(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm and beside a skip."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        attended, _ = self.attention(normed, normed, normed, need_weights=False)
        tokens = tokens + attended
        mixed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed


class VisionTransformer(nn.Module):
    """Patches to tokens of ``dim`` numbers, encoder blocks, logits from the class token."""

    def __init__(
        self, config: ViTConfig, image_shape: tuple[int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        size, dim = config.patch_size, config.dim
        self.patches = nn.Conv2d(channels, dim, size, stride=size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        count = (height // size) * (width // size)
        self.positions = nn.Parameter(torch.zeros(1, 1 + count, dim))
        self.blocks = nn.Sequential(*(EncoderBlock(dim, config.heads) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self._initialize()

    def _initialize(self) -> None:
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            # Attention initialises its joint input projection by itself (Xavier).
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N x K)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        first = self.class_token.expand(len(images), -1, -1)
        tokens = self.blocks(torch.cat((first, tokens), dim=1) + self.positions)
        logits: Tensor = self.head(self.norm(tokens)[:, 0])
        return logits


class VisionTransformerArchitecture(Architecture[ViTConfig]):
    """Dosovitskiy et al.: An image is worth 16x16 words, ICLR 2021; smaller, for small images."""

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> VisionTransformer:
        """The network; both sides of the image must be multiples of the patch size."""
        size = self.config.patch_size
        require_images("vit", image_shape, num_classes, least=size)
        _, height, width = image_shape
        if height % size or width % size:
            raise InputError(
                f"vit cuts images into patches of {size} x {size} pixels, which do not tile "
                f"{size_text(image_shape)}; set patch_size to a divisor of both sides"
            )
        return VisionTransformer(self.config, image_shape, num_classes)
