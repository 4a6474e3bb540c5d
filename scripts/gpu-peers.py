"""The ops of BenchmarkCard (backend/cuda/bench_test.go) in PyTorch, at the same sizes, and attention: medians by CUDA events. fla's
gated slot attention, where it is installed, at the sizes of the operator."""
import statistics

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    raise SystemExit("peers: python3 has no torch")

rows, n, inner, vocabulary, logit_rows, parameters = 32768, 768, 2048, 32000, 4096, 100_000_000
device = dict(device="cuda", dtype=torch.bfloat16)


def run(name, f, flops=0.0, size=0.0, times=30):
    for _ in range(3):
        f()
    ms = []
    for _ in range(times):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        f()
        b.record()
        b.synchronize()
        ms.append(a.elapsed_time(b))
    t = statistics.median(ms)
    rate = f"{flops / t / 1e9:8.1f} TFLOP/s" if flops else f"{size / t / 1e6:8.0f} GB/s" if size else ""
    print(f"torch {name:34s} {t:8.4f} ms {rate}")


def product(name, m, k, c, a, b):
    run(name, lambda: torch.matmul(a, b), flops=2.0 * m * k * c)


x, y = torch.randn(rows, n, **device), torch.randn(rows, n, **device)
gate, up = torch.randn(rows, inner, **device), torch.randn(rows, inner, **device)
w1, w2, head = torch.randn(n, n, **device), torch.randn(inner, n, **device), torch.randn(vocabulary, n, **device)
product(f"matmul-nt-{rows}x{n}x{n}", rows, n, n, x, w1.t())
product(f"matmul-nt-{rows}x{inner}x{n}", rows, n, inner, x, w2.t())
product(f"matmul-nn-{rows}x{n}x{inner}", rows, inner, n, gate, w2)
product(f"matmul-tn-{inner}x{n}x{rows}", inner, rows, n, gate.t(), x)
product(f"matmul-nt-{logit_rows}x{vocabulary}x{n}", logit_rows, n, vocabulary, x[:logit_rows], head.t())
row = 2.0 * n * rows
z = torch.empty_like(x)
run("copy", lambda: z.copy_(x), size=2 * row)
run("add", lambda: torch.add(x, y, out=z), size=3 * row)
weight = torch.randn(n, **device)
run("rms_norm", lambda: F.rms_norm(x, (n,), weight, 1e-5), size=2 * row)
run("swiglu", lambda: F.silu(gate) * up, size=3 * 2.0 * inner * rows)
compiled = torch.compile(lambda g, u: F.silu(g) * u)
run("swiglu, compiled", lambda: compiled(gate, up), size=3 * 2.0 * inner * rows)
ids = (vocabulary * torch.rand(rows, device="cuda") ** 4).long()
run("embed", lambda: F.embedding(ids, head), size=2 * row)
run("embed-backward", lambda: torch.ops.aten.embedding_dense_backward(y, ids, vocabulary, -1, False), size=row + 2.0 * n * vocabulary)
logits = torch.randn(logit_rows, vocabulary, **device, requires_grad=True)
run("cross_entropy", lambda: F.cross_entropy(logits, ids[:logit_rows]).backward(), size=2 * 2.0 * logit_rows * vocabulary)
p = torch.zeros(parameters, **device, requires_grad=True)
p.grad = torch.zeros_like(p)
adam = torch.optim.AdamW([p], fused=True)
run("adamw", adam.step, size=7 * 2.0 * parameters)


def heads(b, t, h, d):
    return [torch.randn(b, h, t, d, **device, requires_grad=True) for _ in range(3)]


def both(name, forward, inputs, times):
    with torch.no_grad():
        run(f"{name} forward", forward, times=times)
    out = forward()
    gradient = torch.randn_like(out)
    run(f"{name} backward", lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True), times=times)


for b, t, h, d in [(8, 2048, 16, 64), (4, 2048, 16, 128)] + [(1, t, 16, 64) for t in (512, 1024, 2048, 4096, 8192, 16384)]:
    q, k, v = heads(b, t, h, d)
    both(f"sdpa-B{b}-T{t}-H{h}-D{d}", lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), (q, k, v), 20)
try:
    from fla.ops.gsa import chunk_gsa
except ImportError:
    print("fla is not installed")
else:
    for b, t, h, d in [(8, 2048, 16, 64), (4, 2048, 32, 128), (1, 65536, 16, 64)]:
        q, k, v = [x.transpose(1, 2).contiguous().detach().requires_grad_() for x in heads(b, t, h, d)]
        s = torch.randn(b, t, h, 64, **device, requires_grad=True)
        g = F.logsigmoid(torch.randn(b, t, h, 64, **device)).div(8).requires_grad_()
        both(f"fla-gsa-B{b}-T{t}-H{h}-D{d}", lambda: chunk_gsa(q, k, v, s, g)[0], (q, k, v, s, g), 10)
