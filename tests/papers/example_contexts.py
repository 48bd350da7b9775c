"""What the examples of controls and schemes take: tiny models, pipelines and ranks, by row.

An example is the text that a page of the paper shows; here its free names get values, and what it
makes is used as a reader would: a steered model runs, and its control has to act.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import regard
from regard.controls import Region, TokenPositions
from regard.core.rule import Rule
from regard.core.support import Causal
from regard.models.loading import load
from regard.schemes import ShardedKeys
from regard.schemes.local_ranks import on_ranks
from tests.architectures import DECODERS, PAIRS, build, sharp_llama

LEFT, RIGHT = Region(box=(0, 0, 1, 0.5)), Region(box=(0, 0.5, 1, 1))
DOCUMENTS = ["def a(): pass", "x = 3", "y = 4"]
IMAGE = 7  # the token of a patch


@dataclass
class Context:
    """Names of an example, and what is done with a model that it steers."""

    names: dict[str, Any]
    use: Callable[[], Any] | None = None
    result: Any = field(default=None, init=False)

    def run(self, call: str) -> None:
        """Run an example; use what it steers, and see that it acted."""
        names = {"regard": regard, **self.names}
        tree = ast.parse(call)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "example", "exec"), names)
        if last is None:
            self.result = names
            return
        self.result = eval(compile(ast.Expression(last.value), "example", "eval"), names)
        if self.use is not None:
            with self.result as steered, torch.no_grad():
                self.use()
            assert steered.receipt.fired > 0
            self.result = steered


def _ids(n: int, low: int = 10) -> Tensor:
    return torch.randint(low, 60, (1, n))


# ---- language models ----


def _llama(layers: int = 4, n: int = 16, **names: Any) -> Context:
    model, ids = sharp_llama(layers), _ids(n)
    return Context({"model": model, "ids": ids, **names}, lambda: model(ids))


def sinks() -> Context:
    """The shipped model, and a text on which head 3 of layer 2 rests on a later token too."""
    model, tokenizer = load(None)
    ids = tokenizer("def f(x):\n    return x\n\n" * 16, return_tensors="pt").input_ids
    return Context({"model": model}, lambda: model(ids))


def options() -> Context:
    """A question of the shipped model with three options."""
    model, tokenizer = load(None)
    ids = tokenizer("A = 1 B = 2 C = 3 is", return_tensors="pt").input_ids
    names = {"model": model, "tokenizer": tokenizer, "found": [(0, 0), (1, 1)]}
    return Context(names, lambda: model(ids))


def documents() -> Context:
    """The shipped model reads three documents."""
    model, tokenizer = load(None)
    names = {"documents": DOCUMENTS, "question": "what is x?", "query": "what is x?"}
    return Context({"model": model, "tokenizer": tokenizer, **names})


def context_guided() -> Context:
    """Rows of heads that tell what is used, and a prompt to go on with."""
    model, ids = sharp_llama(2), _ids(12)
    used = torch.tensor([True, False] * 30)
    features = 0.1 * torch.rand(60, 4) + 0.2 * used[:, None]
    with torch.no_grad():  # what stands in the context is what the model thinks of
        model.lm_head.weight[ids[0]] *= 5
    names = {"features": features, "used": used, "heads": [(0, h) for h in range(4)]}
    more = {"context": TokenPositions(range(8)), "tokenizer": None}
    made = Context({"model": model, **names, **more})
    made.use = lambda: model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    return made


def examples_of_a_task() -> Context:
    """A model that thinks over examples."""
    return Context({"model": sharp_llama(2), "examples": _ids(10)})


def emphasis() -> Context:
    """Two streams of image tokens, in layers from the third on."""
    return _llama(local=TokenPositions((3, 4)), salient=TokenPositions((5,)))


def translator() -> Context:
    """An encoder-decoder, and a source that comes in pieces."""
    model = build("bart", PAIRS["bart"])
    return Context({"model": model, "pieces": list(_ids(12).split(3, 1)), "bos": 2, "eos": -1})


def decoding() -> Context:
    """A model, a prompt, and a risk of what is decoded."""
    hidden = torch.randn(80, 8)
    names = {"hidden": hidden, "made_up": hidden[:, 0] > 0, "risk": lambda said: 0.1 * len(said)}
    return Context({"model": sharp_llama(2), "ids": _ids(6), **names})


def chat() -> Context:
    """The shipped model is told something first, and goes on."""
    model, tokenizer = load(None)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is x?"}]
    ids = tokenizer("Be brief. What is x?", return_tensors="pt").input_ids
    names = {"model": model, "chat": chat, "tokenizer": tokenizer}
    return Context(names, lambda: model.generate(ids, max_new_tokens=4, do_sample=False))


def images_in_a_prompt() -> Context:
    """A model as wide as the channels named, and an image with one patch that is massive there."""
    wide = {**DECODERS["llama"], "hidden_size": 2560, "head_dim": 8, "num_hidden_layers": 4}
    model = build("llama", wide, causal=True)
    model.config.image_token_id = IMAGE
    ids = torch.cat((_ids(3), torch.full((1, 9), IMAGE), _ids(5)), 1)

    def massive(module: Any, given: Any, embedded: Tensor) -> Tensor:
        embedded[:, 5, 1415] = 1e3
        return embedded

    model.model.embed_tokens.register_forward_hook(massive)
    return Context({"model": model}, lambda: model(ids))


def seeing_heads() -> Context:
    """A prompt with an image, and without it."""
    model = sharp_llama(2)
    ids = torch.cat((_ids(4), _ids(8)), 1)
    hidden = (torch.arange(12) >= 4).long()[None]
    inputs = {"input_ids": ids}
    names = {"inputs": inputs, "without_image": {**inputs, "attention_mask": hidden}}
    return Context({"model": model, **names}, lambda: model(**inputs))


def crops() -> Context:
    """Two maps of 24 x 24 patches."""
    maps = torch.rand(2, 24, 24) + 0.1
    return Context({"asked": maps[0], "general": maps[1], "image": SimpleNamespace(size=(48, 48))})


# ---- ranks ----


def ranks(key: str, call: str) -> None:
    """Run an example on two ranks that are threads, and compare with one process."""
    b, h, n, d = 1, 4, 16, 8
    q, k, v = (torch.randn(b, h, n, d) for _ in range(3))
    rule = Rule(Causal())
    half = [slice(0, n // 2), slice(n // 2, n)]

    def one(peers: Any) -> Any:
        mine = half[peers.rank]
        own = [x[:, :, mine] for x in (q, k, v)]
        names = dict(zip("qkv", own, strict=True))
        keys = ShardedKeys.of(own[1], own[2], peers)
        made = Context({**names, "keys": keys, "mesh": peers, "rule": rule,
                        "frames": n, "world": 2})  # fmt: skip
        made.run(call)
        return made.result

    found = on_ranks(2, one)
    if key == "lasp2":
        whole, _ = regard.scan(q, k, v, log_decay=-0.1)
        parts = [x["out"] for x in found]
    else:
        if key == "video_infinity":
            from regard.schemes.video_clips import clip_rule

            rule = clip_rule(n, 2)
        whole, parts = regard.attend(q, k, v, rule), found
    torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-5, rtol=1e-5)


def spread_model(call: str) -> None:
    """Spread a model over two ranks: outputs of both are together, and the anchor is exact."""
    model, ids = sharp_llama(2), _ids(16)
    with torch.no_grad():
        whole = model(ids).logits

    models = [sharp_llama(2) for _ in range(2)]

    def one(peers: Any) -> Tensor:
        made = Context({"model": models[peers.rank], "mesh": peers})
        made.run(call)
        with made.result as spread, torch.no_grad():
            found: Tensor = spread.gather(spread.model(ids).logits, 16)
        return found

    first, second = on_ranks(2, one)
    assert torch.equal(first, second)
    torch.testing.assert_close(first[:, :8], whole[:, :8], atol=1e-5, rtol=1e-5)


LANGUAGE = {
    "act_attention_calibration": sinks, "anchored_bias_edit": options,
    "attention_sorting": documents, "attention_transition": chat, "icr_rerank": documents,
    "dagcd": context_guided,
    "deep_thinking_icl": examples_of_a_task, "dual_stream_token_emphasis": emphasis,
    "edatt": translator, "opera": decoding, "truthprint": decoding, "split_softmax": chat,
    "var_visual_sink": images_in_a_prompt, "vhd_vhr": seeing_heads, "vicrop": crops,
}  # fmt: skip


# ---- models that paint ----


def painter(pictures: int) -> Callable[[], Context]:
    """A transformer that paints pictures of one batch."""

    def made() -> Context:
        from tests.controls.painting_models import inputs_of, model_of, paint

        model, inputs = model_of("sd3"), inputs_of("sd3", pictures)
        names = {"model": model, "transformer": model, "mask": LEFT}
        return Context(names, lambda: paint(model, inputs))

    return made


def latents() -> Context:
    """Latents that are nudged before a step."""
    from tests.controls.painting_models import inputs_of, model_of

    inputs = inputs_of("sd3", 1)
    latents = inputs.pop("hidden_states")
    inputs["timestep"] = torch.tensor([7.0])
    return Context({"model": model_of("sd3"), "latents": latents, "inputs": inputs})


def piped(pictures: int = 1, prompt: str = "cat dog") -> Callable[[Any], Context]:
    """A whole pipeline of Stable Diffusion, two steps of it."""

    def made(pipeline: Any) -> Context:
        from regard.controls.diffusion import SubjectTokens
        from tests.models.test_pipelines import told

        mask = torch.zeros(8, 16, dtype=torch.bool)
        mask[2:6, 2:8] = True

        def subject(kind: str) -> SubjectTokens:
            own = [n for n, x in pipeline.unet.named_modules() if n.endswith(kind)]
            wide = [pipeline.unet.get_submodule(n).to_q.out_features for n in own]
            weights = tuple(torch.randn(size, 16) for size in wide)
            return SubjectTokens(torch.randn(3, 16), tuple(own), weights, weights)

        names = {"pipeline": pipeline, "left": LEFT, "right": RIGHT, "region": LEFT, "mask": mask,
                 "subjects": (subject("attn2"),), "regions": (LEFT,), "unet": pipeline.unet,
                 "subject_states": (torch.randn(3, 16),), "subject": subject("attn1")}  # fmt: skip
        given = told(prompt=prompt, num_images_per_prompt=pictures)
        return Context(names, lambda: pipeline(**given))

    return made


def large() -> Context:
    """A velocity of pictures of any size, and noise of one that is too large for it."""
    names = {"velocity": lambda z, time: -z, "noise": torch.randn(1, 4, 96, 128)}
    return Context(names)


PAINTED = {
    "asg_diffusion": large,
    "attend_and_excite": latents, "a_star": latents, "ditctrl": painter(2),
    "ouroboros_diffusion": painter(3), "rf_solver_edit": latents,
}  # fmt: skip
PIPED = {
    "attention_modulation_t2i": piped(), "attentive_eraser": piped(), "autostudio": piped(),
    "bounded_attention": piped(), "customcontrast": piped(), "diffuhaul": piped(2),
    "dreamtuner": piped(2), "entropy_scale_variable_size": piped(), "freecustom": piped(3),
    "ir_diffusion": piped(2),
    "latent_warp": piped(3), "lcm_lookahead": piped(2), "magicface": piped(2),
    "ms_diffusion": piped(), "pinco": piped(),
    "storydiffusion": piped(2), "style_nerf2nerf": piped(2),
    "visctrl": piped(2),
}  # fmt: skip
