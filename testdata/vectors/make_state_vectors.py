#!/usr/bin/env python3
"""Test vectors for carried-in states of the NHA operator: initial and final states and all their gradients.

Independent of the program: the recurrence in float64 as plain loops over a dictionary of past tokens, every gradient a central
finite difference of the loss

    L = <o, do> + <final state, d_final>

usage: make_state_vectors.py OUTDIR        (needs numpy; writes carried-*.safetensors)

Layout of every *.safetensors in this folder. Metadata (strings): window (a number or "full"), slots, scale, gate_normalizer,
rope_theta (0: no rotation), empty_slots; optional seqlens (JSON list: B is 1 and the sequences are packed), position (of the
first token of every sequence, default 0), gradients ("finite differences": good to 1e-6; otherwise exact, 1e-9).

inputs (float32)   q [B,T,Hq,K]  k [B,T,H,K]  v [B,T,H,V]  z [B,T,H,M]  do [B,T,Hq,V]
results (float64)  o [B,T,Hq,V]  slot_share [B,T,Hq]  lse [B,T,Hq] (log of the softmax's denominator)  dq dk dv dz
                   slot_keys [N,H,M,K]  slot_values [N,H,M,V] after the last token; N sequences: B, or the number of seqlens
with position > 0  initial_{slot_keys,slot_values,keys,values,log_gates}: the state before, float32
                   the last three are [N,H,n,*], n = min(window, position), the window's tokens, oldest first, keys unrotated,
                   log_gates [N,H,n,M] = logsigmoid(z) / gate_normalizer of those tokens
                   d_initial_*: their gradients, float64
optional           final_{keys,values,log_gates}: the window's tokens after the last token
                   d_final_{slot_keys,slot_values,keys,values,log_gates}: gradient of the final state, an input, float32
Absent: tensors of no elements (keys where window is 0, slots and gates where slots is 0).
"""
import json, struct, sys, zlib
import numpy as np

CASES = [
    dict(name="carried-w5", T=9, heads=4, kv_heads=2, key_dim=4, value_dim=6, slots=3, window=5, position=11),
    dict(name="carried-w0", T=7, heads=2, kv_heads=1, key_dim=6, value_dim=4, slots=4, window=0, position=8),
    dict(name="carried-full", T=6, heads=2, kv_heads=2, key_dim=4, value_dim=4, slots=3, window="full", position=7),
    # A window that is not full yet when the state is taken: the slots come alive on the way.
    dict(name="carried-early-mask", T=8, heads=2, kv_heads=1, key_dim=4, value_dim=4, slots=3, window=6, position=4, empty_slots="mask"),
]
SLOTS, RING = ("slot_keys", "slot_values"), ("keys", "values", "log_gates")


def rotate(x, position, theta):
    """Rotate-half: pair (i, i + K/2) turns by position * theta^(-2i/K)."""
    if not theta:
        return x
    half = len(x) // 2
    angle = position * theta ** (-2.0 * np.arange(half) / len(x))
    c, s = np.cos(angle), np.sin(angle)
    return np.concatenate([x[:half] * c - x[half:] * s, x[half:] * c + x[:half] * s])


def forward(p, x):
    """x: inputs of one sequence, [T, heads, dim] and states [H, ...]. Returns the results under their names."""
    T, Hq, _ = x["q"].shape
    H, M, t0 = x["k"].shape[1], p["slots"], p["position"]
    W = 10**9 if p["window"] == "full" else p["window"]
    held = min(W, t0)
    out = dict(o=np.zeros((T, Hq, x["v"].shape[2])), slot_share=np.zeros((T, Hq)), lse=np.zeros((T, Hq)))
    final = {n: [] for n in SLOTS + RING}
    for h in range(H):
        ks, vs = x["initial_slot_keys"][h].copy(), x["initial_slot_values"][h].copy()
        past = {}  # position -> k, v, log a
        for i in range(held):
            past[t0 - held + i] = tuple(x["initial_" + n][h, i] for n in RING)
        for i in range(T):
            t = t0 + i
            past[t] = (x["k"][i, h], x["v"][i, h], -np.logaddexp(0, -x["z"][i, h]) / p["gate_normalizer"])
            if t - W >= 0:
                k, v, g = past.pop(t - W)
                a = np.exp(g)[:, None]
                ks, vs = a * ks + (1 - a) * k, a * vs + (1 - a) * v
            for n in range(h * Hq // H, (h + 1) * Hq // H):
                q = x["q"][i, n]
                logits = [p["scale"] * (q @ row) for row in ks] if p["empty_slots"] == "count" or t >= W else []
                live = len(logits)
                values = list(vs[:live])
                for u in sorted(past):
                    logits.append(p["scale"] * (rotate(q, t, p["rope_theta"]) @ rotate(past[u][0], u, p["rope_theta"])))
                    values.append(past[u][1])
                e = np.exp(logits)
                out["o"][i, n] = (e / e.sum()) @ np.array(values)
                out["slot_share"][i, n] = e[:live].sum() / e.sum()
                out["lse"][i, n] = np.log(e.sum())
        for n, part in zip(SLOTS, (ks, vs)):
            final[n].append(part)
        for at, n in enumerate(RING):
            final[n].append([past[u][at] for u in sorted(past)])
    for n in SLOTS + RING:
        out["final_" + n] = np.array(final[n])
    return out


def case(spec):
    p = dict(gate_normalizer=8.0, rope_theta=10000.0, empty_slots="count")
    p.update(spec)
    p["scale"] = p["key_dim"] ** -0.5
    rng = np.random.default_rng(zlib.crc32(p["name"].encode()))
    draw = lambda *s, sd=1.0: (rng.standard_normal(s) * sd).astype(np.float32).astype(np.float64)
    T, Hq, H, K, V, M = p["T"], p["heads"], p["kv_heads"], p["key_dim"], p["value_dim"], p["slots"]
    window = 10**9 if p["window"] == "full" else p["window"]
    held, kept = min(window, p["position"]), min(window, p["position"] + T)
    state = lambda n: {"slot_keys": draw(H, M, K), "slot_values": draw(H, M, V), "keys": draw(H, n, K), "values": draw(H, n, V), "log_gates": draw(H, n, M)}
    x = {"q": draw(T, Hq, K), "k": draw(T, H, K), "v": draw(T, H, V), "z": draw(T, H, M, sd=2.0)}
    for n, a in state(held).items():
        x["initial_" + n] = a
    x["initial_log_gates"] = (-np.abs(x["initial_log_gates"]) / 8).astype(np.float32).astype(np.float64)
    if p["position"] < window:  # no token has entered
        x["initial_slot_keys"][:], x["initial_slot_values"][:] = 0, 0
    weight = {"o": draw(T, Hq, V)}
    for n, a in state(kept).items():
        weight["final_" + n] = a
    loss = lambda: sum((out[n] * w).sum() for out in [forward(p, x)] for n, w in weight.items() if w.size)

    gradients, step = {}, 1e-5
    for n, a in x.items():
        d = np.zeros_like(a)
        for i in np.ndindex(a.shape):
            keep = a[i]
            a[i] = keep + step; up = loss()
            a[i] = keep - step; down = loss()
            a[i] = keep
            d[i] = (up - down) / (2 * step)
        gradients["d_" + n if n.startswith("initial") else "d" + n] = d
    out = forward(p, x)
    inputs = dict(x, do=weight["o"], **{"d_" + n: w for n, w in weight.items() if n != "o"})
    results = dict(out, **gradients)
    for n in SLOTS:
        results[n] = results.pop("final_" + n)
    meta = {n: str(p[n]) for n in ("window", "slots", "scale", "gate_normalizer", "rope_theta", "empty_slots", "position")}
    meta["gradients"] = "finite differences"
    return inputs, results, meta


def save(path, inputs, results, meta):
    head, at, blobs = {"__metadata__": meta}, 0, []
    for kind, dtype, tensors in (("F64", np.float64, results), ("F32", np.float32, inputs)):
        for n, a in tensors.items():
            if a.size:
                b = np.ascontiguousarray(a[None], dtype=dtype).tobytes()
                head[n] = {"dtype": kind, "shape": [1, *a.shape], "data_offsets": [at, at + len(b)]}
                at += len(b)
                blobs.append(b)
    js = json.dumps(head).encode()
    js += b" " * (-len(js) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(js)) + js + b"".join(blobs))


if __name__ == "__main__":
    for spec in CASES:
        inputs, results, meta = case(spec)
        save(f"{sys.argv[1]}/{spec['name']}.safetensors", inputs, results, meta)
        print(spec["name"], {n: a.shape for n, a in results.items()}, "share", round(float(results["slot_share"].mean()), 4))
