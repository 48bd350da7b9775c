"""A bright cell is cropped at the smallest size; sums over boxes are those of brute force."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.controls.crops import Crop, best_crop, box_sums, relative_map, with_crop
from regard.core.errors import need
from regard.papers.checks import Claims, check
from regard.papers.claims import FLOAT32, FLOAT64, claim
from regard.papers.shared.measure import gap

BASE = 3


def _image_tokens(pixels: Tensor, prompt: int = 4) -> int:
    """Count the tokens that a small random Llava reads of pictures [n, 3, 24, 24], text apart."""
    transformers = need("transformers", "hf", "has the model")
    model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            image_size=24, patch_size=4, projection_dim=16,
        ),
        text_config=transformers.LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2,
        ),
        image_token_index=63, vision_feature_layer=-1,
    )).eval()  # fmt: skip
    found = model.model.get_image_features(pixels)
    features = getattr(found, "pooler_output", found)  # one for each picture
    each = sum(len(x) for x in features)
    ids = torch.tensor([[1] + [63] * each + [5] * (prompt - 1)])
    # The model refuses a prompt whose places for images are not as many as their features.
    return int(model(input_ids=ids, pixel_values=pixels).logits.shape[1]) - prompt


@check(
    "vicrop",
    beyond="questions about small details of pictures",
)
def vicrop() -> Claims:
    """A bright cell is cropped at the smallest size; sums over boxes are those of brute force."""
    inside, sizes = 0, []
    for _ in range(50):
        found = 0.01 * torch.rand(12, 17, dtype=torch.float64)
        y, x = int(torch.randint(0, 12, ())), int(torch.randint(0, 17, ()))
        found[y, x] = 1.0
        crop = best_crop(found, BASE)
        inside += crop.top <= y < crop.bottom and crop.left <= x < crop.right
        sizes.append(crop.bottom - crop.top)
    some = torch.rand(9, 11, dtype=torch.float64)
    ones = relative_map(some, some)
    apart = 0.0
    for side in range(1, 8):
        brute = torch.stack(
            [
                torch.stack([some[a : a + side, b : b + side].sum() for b in range(12 - side)])
                for a in range(10 - side)
            ]
        )
        apart = max(apart, gap(box_sums(some, side), brute))
    yield claim("Planted bright cell", "of 50 maps, crops with the cell", inside).equals(50, "all")
    yield claim("Planted bright cell", "largest side", max(sizes)).equals(BASE, "the smallest size")
    picture = torch.randn(3, 24, 24)
    with torch.no_grad():
        alone = _image_tokens(picture[None])
        both = with_crop(picture, Crop(0, 0, 6, 6, 0.0), (6, 6))
        twice = _image_tokens(both)
    yield claim("Appending a crop", "image tokens with a crop of the whole picture", twice).equals(
        2 * alone, "twice those of the picture"
    )
    yield claim("Appending a crop", "difference of that crop", gap(both[1], both[0])).within(
        1e-5, "the picture", because=FLOAT32
    )
    yield claim("q'=q gives", "distance from ones", gap(ones, torch.ones_like(ones))).equals(
        0.0, "ones"
    )
    yield claim("Box search by integral image", "difference of sums", apart).within(
        1e-12, "sums of every box", because=FLOAT64
    )
