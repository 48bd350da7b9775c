"""Models that see and hear: rollout over patches, text to image and back, a spectrogram."""

import numpy as np
import pytest
import torch

import regard
from regard.circuits.flow import rollout as row_by_row
from regard.models.attach import attach
from regard.probes.maps import Maps, log_scale
from regard.views.rollout import RolledOut, packed_rollout, roll_out
from regard.views.sound import spectrogram_of
from tests.views.browser import in_browser, visited

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
VISION = {**SIZES, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8}


class Words:
    """A tokenizer of numbers."""

    bos_token_id = 1

    def __call__(self, text, **_):
        return {"input_ids": [5 + len(x) % 80 for x in text.split()]}

    def decode(self, ids, **_):
        return " ".join(f"w{i}" for i in ids)


def sharp(model):
    """Weights large enough that heads look at something."""
    torch.manual_seed(0)
    for x in model.parameters():
        if x.dim() > 1:
            x.data.normal_(0, 0.3)
    return model.eval()


def picture(size=32):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([x / size, y / size, ((x - 20) ** 2 + (y - 12) ** 2 < 30).float()])[None]


def vit():
    return sharp(transformers.ViTModel(transformers.ViTConfig(**VISION)))


def whisper():
    sizes = {f"{x}_{y}": z for x in ("encoder", "decoder")
             for y, z in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))}  # fmt: skip
    config = transformers.WhisperConfig(
        vocab_size=100, d_model=32, num_mel_bins=20, max_source_positions=60,
        max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, **sizes,
    )  # fmt: skip
    return sharp(transformers.WhisperForConditionalGeneration(config))


def llava():
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(
            **SIZES, num_hidden_layers=2, num_key_value_heads=2, vocab_size=100
        ),
        image_token_id=99,
    )
    return sharp(transformers.LlavaForConditionalGeneration(config))


def test_rollouts_are_those_of_the_circuits_row_by_row():
    model, maps = vit(), Maps(17)
    with attach(model, maps), torch.no_grad():
        model(picture())
    calls = list(maps.kept.values())
    rolled = roll_out(calls)
    assert (rolled.grid, rolled.first) == ((4, 4), 1)
    for layer in range(3):
        for position in (0, 7):
            wanted = row_by_row(calls[: layer + 1], position)[0]
            assert torch.allclose(rolled.maps[layer, position].double(), wanted, atol=1e-6)
    assert torch.allclose(rolled.maps.sum(-1), torch.ones(3, 17), atol=1e-5)
    assert rolled.map(patch=(1, 2)).flatten().tolist() == rolled.maps[-1, 7, 1:].tolist()
    with pytest.raises(regard.RegardError, match="patch"):
        rolled.map(patch=(4, 0))


def test_no_rollout_where_nothing_is_seen():
    text = regard.model(["mha"], dim=16, heads=2, vocab=9)
    assert regard.see(text, torch.randint(0, 9, (1, 12))).rollout is None
    assert roll_out([]) is None


def test_a_few_kept_heads_are_of_each_tower():
    names = [seen_head(heads=4), seen_head(heads=["language.L0H2", (1, 1)])]
    assert {x.split(".")[0] for x in names[0]} == {"vision", "language"}
    assert names[1] == ["vision.L1H1", "language.L0H2"] or names[1] == [
        "language.L0H2",
        "vision.L1H1",
    ]
    with pytest.raises(regard.RegardError, match=r"language.L9H9"):
        seen_head(heads=["language.L9H9"])


def test_as_many_heads_are_kept_as_are_asked_for():
    for many in (0, 1, 3):
        assert len(seen_head(heads=many)) == many


def seen_head(heads):
    prompt = torch.tensor([[1, 5, 6] + [99] * 16 + [7, 8, 9]])
    inputs = {"input_ids": prompt, "pixel_values": picture()}
    seen = regard.see(llava(), inputs, ["shape"], heads=heads)
    return [seen.name_of(x.site, x.head) for x in seen.deep]


def test_layers_of_a_rollout_are_left_out_where_there_is_no_room():
    rolled = RolledOut(torch.full((9, 17, 17), 1 / 17), [regard.see(vit(), pixels()).sites[0]] * 9,
                       (4, 4), 1)  # fmt: skip
    manifest, packed = packed_rollout(rolled, room=4 * 17 * 16)
    assert (manifest["layers"], manifest["of"]) == ([0, 3, 5, 8], 9)
    assert packed.shape == (4, 17, 16)


def pixels():
    return {"pixel_values": picture()}


@in_browser
def test_the_page_shows_a_rollout_by_layer_and_patch(tmp_path):
    seen = regard.see(vit(), pixels())
    script = """
    const tick = () => new Promise((done) => setTimeout(done, 50));
    const at = (id) => document.getElementById(id);
    const first = { layer: regard.rolled.layer, from: at("rollout-from").textContent,
      shown: !at("rollout").hidden, tops: at("rollout-tops").textContent };
    const canvas = at("rolled"), box = canvas.getBoundingClientRect(), before = canvas.toDataURL();
    canvas.dispatchEvent(new MouseEvent("click", { bubbles: true,
      clientX: box.left + 0.6 * box.width, clientY: box.top + 0.3 * box.height }));
    at("up-to").value = 1;
    at("up-to").dispatchEvent(new Event("input"));
    await tick();
    const said = at("up-to-said").textContent, hash = location.hash, patch = regard.rolled.patch;
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
    await tick();
    const walked = regard.rolled.patch;
    return { first, said, hash, patch, walked, drawn: before !== canvas.toDataURL(),
      from: at("rollout-from").textContent };
    """
    found = visited(seen.run(), script, tmp_path)
    best = int(seen.rollout.map().argmax())
    assert found["first"]["shown"]
    assert found["first"]["layer"] == 2
    assert found["first"]["from"] == "From the first token, the most"
    assert found["first"]["tops"].startswith(f"patch ({best // 4}, {best % 4})")
    assert found["said"] == "2 of 3 (layers.1.attention)"
    assert found["hash"] == "#rollout=1&from=6"
    assert (found["patch"], found["walked"]) == (6, 10)
    assert found["from"] == "From patch (2, 2), the most"
    assert found["drawn"]
    wanted = log_scale(seen.rollout.maps[:, :, 1:])
    assert np.array_equal(seen.run().arrays["rollout"], wanted)


def asked(model):
    prompt = torch.tensor([[1, 5, 6] + [99] * 16 + [7, 8, 9]])
    return regard.see(
        model, {"input_ids": prompt, "pixel_values": picture()}, ["shape"], tokenizer=Words(),
        heads=["language.L1H1"],
    )  # fmt: skip


def test_patches_of_an_image_stand_in_the_prompt():
    sites = asked(llava()).run().manifest["sites"]
    patches = {(x["tower"], str(x["patches"])) for x in sites}
    assert patches == {
        ("vision", "{'queries': 1, 'keys': 1, 'words': False}"),
        ("language", "{'queries': 3, 'keys': 3, 'words': True}"),
    }


@in_browser
def test_text_looks_at_the_image_and_back(tmp_path):
    """A word's weight lies over the picture; a patch picked as key marks the words that look."""
    seen = asked(llava())
    row = next(i for i, s in enumerate(seen.sites) if seen.towers[s] == "language" and s.layer == 1)
    script = """
    const at = (id) => document.getElementById(id), picture = at("picture");
    const tick = () => new Promise((done) => setTimeout(done, 100));
    const word = { hidden: picture.hidden, said: at("picture-said").textContent,
      title: at("pin-title").textContent, text: at("text").textContent };
    const box = picture.getBoundingClientRect();
    picture.dispatchEvent(new MouseEvent("click", { bubbles: true, shiftKey: true,
      clientX: box.left + 0.1 * box.width, clientY: box.top + 0.1 * box.height }));
    await tick();
    const marked = [...at("text").querySelectorAll("span")]
      .filter((x) => x.style.background !== "").map((x) => Number(x.dataset.i));
    return { word, key: regard.now.key, title: at("key-title").textContent, marked,
      tops: [...at("key-tops").children].map((x) => x.textContent),
      said: at("picture-said").textContent };
    """
    found = visited(seen.run(), script, tmp_path, f"#head={row}.1&query=20")
    assert not found["word"]["hidden"]
    assert found["word"]["title"] == "Query 20: ␣w8"
    assert found["word"]["said"].startswith("Weight of the pinned query on each patch")
    assert found["word"]["text"].split() == ["w1", "w5", "w6", "[the", "image]", "w7", "w8", "w9"]
    assert found["key"] == 3
    assert found["title"] == "Key 3: patch (0, 0), looked at by"
    assert found["said"].startswith("Weight on the pinned key of each patch")
    assert set(found["marked"]) <= {19, 20, 21}  # words before it cannot look
    head = next(x for x in seen.deep if seen.towers[x.site] == "language")
    weights = seen._head(head.site, 1).weights(columns=3)[:, 0]
    assert found["tops"][0].startswith(("patch", "␣w"))
    assert f"at {int(weights.argmax())}:" in found["tops"][0]


def listened():
    time, bands = torch.arange(120)[None, None] / 120, torch.linspace(0, 1, 20)[None, :, None]
    sound = torch.exp(-((bands - 0.5 - 0.3 * torch.sin(9 * time)) ** 2) * 90)
    inputs = {"input_features": sound, "decoder_input_ids": torch.tensor([[1, 5, 7, 9, 5]])}
    return regard.see(whisper(), inputs, ["shape"], tokenizer=Words())


def test_a_spectrogram_has_low_bands_at_the_bottom():
    sound = torch.zeros(1, 20, 50)
    sound[:, :4] = 1.0
    drawn = spectrogram_of({"input_features": sound}).astype(int).sum(-1)
    assert drawn[-1].min() > drawn[0].max()
    assert spectrogram_of({"pixel_values": sound}) is None


@in_browser
def test_sound_is_a_spectrogram_whose_frames_are_tokens(tmp_path):
    seen = listened()
    manifest = seen.run().manifest
    assert manifest["modality"] == "sound"
    crossed = next(i for i, x in enumerate(manifest["sites"]) if x["kind"] == "cross")
    assert manifest["sites"][crossed]["patches"] == {"queries": None, "keys": 0, "words": True}
    script = """
    const at = (id) => document.getElementById(id), picture = at("picture");
    const word = { hidden: picture.hidden, title: at("pin-title").textContent,
      tops: at("tops").textContent, marked: [...at("text").querySelectorAll("span")]
        .filter((x) => x.style.background !== "").length, ratio: picture.width / picture.height };
    const box = picture.getBoundingClientRect();
    picture.dispatchEvent(new MouseEvent("click", { bubbles: true,
      clientX: box.left + 0.51 * box.width, clientY: box.top + 4 }));
    await new Promise((done) => setTimeout(done, 100));
    return { word, key: regard.now.key, title: at("key-title").textContent,
      tops: [...at("key-tops").children].map((x) => x.textContent) };
    """
    found = visited(seen.run(), script, tmp_path, f"#head={crossed}.2&query=3")
    assert not found["word"]["hidden"]
    assert found["word"]["title"] == "Query 3: ␣w9"
    assert found["word"]["tops"].startswith("frame ")
    assert found["word"]["marked"] == 0  # weights on frames are no weights on words
    assert found["word"]["ratio"] == pytest.approx(120 / 160, rel=0.02)
    assert found["key"] == 30
    assert found["title"] == "Key 30: frame 30, looked at by"
    assert all(" at " in x and "w" in x for x in found["tops"])
    shown = visited(seen.run(), 'return { text: document.getElementById("text").hidden };',
                    tmp_path, "#head=0.1")  # fmt: skip
    assert shown["text"]  # the encoder reads no words


@in_browser
def test_sites_of_different_lengths_have_maps_of_their_own_size(tmp_path):
    """Small maps share one array; each is drawn from its own corner, at its own tile."""
    seen = listened()
    manifest = seen.run().manifest
    script = """
    return { maps: regard.heads.map((x) => { const map = smallMap(x);
      return [x.s, map.rows, map.columns, map.tile]; }) };
    """
    found = visited(seen.run(), script, tmp_path)["maps"]
    for s, rows, columns, tile in found:
        site = manifest["sites"][s]
        assert tile == site["tile"]
        assert (rows, columns) == (-(-site["queries"] // tile), -(-site["keys"] // tile))
