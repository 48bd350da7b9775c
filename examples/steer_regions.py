"""Keep two subjects apart in a model that paints, and see by how much: masses, and a receipt.

Run it: python examples/steer_regions.py (a tiny model with random weights: masses, no pictures)
"""

import torch
from diffusers import UNet2DConditionModel

import regard
from regard.controls import Region
from regard.controls.diffusion import BoundedAttention, Subject
from regard.models.diffusers import branches


def main():
    """Print what words and regions get of each other, without and with the control."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16,
        attention_head_dim=4,
    ).eval()  # fmt: skip
    # Text tokens 1 and 2 are to be on the left, token 4 on the right.
    subjects = [
        Subject((1, 2), Region(box=(0, 0, 1, 0.5))),
        Subject(4, Region(box=(0, 0.5, 1, 1))),
    ]
    latents, text = torch.randn(1, 4, 8, 12), torch.randn(2, 6, 16)
    for regions in ("forbidden", "alternate", "free"):
        control = BoundedAttention(subjects, regions=regions)
        with (
            regard.steer(model, control, measure="all", check=False) as steered,
            branches("unconditional", "conditional"),
            torch.no_grad(),
        ):
            model(torch.cat((latents, latents)), torch.tensor([9.0]), text)
        print(f"regions are {regions}")
        print(steered.receipt)


if __name__ == "__main__":
    main()
