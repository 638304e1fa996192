"""What can be done for a CUDA engine before its model is known, beside the device's context.

The first use of a library or a kernel costs more than all that follow: Triton hashes its whole installation before it
looks into its cache, cuBLAS makes a handle for each device, and torch loads the code of each kernel. `before_fork` does
what needs no device, once for all workers; `steps` is for an engine that is parked and has nothing else to do. Figures:
one H100, vLLM 0.26.0. What a release lacks costs time and nothing else.
"""

import sys


def before_fork():
    """Triton's hash of its own files and of its compiler: 0.4 s, which each process would spend anew."""
    _try("triton", _hash_triton)


def steps():
    """Does one short step for each turn; the steps stand on their own, and a load may come between any two."""
    for dtype in ("bfloat16", "float16"):
        _try("matrices", _matrices, dtype)
        yield
    for step in (_layers, _sampling, _memory):
        _try(step.__name__, step)
        yield


def _try(name, step, *args):
    try:
        step(*args)
    except Exception as e:
        print(f"warmd: prepare {name}: {type(e).__name__}: {e}", file=sys.stderr, flush=True)


def _hash_triton():
    try:
        from triton.runtime.cache import triton_key
    except ImportError:  # its home until Triton 3.5
        from triton.compiler.compiler import triton_key
    triton_key()


def _matrices(dtype):
    """cuBLAS and cuBLASLt, for one row as for many: 0.3 s for the first type, little for the next."""
    import torch

    a = torch.ones(64, 64, device="cuda", dtype=getattr(torch, dtype))
    for x in (a, a[:1]):
        torch.nn.functional.linear(x, a, a[0])
        torch.nn.functional.linear(x, a)
    torch.cuda.synchronize()


def _layers():
    """What the layers of most models are made of."""
    import torch
    from torch.nn import functional as f

    x = torch.ones(8, 64, device="cuda", dtype=torch.bfloat16)
    f.layer_norm(x, (64,), x[0], x[1])
    for function in (f.relu, f.gelu, f.silu):
        function(x)
    i = torch.arange(8, device="cuda")
    f.embedding(i, x), x[i], x + x, x * 2, x.float().to(torch.bfloat16), torch.cat([x, x])
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, x[0], 1e-5)
    torch.ops._C.fused_add_rms_norm(out, x, x[0], 1e-5)
    torch.ops._C.silu_and_mul(torch.empty(8, 32, device="cuda", dtype=torch.bfloat16), x)
    torch.cuda.synchronize()


def _sampling():
    """What makes a token of logits."""
    import torch

    x = torch.randn(4, 1000, device="cuda")
    x.softmax(-1), x.log_softmax(-1), x.argmax(-1), x.sort(-1), x.topk(5), x.cumsum(-1), x.max(-1), x.div_(2)
    torch.where(x > 0, x, x), x.masked_fill_(x > 1, 0), (x == 0).sum(), (x > 0).any(), torch.empty_like(x).exponential_()
    x.gather(1, torch.zeros(4, 1, device="cuda", dtype=torch.int64)), torch.full((4,), 1, device="cuda").to(torch.int32)
    torch.zeros(64, pin_memory=True).to("cuda", non_blocking=True)
    x.cpu()


def _memory():
    """What the steps allocated goes back: the device may be another's until a model comes."""
    import torch

    torch.cuda.empty_cache()
