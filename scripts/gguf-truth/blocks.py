"""Blocks of every type: random ones in a small model, and whole files, decoded by `nha convert` and by ggml, bit for bit; and the blocks
that `nha convert --quantize` writes beside ggml's. ggml is gguf-py, and the C library too where --ggml names libggml-base."""

import ctypes
import json
import os
import subprocess
import tempfile

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file, save_file

TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
FLOATS = {Type.F32: np.float32, Type.F16: np.float16}


class Check:
    """Counts what was compared and what differed."""

    def __init__(self):
        self.failed = 0

    def __call__(self, what, ok, note=""):
        self.failed += not ok
        print(f"{'ok  ' if ok else 'FAIL'} {what}{'  ' + note if note else ''}", flush=True)


class CLibrary:
    """ggml's own functions."""

    def __init__(self, path):
        self.lib = ctypes.CDLL(path)

    def call(self, name, source, target):
        pointer = lambda a: a.ctypes.data_as(ctypes.c_void_p)
        n = source.size if source.dtype == np.float32 else target.size
        getattr(self.lib, name)(pointer(source), pointer(target), ctypes.c_int64(n))
        return target

    def dequantize(self, blocks, kind, n):
        return self.call(f"dequantize_row_{kind.name.lower().replace('_k', '_K')}", np.ascontiguousarray(blocks), np.empty(n, np.float32))

    def quantize(self, x, kind):
        bytes_per_row = x.shape[-1] // gguf.GGML_QUANT_SIZES[kind][0] * gguf.GGML_QUANT_SIZES[kind][1]
        return self.call(f"quantize_row_{kind.name.lower()}_ref", np.ascontiguousarray(x), np.empty(x.shape[:-1] + (bytes_per_row,), np.uint8))


def random_blocks(rng, kind, rows, columns):
    """Rows of random blocks whose scales are finite."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    b = rng.integers(0, 256, (rows, columns // elements, size), dtype=np.uint8)
    for at in (1, 3, size - 1):
        b[:, :, at] &= 0xBF
    return b.reshape(rows, -1)


def decode(data, kind, library=None):
    """A tensor of a file as float32; data as gguf-py gives it."""
    if kind in FLOATS:
        return data.view(FLOATS[kind]).astype(np.float32)
    if kind == Type.BF16:
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if library is None:
        return gguf.quants.dequantize(data, kind)
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    return library.dequantize(data, kind, data.size // size * elements).reshape(data.shape[:-1] + (-1,))


def unpermute(x, heads):
    """Hugging Face's order of rows: the inverse of llama.cpp's (heads, 2, d/2) -> (heads, d/2, 2)."""
    d = x.shape[0] // heads
    return x.reshape(heads, d // 2, 2, -1).swapaxes(1, 2).reshape(x.shape)


def equal(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def small_model(path, rng):
    """A llama of one layer per type with random blocks, rows of 256."""
    hidden, inner, heads, kv, vocabulary = 256, 512, 4, 2, 40
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(len(TYPES))
    w.add_context_length(128)
    w.add_embedding_length(hidden)
    w.add_feed_forward_length(inner)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    ones = lambda: rng.standard_normal(hidden).astype(np.float32)
    w.add_tensor("token_embd.weight", random_blocks(rng, Type.Q6_K, vocabulary, hidden), raw_dtype=Type.Q6_K)
    w.add_tensor("output_norm.weight", ones())
    for i, name in enumerate(TYPES):
        shapes = {"attn_q": (hidden, hidden), "attn_k": (hidden * kv // heads, hidden), "attn_v": (hidden * kv // heads, hidden),
                  "attn_output": (hidden, hidden), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
        for key, (rows, columns) in shapes.items():
            w.add_tensor(f"blk.{i}.{key}.weight", random_blocks(rng, Type[name], rows, columns), raw_dtype=Type[name])
        w.add_tensor(f"blk.{i}.attn_norm.weight", ones())
        w.add_tensor(f"blk.{i}.ffn_norm.weight", ones())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "attn_norm": "input_layernorm",
         "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def hugging_face_name(name):
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{NAMES[parts[2]]}.{parts[3]}"
    return f"{NAMES[parts[0]]}.{parts[1]}"


def whole_file(check, nha, path, library, directory):
    """A llama file through `nha convert --dtype f32`."""
    subprocess.run([nha, "convert", path, directory, "--dtype", "f32"], check=True, stdout=subprocess.DEVNULL)
    ours = load_file(os.path.join(directory, "model.safetensors"))
    reader = gguf.GGUFReader(path)
    heads = {"attn_q": int(reader.fields["llama.attention.head_count"].contents()), "attn_k": int(reader.fields["llama.attention.head_count_kv"].contents())}
    by_type = {}
    for t in reader.tensors:
        values = [decode(t.data, t.tensor_type)]
        if library is not None and t.tensor_type.name in TYPES:
            values.append(decode(t.data, t.tensor_type, library))
        key = t.name.split(".")[2] if t.name.startswith("blk.") else ""
        got = ours.pop(hugging_face_name(t.name))
        for v in values:
            v = v.reshape(got.shape)
            same = equal(got, unpermute(v, heads[key]) if key in heads else v)
            seen = by_type.setdefault(t.tensor_type.name, [0, 0, 0])
            seen[0] += got.size
            seen[1] += not same
            seen[2] = max(seen[2], len(values))
    for name, (elements, wrong, ways) in sorted(by_type.items()):
        check(f"{os.path.basename(path)}: {name}", wrong == 0, f"{elements // ways} elements decoded as {'gguf-py and ggml do' if ways == 2 else 'gguf-py does'}")
    check(f"{os.path.basename(path)}: no other tensors", not ours)


def quantized(check, nha, rng, library, root):
    """A Hugging Face directory through `nha convert --quantize`."""
    source = os.path.join(root, "float")
    os.mkdir(source)
    hidden, inner, vocabulary = 64, 96, 50
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": inner,
              "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
              "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "float32"}
    with open(os.path.join(source, "config.json"), "w") as f:
        json.dump(config, f)
    shapes = {"model.embed_tokens": (vocabulary, hidden), "model.norm": (hidden,)}
    for name, shape in {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,), "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, hidden),
                        "self_attn.v_proj": (hidden, hidden), "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden),
                        "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}.items():
        shapes[f"model.layers.0.{name}"] = shape
    # Steps of all sizes: normal numbers, tiny ones, and exact halves of a step, where rounding shows.
    tensors = {}
    for name, shape in shapes.items():
        x = rng.standard_normal(shape).astype(np.float32) * np.exp2(rng.integers(-30, 10, shape[:-1] + (1,))).astype(np.float32)
        x[rng.random(shape) < 0.1] = 0
        tensors[name + ".weight"] = np.where(rng.random(shape) < 0.3, np.round(x * 254) / 254, x).astype(np.float32)
    save_file(tensors, os.path.join(source, "model.safetensors"))
    for flag, kind in (("q8", Type.Q8_0), ("q4", Type.Q4_0)):
        directory = os.path.join(root, flag)
        subprocess.run([nha, "convert", source, directory, "--quantize", flag], check=True, stdout=subprocess.DEVNULL)
        ours = load_file(os.path.join(directory, "model.safetensors"))
        wrong = n = 0
        for name, x in tensors.items():
            if x.ndim == 2:
                n += x.size
                wrong += not equal(ours[name], gguf.quants.quantize(x, kind))
                if library is not None:
                    wrong += not equal(ours[name], library.quantize(x, kind))
            else:
                wrong += not equal(ours[name], x)
        check(f"--quantize {flag}", wrong == 0, f"{n} elements encoded as {kind.name}")


def fixture(path, rng):
    """tensor/testdata/quant.safetensors: blocks of every type with their values, values with their blocks."""
    out = {}
    for name in TYPES:
        columns = 256
        blocks = random_blocks(rng, Type[name], 2, columns)
        out[f"{name}.blocks"], out[f"{name}.values"] = blocks, gguf.quants.dequantize(blocks, Type[name])
    x = rng.standard_normal((8, 64)).astype(np.float32)
    x[3, :32] = 0
    x[4] = np.round(x[4] * 8) / 8
    out["source"] = x
    for name in ("Q8_0", "Q4_0"):
        out[f"{name}.encoded"] = gguf.quants.quantize(x, Type[name])
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file(out, path)


def run(check, nha, library, files, work):
    rng = np.random.default_rng(11)
    with tempfile.TemporaryDirectory(dir=work) as root:
        path = os.path.join(root, "random.gguf")
        small_model(path, rng)
        whole_file(check, nha, path, library, os.path.join(root, "random"))
        quantized(check, nha, rng, library, root)
    for path in files:
        with tempfile.TemporaryDirectory(dir=work) as root:
            whole_file(check, nha, path, library, os.path.join(root, "out"))
