#!/usr/bin/env python3
"""Makes a model folder with random weights that vLLM and transformers load: no download, no torch, bare Python.

    modelgen.py DIR [--arch opt|llama] [--preset tiny|opt-125m|llama-1b|llama-8b] [--seed N] [--hidden .. --layers .. ...]

The shapes are those of real models, so that a start costs what a real start costs: weights in safetensors (bfloat16),
and a byte-level BPE tokenizer padded to the full vocabulary. The same arguments always give the same bytes, and no two
rows of an embedding are equal, so that greedy decoding never meets a tie and always gives the same tokens.
Weights are streamed: 8 B parameters need 16 GB of disk and a few MB of memory.
"""

import argparse
import itertools
import json
import math
import os
import random
import struct
import sys

# hidden, layers, heads, kv_heads, ffn, vocab, positions
PRESETS = {
    ("opt", "tiny"): (128, 2, 4, 4, 256, 512, 512),
    ("llama", "tiny"): (128, 2, 4, 2, 256, 512, 512),
    ("opt", "opt-125m"): (768, 12, 12, 12, 3072, 50272, 2048),
    ("llama", "llama-1b"): (2048, 16, 32, 8, 8192, 65536, 4096),
    ("llama", "llama-8b"): (4096, 32, 32, 8, 14336, 65536, 8192),
}
FIELDS = ("hidden", "layers", "heads", "kv_heads", "ffn", "vocab", "positions")
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")

# The weights come from a pool whose length is a prime: a tensor that wraps around it never repeats a row.
POOL = (1 << 22) - 3
# Fills: a constant (its two bytes), or the high byte of a random bfloat16, whose sign is kept and whose exponent is
# fixed. RANDOM is +-2^-7 .. 2^-5, a std of about 0.02 as in real models. LOUD is 16 times that: in the places where a
# layer or a position adds to the residual stream, so that the answer is not the last token over and over.
RANDOM, LOUD, ONE, ZERO = 0x3C, 0x3E, b"\x80\x3f", b"\x00\x00"


def make_pools(rnd):
    low, high, pools = rnd.randbytes(POOL), rnd.randbytes(POOL), {}
    for fill in (RANDOM, LOUD):
        pool = bytearray(2 * POOL)
        pool[0::2] = low
        pool[1::2] = high.translate(bytes((b & 0x80) | fill for b in range(256)))
        pools[fill] = memoryview(bytes(pool))
    return pools


def write_tensor(f, pools, rnd, count, fill):
    """Writes `count` values: a constant, or a pool from a random place on, around and around."""
    if isinstance(fill, bytes):
        f.write(fill * count)
        return
    pool, at, left = pools[fill], 2 * rnd.randrange(POOL), 2 * count
    while left:
        part = pool[at : at + left]
        f.write(part)
        left -= len(part)
        at = 0


def opt_tensors(o):
    """(name, shape, fill) of every tensor, and config.json, of an OPT model (tied embeddings)."""
    d, h = "model.decoder.", o.hidden
    yield d + "embed_tokens.weight", [o.vocab, h], RANDOM
    yield d + "embed_positions.weight", [o.positions + 2, h], LOUD
    norms = [d + "final_layer_norm"]
    for i in range(o.layers):
        p = f"{d}layers.{i}."
        linear = [(p + f"self_attn.{x}_proj", h, h) for x in ("q", "k", "v", "out")]
        linear += [(p + "fc1", o.ffn, h), (p + "fc2", h, o.ffn)]
        for name, rows, columns in linear:
            yield name + ".weight", [rows, columns], LOUD if name.endswith(("out_proj", "fc2")) else RANDOM
            yield name + ".bias", [rows], ZERO
        norms += [p + "self_attn_layer_norm", p + "final_layer_norm"]
    for name in norms:
        yield name + ".weight", [h], ONE
        yield name + ".bias", [h], ZERO


def opt_config(o):
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": o.hidden,
        "num_hidden_layers": o.layers,
        "num_attention_heads": o.heads,
        "ffn_dim": o.ffn,
        "max_position_embeddings": o.positions,
        "vocab_size": o.vocab,
        "word_embed_proj_dim": o.hidden,
        "do_layer_norm_before": True,
        "activation_function": "relu",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
    }


def llama_tensors(o):
    h, kv = o.hidden, o.hidden // o.heads * o.kv_heads
    yield "model.embed_tokens.weight", [o.vocab, h], RANDOM
    yield "lm_head.weight", [o.vocab, h], RANDOM
    yield "model.norm.weight", [h], ONE
    for i in range(o.layers):
        p = f"model.layers.{i}."
        for x, rows in (("q", h), ("k", kv), ("v", kv), ("o", h)):
            yield p + f"self_attn.{x}_proj.weight", [rows, h], RANDOM
        yield p + "mlp.gate_proj.weight", [o.ffn, h], RANDOM
        yield p + "mlp.up_proj.weight", [o.ffn, h], RANDOM
        yield p + "mlp.down_proj.weight", [h, o.ffn], RANDOM
        yield p + "input_layernorm.weight", [h], ONE
        yield p + "post_attention_layernorm.weight", [h], ONE


def llama_config(o):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": o.hidden,
        "num_hidden_layers": o.layers,
        "num_attention_heads": o.heads,
        "num_key_value_heads": o.kv_heads,
        "intermediate_size": o.ffn,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": o.positions,
        "vocab_size": o.vocab,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }


ARCH = {"opt": (opt_tensors, opt_config), "llama": (llama_tensors, llama_config)}


def byte_alphabet():
    """GPT-2's printable stand-in for each of the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = itertools.count(256)
    return [chr(b if b in plain else next(spare)) for b in range(256)]


def tokenizer(vocab_size, rnd):
    """tokenizer.json: special tokens, 256 bytes, then merges of two (and, in big vocabularies, three) bytes."""
    letters = byte_alphabet()
    vocab = {t: i for i, t in enumerate((*SPECIAL, *letters))}
    pairs = [(a, b) for a in letters for b in letters]
    rnd.shuffle(pairs)
    triples = ((a + b, c) for a, b in pairs for c in letters)
    merges = []
    for left, right in itertools.chain(pairs, triples):
        if len(vocab) >= vocab_size:
            break
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append(f"{left} {right}")
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t, **flags} for i, t in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": {**level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def generate(folder, o):
    """Writes the folder; config.json last, so that a folder which has one is complete. Returns (tensors, bytes)."""
    rnd = random.Random(f"{o.arch} {o.seed}")
    tensors, config = ARCH[o.arch]
    os.makedirs(folder, exist_ok=True)
    listing, header, offset = list(tensors(o)), {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in listing:
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    pools = make_pools(rnd)
    path = os.path.join(folder, "model.safetensors")
    with open(path + ".part", "wb") as f:
        f.write(struct.pack("<Q", len(raw)) + raw)
        for _, shape, fill in listing:
            write_tensor(f, pools, rnd, math.prod(shape), fill)
    os.replace(path + ".part", path)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    _write_json(folder, "tokenizer.json", tokenizer(o.vocab, rnd))
    _write_json(
        folder,
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "model_max_length": o.positions,
            "clean_up_tokenization_spaces": False,
            "chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:",
        },
    )
    _write_json(folder, "generation_config.json", ids)
    _write_json(folder, "config.json", {**config(o), **ids, "torch_dtype": "bfloat16", "dtype": "bfloat16", "use_cache": True})
    return len(listing), offset


def _write_json(folder, name, value):
    path = os.path.join(folder, name)
    with open(path + ".part", "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False)
    os.replace(path + ".part", path)


def options(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("dir")
    p.add_argument("--arch", choices=sorted(ARCH), help="default: the preset's, else opt")
    p.add_argument("--preset", choices=sorted({name for _, name in PRESETS}), help="default: tiny")
    p.add_argument("--seed", type=int, default=0)
    for name in FIELDS:
        p.add_argument("--" + name.replace("_", "-"), type=int)
    o = p.parse_args(argv)
    o.preset = o.preset or "tiny"
    if o.arch is None:
        o.arch = "opt" if ("opt", o.preset) in PRESETS else "llama"
    if (o.arch, o.preset) not in PRESETS:
        p.error(f"there is no preset {o.preset} for {o.arch}")
    given = {name: getattr(o, name) for name in FIELDS}
    for name, value in zip(FIELDS, PRESETS[o.arch, o.preset]):
        if getattr(o, name) is None:
            setattr(o, name, value)
    if given["heads"] and not given["kv_heads"]:
        o.kv_heads = o.heads
    if o.hidden % o.heads or o.heads % o.kv_heads:
        p.error("--hidden must be a multiple of --heads, and --heads of --kv-heads")
    if not len(SPECIAL) + 256 <= o.vocab <= 1 << 22:
        p.error(f"--vocab must be at least {len(SPECIAL) + 256}")
    return o


def main(argv=None):
    o = options(argv)
    try:
        count, size = generate(o.dir, o)
    except OSError as e:
        sys.exit(f"modelgen: {e}")
    print(f"{o.dir}: {o.arch}, {count} tensors, {size / 1e6:.1f} MB, {size / 2e6:.1f} M parameters, vocabulary {o.vocab}")


if __name__ == "__main__":
    main()
