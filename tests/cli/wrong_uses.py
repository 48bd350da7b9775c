"""Wrong uses of the shell and of the verbs: what was written, and a word that the answer must hold.

A folder `{tmp}` holds the broken files that some of them name.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch

import regard
from regard.models.loading import DEMO

# Refused before any model is loaded.
SETTINGS = [
    # the shell itself
    ("shrnk", "shrink"), ("se", "see"), ("--verison", "--version"), ("bench report", "folder"),
    ("papers srch x", "extra"), ("papers mohh", "moh"), ("papers show", "key"),
    ("papers search", "question"), ("papers search x -n 0", "-n"),
    ("papers search x --limit many", "--limit"), ("papers like nothing_such", "KEY"),
    ("papers --state x", "--state"), ("papers --kind x", "--kind"), ("papers check", "--all"),
    ("papers check nothing_such", "nothing_such"), ("papers check moh --all", "--all"),
    ("papers check moh -j -3", "-j"), ("papers check moh --jobs some", "--jobs"),
    ("papers check moh --evidence {tmp}/text.txt", "--evidence"),
    ("papers check moh --budget nan", "--budget"), ("papers check moh --budget=", "--budget"),
    ("papers check moh --budget -5m", "--budget"), ("papers check moh --budget 1e999", "--budget"),
    ("bench mha --budget 1e999s", "--budget"), ("see --revision=", "--revision"),
    ("see --revision main", "--revision"), ("shrink --revision main", "--revision"),
    ("see {tmp} --revision=", "--revision"),
    ("papers docs --to {tmp}/text.txt", "--to"), ("papers docs --readme {tmp}/none.md", "--readme"),
    ("papers docs --readme {tmp}", "--readme"), ("papers docs --readme {tmp}/text.txt", "--readme"),
    ("papers show moh extra", "extra"), ("papers status --colour", "--colour"),
    # see
    ("see --heads 99,99", "--heads"), ("see --heads 0,8", "--heads"),
    ("see --heads 4,0", "--heads"),
    ("see --heads one", "--heads"), ("see --heads 1,2,3", "--heads"), ("see --heads -1", "--heads"),
    ("see --heads 1.5", "--heads"), ("see --heads=", "--heads"), ("see --heads 1,", "--heads"),
    ("see --heads 0,-1", "--heads"), ("see --probes entropie", "--probes"),
    ("see --probes roles,sonks", "--probes"), ("see --probes mind:Reader", "--probes"),
    ("see --probes os:path", "--probes"), ("see --probes collections:OrderedDict", "--probes"),
    ("see --out {tmp}/text.txt", "--out"), ("see --out {tmp}/text.txt/below", "--out"),
    ("see --out /proc/nothing", "--out"), ("see --file {tmp}/none.txt", "--file"),
    ("see --file {tmp}", "--file"), ("see --file {tmp}/binary", "--file"),
    ("see --file {tmp}/latin.txt", "--file"), ("see --file {tmp}/empty.txt", "--file"),
    ("see --file {tmp}/blank.txt", "--file"), ("see --text=", "--text"),
    ("see --text ' '", "--text"),
    ("see --text a --file {tmp}/text.txt", "--file"), ("see --image {tmp}/none.png", "--image"),
    ("see --image {tmp}/text.txt", "--image"), ("see --image {tmp}/cut.png", "--image"),
    ("see --image {tmp}/a.png", "--image"), ("see --image {tmp}", "--image"),
    ("see --image {tmp}/a.png --text words", "--image"), ("see --json --opne", "--open"),
    ("see one two", "two"), ("see --revision", "--revision"),
    # compare
    ("compare", "a"), ("compare {tmp}/none", "b"), ("compare {tmp}/none {tmp}/none", "none"),
    ("compare {tmp}/binary {tmp}/binary", "binary"), ("compare {tmp} {tmp}", "heads"),
    ("compare {tmp}/broken {tmp}/broken", "broken"),
    ("compare {tmp}/other {tmp}/other", "other"),
    ("compare a b --out {tmp}/x.png", "--out"), ("compare a b --out {tmp}", "--out"),
    ("compare a b --out {tmp}/text.txt/x.html", "--out"), ("compare a b c", "c"),
    # shrink
    ("shrink --policy snapvk", "--policy"), ("shrink --policy=", "--policy"),
    ("shrink --policy ,", "--policy"), ("shrink --policy snapkv,magic", "--policy"),
    ("shrink --policy mine:Own", "--policy"), ("shrink --policy json:JSONDecoder", "--policy"),
    ("shrink --keep much", "--keep"), ("shrink --keep 1", "1tok"), ("shrink --keep 256", "256tok"),
    ("shrink --keep 0", "--keep"), ("shrink --keep 0%", "--keep"), ("shrink --keep 0.0", "--keep"),
    ("shrink --keep 101%", "--keep"), ("shrink --keep -0.5", "--keep"),
    ("shrink --keep 25%,0tok", "0tok"), ("shrink --keep 2.5", "--keep"),
    ("shrink --keep 2.5tok", "--keep"), ("shrink --keep 4XiB", "--keep"),
    ("shrink --keep nan", "--keep"), ("shrink --keep=", "--keep"), ("shrink --keep 0MiB", "--keep"),
    ("shrink --eval magic", "--eval"), ("shrink --eval ppl", "bits"), ("shrink --eval=", "--eval"),
    ("shrink --length 5000", "2048"), ("shrink --length 0", "--length"),
    ("shrink --length -3", "--length"), ("shrink --length 20 --eval bits", "--length"),
    ("shrink --length 100 --eval recall", "--length"), ("shrink --draws 0", "--draws"),
    ("shrink --draws -1", "--draws"), ("shrink --calibrate {tmp}/none.cal", "--calibrate"),
    ("shrink --calibrate {tmp}/empty.txt", "--calibrate"),
    ("shrink --calibrate {tmp}/binary", "--calibrate"), ("shrink --calibrate {tmp}", "--calibrate"),
    ("shrink --calibrate {tmp}/text.txt", "--calibrate"), ("shrink --out {tmp}/text.txt", "--out"),
    ("shrink --out /proc/nothing", "--out"),
    # calibrate
    ("calibrate", "name"), ("calibrate duu", "NAME"), ("calibrate snapkv", "NAME"),
    ("calibrate duo_attention --set steps", "--set"),
    ("calibrate duo_attention --set stpes=3", "steps"),
    ("calibrate duo_attention --set steps=many", "--set"),
    ("calibrate duo_attention --set steps=1.5", "--set"),
    ("calibrate duo_attention --rows 0", "--rows"), ("calibrate duo_attention --rows -1", "--rows"),
    ("calibrate duo_attention --length 0", "--length"),
    ("calibrate duo_attention --length 128,x", "--length"),
    ("calibrate duo_attention --length 4096", "2048"),
    ("calibrate duo_attention --length=", "--length"),
    ("calibrate duo_attention --file {tmp}/none.txt", "--file"),
    ("calibrate duo_attention --file {tmp}/binary", "--file"),
    ("calibrate duo_attention --file {tmp}/empty.txt", "--file"),
    ("calibrate duo_attention --to {tmp}", "--to"),
    ("calibrate duo_attention --to {tmp}/text.txt/x.cal", "--to"),
    # spread
    ("spread run --processes 0", "--processes"), ("spread run --tokens 1", "--tokens"),
    ("spread run --scheme rign", "--scheme"), ("spread run --layout zig", "--layout"),
    ("spread run --on mars", "--on"),
    ("spread run --new -1", "--new"), ("spread rnu", "run"),
    ("spread plan --devices 0", "--devices"), ("spread plan --devices 7 --nodes 2", "--nodes"),
    ("spread plan --tokens 3", "--tokens"),
    ("spread plan --tokens 9223372036854775807", "--tokens"),
    ("see --heads {digits},1", "--heads"), ("steer --heads 1.{digits}", "--heads"),
    ("shrink --keep {digits}tok", "--keep"), ("shrink --keep 99999999999999999999TiB", "--keep"),
    ("spread plan --bandwidth 0", "--bandwidth"),
    ("spread plan --link -1", "--link"), ("spread plan --flops 0", "--flops"),
    ("spread plan --rule Causl()", "--rule"), ("spread plan --rule 3", "--rule"),
    ("spread plan --rule 'Window()'", "--rule"), ("spread plan --heads 0", "--heads"),
    # steer
    ("steer --control emphasiss", "emphasis"), ("steer --strength much", "--strength"),
    ("steer --strength 1,nan", "--strength"), ("steer --strength {digits}", "--strength"),
    ("steer --heads 3", "--heads"), ("steer --layers x", "--layers"),
    ("steer --tokens 0", "--tokens"), ("steer --prompt 'x = 1'", "--which"),
    # bench
    ("bench mhaa", "mha"), ("bench mha mhaa", "mhaa"), ("bench nothing.such:Layer", "nothing.such"),
    ("bench os:getcwd", "os:getcwd"), ("bench collections:OrderedDict", "OrderedDict"),
    ("bench mha:hedas=2", "heads"), ("bench mha:heads=x", "heads"),
    ("bench mha:heads", "mha:heads"),
    ("bench mha --tasks cpoy", "--tasks"), ("bench mha --tasks=", "--tasks"),
    ("bench mha --tasks mqar:lenth=3", "length"), ("bench mha --tasks mqar:length=-3", "length"),
    ("bench mha --tasks mqar:length=x", "length"), ("bench mha --patterns zz", "--patterns"),
    ("bench mha --seeds 0", "--seeds"), ("bench mha --seeds two", "--seeds"),
    ("bench mha --budget 5", "--budget"), ("bench mha --budget 3apples", "--budget"),
    ("bench mha --budget 1m,2m", "--budget"), ("bench mha --budget=", "--budget"),
    ("bench mha --workers -1", "--workers"), ("bench mha --on mars", "--on"),
    ("bench mha --dim 63", "--dim"), ("bench mha --dim 0", "--dim"),
    ("bench mha --heads 0", "--heads"),
    ("bench mha --depth 0", "--depth"), ("bench mha --batch 0", "--batch"),
    ("bench mha --rate 0", "--rate"), ("bench mha --rate fast", "--rate"),
    ("bench mha --positions rotary_", "--positions"), ("bench mha --device gpu", "--device"),
    ("bench mha --device cuda:99", "--device"), ("bench mha --out {tmp}/text.txt", "--out"),
    ("bench delta --patterns ns", "delta"), ("bench speed mhaa", "mha"),
    ("bench speed mha --lengths 12,x", "--lengths"), ("bench speed mha --lengths 0", "--lengths"),
    ("bench speed mha --lengths=", "--lengths"), ("bench speed mha --what fly", "--what"),
    ("bench speed mha --executors fusd", "--executors"), ("bench speed mha --rounds 0", "--rounds"),
    ("bench speed mha --dim 3", "--dim"), ("bench speed mha --device tpu", "--device"),
    ("bench speed mha --out {tmp}/text.txt", "--out"), ("bench report {tmp}/none", "none"),
    ("bench report {tmp}/text.txt", "text.txt"), ("bench report {tmp}/sweep", "sweep"),
    ("bench tasks mqar", "mqar"),
]  # fmt: skip

# Told of when the model, or what of it can be read, is known.
MODELS = [
    ("steer --which price --tokens 2040", "2,048 tokens"),
    ("see {tmp}", "MODEL"), ("see {tmp}/none", "MODEL"), ("see {tmp}/text.txt", "MODEL"),
    ("see {tmp}/no-weights", "MODEL"), ("see {tmp}/some-weights", "weights"),
    ("see {tmp}/cut-weights", "MODEL"), ("see {tmp}/damaged-tokenizer", "tokenizer"),
    ("see {tmp}/damaged-config", "MODEL"), ("see {tmp}/no-tokenizer", "tokenizer"),
    ("see {tmp}/llama --image {tmp}/a.png", "--image"), ("see {tmp}/bert --heads 9,9", "--heads"),
    ("see {tmp}/vit", "--image"), ("see {tmp}/vit --text words", "--text"),
    ("see {tmp}/vit --image {tmp}/a.png", "processor"),
    ("shrink {tmp}/bert", "bert"), ("shrink {tmp}/vit", "vit"), ("shrink {tmp}/t5", "t5"),
    ("shrink {tmp}/llama --length 200", "at most 64"), ("shrink {tmp}/no-tokenizer", "tokenizer"),
    ("shrink {tmp}/some-weights", "weights"), ("calibrate duo_attention {tmp}/bert", "bert"),
    ("calibrate duo_attention {tmp}/none", "MODEL"),
    ("calibrate duo_attention {tmp}/llama --length 128", "at most 64"),
]  # fmt: skip

IDS = torch.zeros(1, 4, dtype=torch.long)


def verbs(model, tokenizer):
    """Wrong uses in Python: a call, and a word of its error."""
    see, shrink = regard.see, regard.shrink
    return {
        "see ids of one axis": (lambda: see(model, IDS[0]), "inputs"),
        "see ids of three axes": (lambda: see(model, IDS[None]), "inputs"),
        "see no ids": (lambda: see(model, IDS[:, :0]), "inputs"),
        "see ids beyond the vocabulary": (lambda: see(model, IDS + 10**6), "inputs"),
        "see ids below 0": (lambda: see(model, IDS - 1), "inputs"),
        "see more ids than positions": (lambda: see(model, IDS[:, :1].expand(1, 4000)), "inputs"),
        "see a number": (lambda: see(model, 3), "inputs"),
        "see None in a list": (lambda: see(model, [None]), "inputs"),
        "see an empty list": (lambda: see(model, []), "inputs"),
        "see empty text": (lambda: see(model, " ", tokenizer=tokenizer), "inputs"),
        "see text without a tokenizer": (lambda: see(model, "words"), "tokenizer"),
        "see by no probe": (lambda: see(model, IDS, ["entropie"]), "entropy"),
        "see by a number": (lambda: see(model, IDS, 3), "probes"),
        "see heads of no layer": (lambda: see(model, IDS, "entropy", heads=[(99, 0)]), "heads"),
        "see heads beyond": (lambda: see(model, IDS, "entropy", heads=[(0, 99)]), "heads"),
        "see heads in words": (lambda: see(model, IDS, "entropy", heads="all"), "heads"),
        "see heads of one number": (lambda: see(model, IDS, "entropy", heads=[3]), "heads"),
        "see -1 heads": (lambda: see(model, IDS, "entropy", heads=-1), "heads"),
        "see at no site": (lambda: see(model, IDS, "entropy", where="nothing.*"), "where"),
        "see a model that attends nowhere": (lambda: see(torch.nn.Linear(2, 2), IDS), "attends"),
        "see a model that is a number": (lambda: see(3, IDS), "model"),
        "see a name that is no model": (lambda: see("no/such/model"), "model"),
        "save without a suffix": (lambda: see(model, IDS, "entropy").save("x.jpeg"), "path"),
        "the top of no score": (lambda: see(model, IDS, "entropy").top("sink"), "score"),
        "a role that was not read": (lambda: see(model, IDS, "entropy").roles["induction"], "role"),
        "shrink by no policy": (lambda: shrink(model, "snapvk"), "policy"),
        "shrink by nothing": (lambda: shrink(model, []), "policies"),
        "shrink by a number": (lambda: shrink(model, 3), "policies"),
        "keep a bare string": (lambda: shrink(model, "snapkv", keep="256"), "256tok"),
        "keep nothing": (lambda: shrink(model, "snapkv", keep=0), "keep"),
        "keep more than all": (lambda: shrink(model, "snapkv", keep=1.5), "keep"),
        "keep apples": (lambda: shrink(model, "snapkv", keep="2 apples"), "keep"),
        "keep a truth": (lambda: shrink(model, "snapkv", keep=True), "keep"),
        "a calibration that is not there": (
            lambda: shrink(model, "duo_attention", calibrate="none.cal"), "none.cal",
        ),
        "a calibration that is a number": (
            lambda: shrink(model, "duo_attention", calibrate=3), "calibrate",
        ),
        "compare numbers": (lambda: regard.compare(3, 4), "run"),
        "compare files that are not there": (lambda: regard.compare("none", "none"), "none"),
        "a layer of no name": (lambda: regard.layer("gqaa", 8), "gqa"),
        "a layer of no setting": (lambda: regard.layer("mha", 8, hedas=2), "heads"),
    }  # fmt: skip


def broken_files(tmp: Path) -> None:
    """Make the files that wrong uses name."""
    from PIL import Image
    from transformers import (
        BertConfig,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
        ViTConfig,
        ViTModel,
    )

    (tmp / "text.txt").write_text("some words\n")
    (tmp / "empty.txt").write_text("")
    (tmp / "blank.txt").write_text(" \n\t")
    (tmp / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp / "binary").write_bytes(bytes(range(256)) * 8)
    Image.new("RGB", (16, 16)).save(tmp / "a.png")
    (tmp / "cut.png").write_bytes((tmp / "a.png").read_bytes()[:40])
    for name, text in (("broken", "{"), ("other", json.dumps({"format": "another"}))):
        (tmp / f"{name}.json").write_text(text)
        (tmp / f"{name}.npz").write_bytes(b"PK")
    (tmp / "sweep").mkdir()
    (tmp / "sweep" / "sweep.json").write_text("{")
    for name in ("no-weights", "some-weights", "cut-weights", "damaged-tokenizer", "damaged-config",
                 "no-tokenizer"):  # fmt: skip
        shutil.copytree(DEMO, tmp / name)
    weights = "model.safetensors"
    os.remove(tmp / "no-weights" / weights)
    raw = (DEMO / weights).read_bytes()
    (tmp / "cut-weights" / weights).write_bytes(raw[: len(raw) // 2])
    from safetensors.torch import load_file, save_file

    kept = load_file(DEMO / weights)
    del kept["model.layers.1.self_attn.q_proj.weight"]
    save_file(kept, tmp / "some-weights" / weights, metadata={"format": "pt"})
    (tmp / "damaged-tokenizer" / "tokenizer.json").write_text('{"version": "1.0", "model": 3}')
    (tmp / "damaged-config" / "config.json").write_text('{"model_type": "llama", "hidden_size": ')
    for file in (tmp / "no-tokenizer").glob("tokenizer*"):
        file.unlink()
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2,
             "intermediate_size": 16}  # fmt: skip
    small = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    for name, made in (
        ("bert", BertModel(BertConfig(vocab_size=2048, **sizes))),
        ("llama", LlamaForCausalLM(
            LlamaConfig(vocab_size=2048, max_position_embeddings=64, **sizes))),
        ("vit", ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes))),
        ("t5", T5ForConditionalGeneration(T5Config(vocab_size=2048, **small))),
    ):  # fmt: skip
        made.save_pretrained(tmp / name)
        if name != "vit":
            for file in DEMO.glob("tokenizer*"):
                shutil.copy(file, tmp / name)
