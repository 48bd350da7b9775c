"""A whole pipeline, from a prompt to a picture, is seen: its words, its branches, its image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

import regard  # noqa: E402
from regard.models.pipelines import Runner  # noqa: E402
from regard.policies.kinds import Select  # noqa: E402
from regard.probes.words import word_maps  # noqa: E402
from tests.diffusion import build, unet  # noqa: E402

PROMPT = "a red fox"


@pytest.fixture
def pipeline(tmp_path: Path, seed: int) -> Any:
    """Stable Diffusion with a text encoder and a tokenizer of single letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({x: i for i, x in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    pieces += ["re", "red</w>"]
    (tmp_path / "vocab.json").write_text(json.dumps({x: i for i, x in enumerate(pieces)}))
    tokenizer = transformers.CLIPTokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=12
    )
    config = transformers.CLIPTextConfig(
        vocab_size=len(pieces), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=12, bos_token_id=52, eos_token_id=53,
    )  # fmt: skip
    model, _ = build(unet)
    made = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        text_encoder=transformers.CLIPTextModel(config).eval(),
        tokenizer=tokenizer,
        unet=model,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def told(**more: Any) -> dict[str, Any]:
    given = {"prompt": PROMPT, "num_inference_steps": 2, "height": 8, "width": 16}
    return {**given, "generator": torch.Generator().manual_seed(0), **more}


def test_a_prompt_is_seen(pipeline: Any, tmp_path: Path) -> None:
    plain = np.asarray(pipeline(**told()).images[0])
    seen = regard.see(pipeline, told())
    maps = seen.words_seen
    assert maps is not None
    assert maps.branch == "conditional"
    assert "".join(maps.words[1:-1]) == PROMPT.replace(" ", "")
    assert maps.words[2] == "red"
    assert maps.index("fox") == [3, 4, 5]
    assert maps.steps == [0, 1]
    assert maps.grid == (8, 16)
    assert seen.image is not None
    assert np.array_equal(seen.image, plain)  # looking changes nothing
    assert {"words", "entropy"} <= set(seen.scores)
    run = seen.run()
    assert run.arrays["words/0"].shape == (3, len(maps.words), 8, 16)
    assert run.manifest["words"]["tokens"] == list(maps.words)
    assert seen.save(tmp_path / "x.html").exists()


def test_a_word_stands_where_the_model_reads_it(pipeline: Any) -> None:
    """Another word changes the maps of its own token, and of those that read it."""
    one = {"steps": 0, "heads": [1]}
    a, b, c = (word_maps(pipeline, told(prompt=p), where=one) for p in ("a red", "a red", "a z"))
    assert torch.equal(a.map(), b.map())
    assert a.words[:2] == c.words[:2]
    first = a.sites[0]
    weights = [torch.log(x.found[0, first]) for x in (a, c)]
    # Before the word that differs scores are the same: weights differ by the sum of the row alone.
    change = weights[0][:2] - weights[1][:2]
    assert change[0].allclose(change[1], atol=1e-4)
    assert not (weights[0][2] - weights[1][2]).allclose(change[0], atol=1e-4)


def test_several_images_of_one_prompt_are_one_branch(pipeline: Any) -> None:
    maps = word_maps(pipeline, told(num_images_per_prompt=2))
    other = word_maps(pipeline, told(num_images_per_prompt=2), row=1)
    assert maps.branch == "conditional"
    assert not torch.allclose(maps.map(), other.map())


def test_words_of_a_prompt_that_is_wrapped_are_not_guessed(pipeline: Any) -> None:
    class OtherPipeline(type(pipeline)):  # type: ignore[misc]
        pass

    OtherPipeline.__name__ = "QwenImagePipeline"
    pipeline.__class__ = OtherPipeline
    assert Runner(pipeline).words(PROMPT) == []
    assert word_maps(pipeline, told()).words[0] == "token 0"


def test_an_error_leaves_the_pipeline_as_it_was(pipeline: Any) -> None:
    with pytest.raises(Exception, match="divisible by 8"):
        word_maps(pipeline, told(height=9))
    assert "encode_prompt" not in vars(pipeline)
    hooks = [*pipeline.unet._forward_hooks, *pipeline.unet._forward_pre_hooks]
    assert hooks == []


def test_a_shrunk_pipeline_knows_the_rows_of_each_prompt(pipeline: Any) -> None:
    """One after another, guided and not: the branches are those of the prompt that is painted."""
    seen: list[Any] = []

    class Diary(Select):
        needs_cache = False
        name = "diary"

        def select(self, step: Any) -> Any:
            seen.append(step.call.forward.branches)
            return step.call

    runs = [{"prompt": "a red fox"}, {"prompt": "red"}, {"prompt": "fox", "guidance_scale": 1.0}]
    with regard.shrink(pipeline, Diary(), check=False):
        found = []
        for more in runs:
            seen.clear()
            pipeline(**told(**{"guidance_scale": 4.0, **more}), output_type="latent")
            found.append(set(seen))
    both = {("unconditional", "conditional")}
    assert found == [both, both, {("conditional",)}]
    assert "encode_prompt" not in vars(pipeline)
    with regard.shrink(pipeline, regard.policies.policy("tgate", gate=1), check=False):
        words = [
            pipeline(**told(**more, guidance_scale=4.0), output_type="latent").images
            for more in runs[:2]
        ]
    assert not torch.equal(words[0], words[1])
