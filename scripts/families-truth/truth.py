"""Random tiny models of the pretrained families with the transformers library's logits and loss in float64.

Each becomes a Hugging Face directory with expected.safetensors (tokens [B,T] I64, logits [B,T,V] F64) and expected.json, as
nha doctor --golden reads them. Model i of a seed is the same whatever the number of models.

    truth.py [--models N] [--seed S] OUTDIR
    truth.py --tiny testdata/golden
"""
import argparse, json, os, random
import torch, transformers
from safetensors.torch import save_file

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe"]
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def rope(r, length):
    theta = r.choice([500.0, 10000.0, 1000000.0])
    return r.choice([
        {"rope_type": "default", "rope_theta": theta},
        {"rope_type": "linear", "rope_theta": theta, "factor": r.choice([2.0, 3.5])},
        {"rope_type": "llama3", "rope_theta": theta, "factor": r.choice([4.0, 32.0]), "low_freq_factor": 1.0,
         "high_freq_factor": r.choice([2.0, 4.0]), "original_max_position_embeddings": length // r.choice([2, 8])},
    ])


def draw(r, kind):
    kv, layers = r.choice([1, 2, 3]), r.choice([1, 2, 4])
    heads, length = kv * r.choice([1, 2, 3]), r.choice([64, 256])
    dim = r.choice([4, 8, 10, 16])
    hidden = heads * r.choice([4, 6, 8]) if r.random() < 0.6 else heads * dim
    c = {"vocab_size": r.choice([67, 128]), "hidden_size": hidden, "intermediate_size": r.choice([24, 40, 96]), "num_hidden_layers": layers,
         "num_attention_heads": heads, "num_key_value_heads": kv, "max_position_embeddings": length, "rms_norm_eps": r.choice([1e-5, 1e-6]),
         "tie_word_embeddings": r.random() < 0.5, "rope_parameters": rope(r, length)}
    if kind == "qwen2":
        if r.random() < 0.5:
            c["head_dim"] = dim
    elif r.random() < 0.7:
        c["head_dim"] = dim
    if hidden // heads % 2 and "head_dim" not in c:
        c["head_dim"] = dim
    if kind == "qwen3":
        c["head_dim"] = dim
    if kind in ("llama", "qwen3", "qwen3_moe"):
        c["attention_bias"] = r.random() < 0.4
    if kind == "llama":
        c["mlp_bias"] = r.random() < 0.4
    if kind == "mistral":
        c["sliding_window"] = r.choice([None, 1, 5, 17, 100])
    if kind in ("qwen2", "qwen3"):
        c |= {"use_sliding_window": r.random() < 0.6, "sliding_window": r.choice([1, 7, 20]), "max_window_layers": r.randrange(layers + 1)}
        if c["use_sliding_window"] and r.random() < 0.5:
            c["layer_types"] = [r.choice(["full_attention", "sliding_attention"]) for _ in range(layers)]
    if kind == "qwen3_moe":
        experts = r.choice([2, 4, 9])
        c |= {"num_experts": experts, "num_experts_per_tok": r.randint(1, min(4, experts)), "moe_intermediate_size": r.choice([8, 20]),
              "norm_topk_prob": r.random() < 0.5, "decoder_sparse_step": r.choice([1, 1, 2]),
              "mlp_only_layers": [i for i in range(layers) if r.random() < 0.25], "use_sliding_window": r.random() < 0.3, "sliding_window": 9}
    return c


def older(path):
    """Rewrites config.json as transformers 4 spelt it."""
    c = json.load(open(path))
    p = c.pop("rope_parameters")
    c["rope_theta"] = p.pop("rope_theta")
    kind = p.pop("rope_type")
    c["rope_scaling"] = None if kind == "default" else {"type" if kind == "linear" else "rope_type": kind, **p}
    c["torch_dtype"] = c.pop("dtype")
    if "num_local_experts" in c:
        c["num_experts"] = c.pop("num_local_experts")
    json.dump(c, open(path, "w"), indent=2)


def write(kind, c, seed, dtype, shard, length, old, out):
    """Makes the model of a configuration and what the library computes from it."""
    os.makedirs(out, exist_ok=True)
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **c)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # larger than the library's own start, so that every part of the network matters
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.copy_((0 if name.endswith("bias") else 1) + 0.3 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (1.0 if "embed" in name else 0.25))
    model.to(getattr(torch, dtype)).save_pretrained(out, max_shard_size=shard)
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager").eval()
    tokens = torch.randint(0, c["vocab_size"], (2, length), generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        result = model(input_ids=tokens, labels=tokens)
    save_file({"tokens": tokens, "logits": result.logits.double()}, f"{out}/expected.safetensors")
    json.dump({"loss": float(result.loss), "transformers": transformers.__version__}, open(f"{out}/expected.json", "w"), indent=1)
    if old:
        older(f"{out}/config.json")


SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
TINY = {  # testdata/golden: every switch once
    "llama-tiny": ("llama", "float32", {"head_dim": 6, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}}),
    "mistral-tiny": ("mistral", "float16", {"sliding_window": 5, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
    "qwen2-tiny": ("qwen2", "bfloat16", {"num_key_value_heads": 1, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 4,
        "max_window_layers": 1, "rope_parameters": PLAIN}),
    "qwen3-tiny": ("qwen3", "float32", {"head_dim": 10, "tie_word_embeddings": False, "use_sliding_window": True, "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": PLAIN}),
    "qwen3_moe-tiny": ("qwen3_moe", "float32", {"num_hidden_layers": 3, "head_dim": 8, "tie_word_embeddings": False, "num_experts": 6, "num_experts_per_tok": 2,
        "moe_intermediate_size": 8, "norm_topk_prob": False, "mlp_only_layers": [1], "rope_parameters": PLAIN}),
    "qwen3_moe-normalized": ("qwen3_moe", "float32", {"head_dim": 8, "tie_word_embeddings": True, "num_experts": 4, "num_experts_per_tok": 3,
        "moe_intermediate_size": 8, "norm_topk_prob": True, "decoder_sparse_step": 2, "attention_bias": True, "rope_parameters": PLAIN}),
}


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--models", type=int, default=60)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--tiny", action="store_true", help="the models of testdata/golden instead")
    a.add_argument("out")
    a = a.parse_args()
    torch.set_num_threads(1)
    if a.tiny:
        for i, (name, (kind, dtype, own)) in enumerate(TINY.items()):
            write(kind, SMALL | own, 100 + i, dtype, "5KB" if kind == "qwen3" else "5GB", 11, i % 2 == 1, os.path.join(a.out, name))
        return
    for i in range(a.models):
        kind = FAMILIES[i % len(FAMILIES)]
        r = random.Random(f"{a.seed} {i}")
        write(kind, draw(r, kind), r.randrange(1 << 30), r.choice(["float32", "float32", "float16", "bfloat16"]), r.choice(["5GB", "30KB"]), r.choice([9, 48]),
              r.random() < 0.5, os.path.join(a.out, f"{kind}-{i:03d}"))
    print(f"{a.models} models in {a.out}")


if __name__ == "__main__":
    main()
