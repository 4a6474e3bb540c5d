"""What nha is measured beside: numpy's OpenBLAS, PyTorch's matmul and scaled_dot_product_attention, Hugging Face's Llama.

One process per peer: `bench-cpu-peers.py PEER`. It reads requests, one JSON object a line, and answers each with one. Times
are medians by the rule of `nha bench`: a warm-up, then 5 runs and `seconds` at least, 5 times `seconds` at most.
"""

import json
import os
import statistics
import sys
import time


def median(f, seconds, warm=True):
    """The median time of f in seconds."""
    if warm:
        f()
    runs = []
    while not runs or (sum(runs) < 5 * seconds and (len(runs) < 5 or sum(runs) < seconds)):
        start = time.perf_counter()
        f()
        runs.append(time.perf_counter() - start)
    return statistics.median(runs)


def resident(field):
    """VmRSS or VmHWM of this process in bytes."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith(field + ":"))


def new_peak():
    """Starts VmHWM anew."""
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")


def numpy_gemm():
    import numpy as np
    from threadpoolctl import threadpool_info

    def answer(q):
        if q.get("about"):
            info = next(i for i in threadpool_info() if i["internal_api"] == "openblas")
            return {"about": f"numpy {np.__version__}, OpenBLAS {info['version']} {info['architecture']}, {info['num_threads']} threads"}
        m, n, k = q["m"], q["n"], q["k"]
        random = np.random.default_rng(1)
        a = random.standard_normal((k, m) if q["op"] == "tn" else (m, k), dtype=np.float32)
        b = random.standard_normal((n, k) if q["op"] == "nt" else (k, n), dtype=np.float32)
        c = np.empty((m, n), np.float32)
        x, y = a.T if q["op"] == "tn" else a, b.T if q["op"] == "nt" else b
        return {"gflops": 2e-9 * m * n * k / median(lambda: np.matmul(x, y, out=c), q["seconds"])}

    return answer


def torch_threads():
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(1)
    return torch


def torch_gemm():
    torch = torch_threads()

    def answer(q):
        if q.get("about"):
            return {"about": f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"}
        m, n, k = q["m"], q["n"], q["k"]
        a = torch.randn((k, m) if q["op"] == "tn" else (m, k))
        b = torch.randn((n, k) if q["op"] == "nt" else (k, n))
        c = torch.empty((m, n))
        x, y = a.T if q["op"] == "tn" else a, b.T if q["op"] == "nt" else b
        return {"gflops": 2e-9 * m * n * k / median(lambda: torch.mm(x, y, out=c), q["seconds"])}

    return answer


def torch_attention():
    """Causal softmax attention, forward and backward."""
    torch = torch_threads()
    attend = torch.nn.functional.scaled_dot_product_attention

    def answer(q):
        shape = (1, q["heads"], q["T"], q["dim"])
        x = [torch.randn(shape, requires_grad=True) for _ in range(3)]
        g = torch.randn(shape)
        # A run that is long needs no warm-up, and takes long enough once.
        o = attend(*x, is_causal=True)
        forward = median(lambda: attend(*x, is_causal=True), q["seconds"], q["warm"])
        backward = median(lambda: torch.autograd.grad(o, x, g, retain_graph=True), q["seconds"], q["warm"])
        return {"forward_ms": forward * 1e3, "backward_ms": backward * 1e3}

    return answer


def llama(compiled):
    """Training steps of a Llama: forward, backward, fused AdamW, float32."""

    def peer():
        torch = torch_threads()
        from transformers import LlamaConfig, LlamaForCausalLM

        state = {}

        def answer(q):
            if "size" in q:  # build, and the first step
                s = q["size"]
                start = time.perf_counter()
                config = LlamaConfig(
                    vocab_size=s["vocabulary"], hidden_size=s["hidden_size"], num_hidden_layers=s["layers"],
                    num_attention_heads=s["heads"], num_key_value_heads=s["heads"], intermediate_size=s["intermediate_size"],
                    max_position_embeddings=max(2048, s["context"]), tie_word_embeddings=False, use_cache=False,
                    attn_implementation="sdpa")
                model = LlamaForCausalLM(config).train()
                run = torch.compile(model) if compiled else model
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

                def step():
                    tokens = torch.randint(s["vocabulary"], (s["batch"], s["context"]))
                    run(input_ids=tokens, labels=tokens).loss.backward()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)

                state["step"] = step
                before = resident("VmRSS")
                new_peak()
                step()
                first = time.perf_counter() - start
                for _ in range(q.get("more", 0)):
                    step()
                return {"parameters": sum(p.numel() for p in model.parameters()), "first_step_s": first,
                        "peak_bytes": resident("VmHWM") - before}
            return {"step_ms": median(state["step"], q["seconds"]) * 1e3}

        return answer

    return peer


PEERS = {"numpy": numpy_gemm, "torch": torch_gemm, "sdpa": torch_attention, "llama": llama(False), "llama-compiled": llama(True)}

if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    answer = PEERS[sys.argv[1]]()
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies, flush=True)
