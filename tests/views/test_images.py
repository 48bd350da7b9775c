"""Images in the page: the words of a prompt over patches, and what patches look at."""

import numpy as np
import pytest
import torch

import regard
from regard.models.forward import Forward
from regard.models.site import Site
from regard.probes.maps import Patches, patches_of
from regard.probes.regions import WordMaps
from regard.views import Seen
from regard.views.colors import ramp
from regard.views.word_maps import evenly, packed_words
from tests.views.browser import in_browser, visited
from tests.views.runs import seen

GRIDS = {"down": (3, 5), "mid": (6, 10)}
WORDS = ("<start>", "a", "red", "fox", "on", "snow", "<end>")


def word_maps(steps=3):
    """Made maps: each word has a blob of its own, at two grids."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for step in range(steps):
        for layer, (name, (rows, columns)) in enumerate(GRIDS.items()):
            y = torch.arange(rows).view(-1, 1) / rows
            x = torch.arange(columns).view(1, -1) / columns
            blobs = [
                torch.exp(-((y - (t % 3) / 3) ** 2 + (x - t / 7) ** 2) * (5 + 5 * step))
                for t in range(len(WORDS))
            ]
            noise = torch.rand(len(WORDS), rows, columns, generator=generator)
            scores = torch.stack(blobs) * 4 + 0.3 * noise
            found[step, Site(layer, "cross", f"{name}.attn2", 2, 2, 8)] = scores.softmax(0)
    return WordMaps(WORDS, found, "conditional")


def run_with_words(image=None, steps=3):
    made = seen(n=60, grid=(6, 10), rule=regard.Rule())
    made = Seen(made.model, made.sites, made.scores, (), made.drawn, made.deep, image=image)
    made.words_seen = word_maps(steps)
    return made.run()


def picture():
    """A sky, a hill and a sun."""
    y, x = np.mgrid[0:96, 0:160]
    made = np.zeros((96, 160, 3), np.uint8)
    made[...] = np.stack([90 + y, 140 + y // 2, 220 - y // 2], -1)
    made[y > 60 + 12 * np.sin(x / 20)] = (70, 120, 60)
    made[(y - 24) ** 2 + (x - 120) ** 2 < 150] = (250, 220, 120)
    return made


PIXELS = """
const canvas = document.getElementById("patches"), context = canvas.getContext("2d");
const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
const [rows, columns] = regard.told.maps.shape.slice(2), pixels = [];
for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
  const x = Math.floor(((c + 0.5) * canvas.width) / columns);
  const at = 4 * (Math.floor(((r + 0.5) * canvas.height) / rows) * canvas.width + x);
  pixels.push(data[at], data[at + 1], data[at + 2]);
}
"""


@in_browser
@pytest.mark.parametrize(("step", "site"), [(0, 0), (2, 1), (1, 2)])
def test_pixels_of_a_word_are_those_of_numpy(step, site, tmp_path):
    run = run_with_words()
    script = f"await regard.showWords({{ word: 3, step: {step}, site: {site} }}); {PIXELS}"
    script += "return { pixels, values: Array.from(regard.mapNow(3)) };"
    found = visited(run, script, tmp_path)
    wanted = run.arrays[f"words/{site}"][step, 3].astype(np.float32)
    assert np.array_equal(np.array(found["values"], np.float32), wanted.ravel())
    levels = np.round(255 * (wanted - wanted.min()) / np.ptp(wanted)).astype(np.uint8)
    off = np.abs(np.array(found["pixels"]).reshape(*wanted.shape, 3) - ramp(levels).astype(int))
    assert off.max() <= 3  # a level apart at a rounding edge
    assert (off == 0).mean() > 0.95


@in_browser
def test_over_a_picture_the_heaviest_patch_is_free_of_the_veil(tmp_path):
    run = run_with_words(np.full((96, 160, 3), 100, np.uint8))
    script = f"await regard.showWords({{ word: 3 }}); {PIXELS} return {{ pixels }};"
    found = np.array(visited(run, script, tmp_path)["pixels"]).reshape(6, 10, 3)
    values = run.arrays["words/0"][0, 3].astype(np.float64)
    veil = 0.85 * (1 - (values - values.min()) / np.ptp(values))[..., None]
    dark = ramp(np.zeros(1, np.uint8)).astype(float)
    assert np.abs(found - (veil * dark + (1 - veil) * 100)).max() < 3
    assert found.reshape(-1, 3)[values.argmax()].tolist() == [100, 100, 100]


@in_browser
def test_a_patch_names_its_words_and_the_sliders_move(tmp_path):
    run = run_with_words(picture())
    script = """
    const canvas = document.getElementById("patches"), box = canvas.getBoundingClientRect();
    const click = (x, y) => canvas.dispatchEvent(new MouseEvent("click", { bubbles: true,
      clientX: box.left + x * box.width, clientY: box.top + y * box.height }));
    const tick = () => new Promise((done) => setTimeout(done, 50));
    const list = () => [...document.querySelectorAll("#word-list li")].map((x) => x.textContent);
    const first = list(), started = document.getElementById("patch-said").textContent;
    click(0.95, 0.05);
    await tick();
    const sky = list(), title = document.getElementById("patch-title").textContent;
    for (const [id, value] of [["at-site", 1], ["at-step", 2]]) {
      const slider = document.getElementById(id);
      slider.value = value;
      slider.dispatchEvent(new Event("input"));
      await tick();
    }
    const site = document.getElementById("site-said").textContent;
    const step = document.getElementById("step-said").textContent;
    const patch = regard.told.patch, moved = list();
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
    await tick();
    const walked = regard.told.patch;
    document.querySelectorAll("#word-list button")[0].click();
    await tick();
    return { first, sky, title, site, step, patch, moved, walked, started,
      word: regard.told.word, hash: location.hash };
    """
    found = visited(run, script, tmp_path)
    maps = run.arrays
    assert [x.rsplit(" ", 1)[0] for x in found["first"]] == list(WORDS)
    order = np.argsort(-maps["words/0"][0, :, 0, 9])
    assert found["sky"][0] == f"{WORDS[order[0]]} {maps['words/0'][0, order[0], 0, 9]:.3f}"
    assert [x.rsplit(" ", 1)[0] for x in found["sky"]] == [WORDS[t] for t in order]
    assert found["title"] == "Patch (0, 9) looks at"
    assert found["site"] == "down.attn2 (cross), 3 × 5 patches"
    assert found["step"] == "step 1"
    assert (found["patch"], found["walked"]) == (4, 9)  # the same place on a coarser grid
    best = np.argsort(-maps["words/1"][2, :, 0, 4])[0]
    assert found["moved"][0] == f"{WORDS[best]} {maps['words/1'][2, best, 0, 4]:.3f}"
    assert found["hash"] == f"#word={found['word']}&step=2&site=1&patch=9"


@in_browser
def test_an_address_opens_a_word(tmp_path):
    script = """
    return { told: { ...regard.told, maps: null, picture: null },
      pressed: document.querySelector('#word-list [aria-pressed="true"]').textContent };
    """
    found = visited(run_with_words(), script, tmp_path, "#word=5&step=1&site=2&patch=17")
    assert (found["told"]["word"], found["told"]["patch"]) == (5, 17)
    assert found["pressed"] == "snow"


@in_browser
def test_many_words_leave_the_page_light(tmp_path):
    made = seen(n=24, grid=(4, 6), rule=regard.Rule())
    words = [f"word{t}" for t in range(512)]
    maps = {(0, Site(0, "joint", "attn", 2, 2)): torch.rand(512, 4, 6).softmax(0)}
    made.words_seen = WordMaps(tuple(words), maps, "conditional")
    script = """return { many: document.querySelectorAll("#word-list li").length,
      still: document.getElementById("at-step").disabled };"""
    found = visited(made.run(), script, tmp_path)
    assert found["many"] == 200


@in_browser
def test_a_page_of_text_shows_no_words_over_an_image(tmp_path):
    script = 'return { hidden: document.getElementById("words").hidden };'
    assert visited(seen().run(), script, tmp_path)["hidden"]


@in_browser
def test_patches_are_laid_over_the_picture(tmp_path):
    made = seen(n=61, grid=(6, 10), rule=regard.Rule())
    made = Seen(made.model, made.sites, made.scores, (), made.drawn, made.deep, image=picture())
    script = """
    await regard.show(regard.heads[1]);
    const canvas = document.getElementById("picture");
    const before = document.getElementById("pin-title").textContent;
    const box = canvas.getBoundingClientRect();
    canvas.dispatchEvent(new MouseEvent("click", { bubbles: true,
      clientX: box.left + 0.35 * box.width, clientY: box.top + 0.2 * box.height }));
    await new Promise((done) => setTimeout(done, 100));
    return { hidden: canvas.hidden, width: canvas.width, height: canvas.height, before,
      title: document.getElementById("pin-title").textContent, pin: regard.now.pin };
    """
    found = visited(made.run(), script, tmp_path)
    assert not found["hidden"]
    assert found["width"] / found["height"] == pytest.approx(10 / 6, abs=0.02)
    assert "what each patch received" in found["before"]
    assert found["title"] == "Query 14: patch (1, 3)"
    assert found["pin"] == 14


def test_steps_are_left_out_where_there_is_no_room():
    maps = word_maps(steps=9)
    manifest, arrays = packed_words(maps, room=2 * 7 * (15 + 60 + 60) * 5)
    assert manifest["steps"] == [0, 3, 5, 8]
    assert manifest["left_out"] == 5
    assert arrays["words/1"].shape == (5, 7, 3, 5)
    assert np.allclose(arrays["words/0"][0], maps.map().numpy(), atol=1e-3)  # of all steps
    assert np.allclose(arrays["words/0"][2], maps.map(step=3).numpy(), atol=1e-3)
    assert evenly([4], 3) == [4]


def test_patches_stand_where_the_model_puts_them():
    vit = Site(0, module="attn", heads=2, kv_heads=2, grid=(2, 3))
    assert patches_of(vit, 8, 8) == Patches((2, 3), 2, 2)
    assert patches_of(vit, 6, 9) is None
    now = Forward(0, grid=(2, 3))
    joint = Site(0, "joint", "attn", 2, 2, modality="text-image")
    assert patches_of(joint, 11, 11, now) == Patches((2, 3), 5, 5)
    assert patches_of(Site(0, "cross", "attn2", 2, 2), 6, 5, now) == Patches((2, 3), 0, None)
    assert patches_of(Site(0, "self", "refiner", 2, 2), 6, 6, now) is None
    assert patches_of(Site(0, "cross", "attn2", 2, 2), 6, 5) is None
