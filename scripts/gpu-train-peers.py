"""Training steps of Hugging Face's Llama (forward, backward, fused AdamW, bf16, torch.compile) at the sizes of `nha bench train
--size 134m` and `374m`, the median of ten. Usage: gpu-train-peers.py [134m] [374m]"""
import statistics
import sys
import time

try:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError as missing:
    raise SystemExit(f"peers: {missing}")

SIZES = {"134m": (12, 768, 12, 2048, 32, 1024), "374m": (24, 1024, 16, 2816, 16, 2048)}
for size in sys.argv[1:] or SIZES:
    layers, hidden, heads, inner, batch, context = SIZES[size]
    began = time.time()
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=32000, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
                         num_key_value_heads=heads, max_position_embeddings=context, tie_word_embeddings=False, attn_implementation="sdpa", use_cache=False)
    model = LlamaForCausalLM(config).to("cuda", torch.bfloat16)
    model.train()
    parameters = sum(p.numel() for p in model.parameters())
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, 32000, (batch, context), device="cuda")

    def step():
        compiled(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(4):
        step()
    torch.cuda.synchronize()
    start, seconds = time.time() - began, []
    for _ in range(10):
        began = time.time()
        step()
        torch.cuda.synchronize()
        seconds.append(time.time() - began)
    t = statistics.median(seconds)
    print(f"torch.compile Llama {size}: {parameters} parameters, {batch * context / t:.0f} tokens/s, {t * 1e3:.2f} ms, "
          f"mfu {6 * parameters * batch * context / t / 989e12:.3f}, {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB, {start:.0f} s before the first timed step", flush=True)
    del model, compiled, optimizer, step
    torch.cuda.empty_cache()
    torch._dynamo.reset()
