"""Kernels alone: the two ceilings of the device, every attention kernel that runs here, linears of eight bits.

Each kernel is called through one function that also runs on a CPU.
"""

from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.gpu_drill.device import SEED, relative_error
from pipelines.gpu_drill.drill import Bench, LeftOutError
from pipelines.gpu_drill.report import Value

REPEATS = 10  # products in one span: a single one takes a millisecond
HEAD = 128  # width of an attention head
NOT_TRIED = ("hub", "varlen", "npu", "xla", "flex")  # fetched, for other layouts or devices, compiled at each shape
ABSENT = (RuntimeError, ValueError, TypeError, AssertionError, ImportError)  # what a kernel that is not here raises


def ceilings(bench: Bench) -> Iterator[Value]:
    """The best bf16 matrix product, the device copy (bytes read and written), and the copy from pinned host memory."""
    side, where = bench.sizes.square, bench.device.torch_device
    a, b = (torch.randn(side, side, device=where).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    best = min(bench.device.times(lambda: [torch.mm(a, b, out=out) for _ in range(REPEATS)], rounds=5)[0]) / REPEATS
    yield Value("matrix product bf16", 2 * side**3 / best / 1e12, "TFLOP/s", note=f"{side} x {side}, random data")
    source = torch.randint(0, 256, (bench.sizes.copied,), dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    best = min(bench.device.times(lambda: target.copy_(source), rounds=5)[0])
    yield Value("device copy", 2 * bench.sizes.copied / best / 1e12, "TB/s", note="bytes read and written")
    host = bench.device.host_buffer(bench.sizes.copied // 4)
    best = min(bench.device.times(lambda: target[: len(host)].copy_(host, non_blocking=True))[0])
    yield Value("copy from the host", len(host) / best / 1e9, "GB/s", note="pinned memory")


def attention_kernels() -> list[str]:
    """Names of the kernels in diffusers' dispatcher that could run on one GPU without a network."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    names = [backend.value for backend in AttentionBackendName]
    return [name for name in names if not any(word in name for word in NOT_TRIED)]


def attend(kernel: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention (B, S, H, D) by a named kernel. Raises one of ABSENT where it cannot run."""
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn

    with attention_backend(AttentionBackendName(kernel)):
        out: Tensor = dispatch_attention_fn(query, key, value)
    return out


def attention_errors(bench: Bench) -> Iterator[Value]:
    """Every kernel in bfloat16 against plain arithmetic in float64, on all tokens and on few keys."""
    generator, where = torch.Generator().manual_seed(SEED), bench.device.torch_device
    tokens = 32 * bench.sizes.square // 128  # 2,048 at full size: the reference holds all scores
    query, key, value = (torch.randn(1, tokens, 4, HEAD, generator=generator).to(where) for _ in range(3))
    absent = []
    for kernel in attention_kernels():
        aim = "<= 1e-1" if "sage" in kernel else "<= 1e-2"  # sage quantises queries and keys
        for what, keys in (("self", tokens), ("to text", tokens // 4)):
            few = query, key[:, :keys], value[:, :keys]
            reference = _plain_attention(*few)
            try:
                out = attend(kernel, *(x.bfloat16().contiguous() for x in few))
            except ABSENT as error:
                absent.append(f"{kernel} ({_first_line(error)})")
                break
            yield Value(f"{kernel} {what}", relative_error(out, reference), "", aim)
    if absent:
        yield Value("kernels not here", len(absent), "", note="; ".join(absent))


def _plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax of all scores in float64, (B, S, H, D)."""
    query, key, value = (x.double().transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return (scores.softmax(-1) @ value).transpose(1, 2)


def attention_speed(bench: Bench) -> Iterator[Value]:
    """Every kernel on the self-attention of one 14B block at full length; torch's own with the backward pass too."""
    heads, tokens = bench.sizes.networks["14B"].heads, bench.sizes.tokens
    where = bench.device.torch_device
    inputs = [torch.randn(1, tokens, heads, HEAD, device=where).bfloat16() for _ in range(3)]
    for kernel in attention_kernels():
        if "math" in kernel:  # holds all scores: 140 GB at full length
            continue
        try:
            yield from _kernel_speed(bench, kernel, inputs)
        except ABSENT:  # attention_errors says why
            continue


def _kernel_speed(bench: Bench, kernel: str, inputs: list[Tensor]) -> Iterator[Value]:
    _, tokens, heads, _ = inputs[0].shape
    flops, upstream = 4 * heads * HEAD * tokens**2, torch.randn_like(inputs[0])

    def one_way() -> None:
        with torch.inference_mode():
            attend(kernel, *inputs)

    def both_ways() -> None:
        leaves = [x.detach().requires_grad_() for x in inputs]
        attend(kernel, *leaves).backward(upstream)

    seconds = bench.device.seconds(one_way, bench.sizes.rounds)
    yield Value(f"{kernel} time", seconds, "s")
    yield from bench.hfu(flops, seconds, measure=f"{kernel} share of ceiling")
    if "native" in kernel:  # flash-attention 3 has no backward pass in diffusers
        seconds = bench.device.seconds(both_ways, bench.sizes.rounds)
        yield Value(f"{kernel} forward and backward", seconds, "s")
        # A fused kernel computes the scores again: both passes execute 3.5 times the forward's operations.
        yield from bench.hfu(3.5 * flops, seconds, measure=f"{kernel} share, both ways")


def linear_bf16(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """The product x W^T (M, N) of bfloat16 (M, K) and (N, K), the reference of the two below."""
    return lambda: functional.linear(x, weight)


def linear_fp8(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """The same in float8 e4m3, a scale per row of both: `weight` is converted now, `x` in each call."""
    quantised, scale = _fp8(weight)

    def product() -> Tensor:
        rows, row_scale = _fp8(x)
        if not x.is_cuda:  # torch 2.11 has this product on a CPU for one scale of a whole matrix only
            return ((rows.float() @ quantised.float().t()) * row_scale * scale.t()).bfloat16()
        return torch._scaled_mm(
            rows, quantised.t(), scale_a=row_scale, scale_b=scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
        )

    return product


def _fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    limit = torch.finfo(torch.float8_e4m3fn).max
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / limit
    return (x / scale).clamp(-limit, limit).to(torch.float8_e4m3fn), scale


def linear_int8(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """The same in int8, a scale per row of both; products are summed exactly in int32."""
    quantised, scale = _int8(weight)

    def product() -> Tensor:
        rows, row_scale = _int8(x)
        return (torch._int_mm(rows, quantised.t()) * row_scale * scale.t()).bfloat16()

    return product


def _int8(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / 127
    return (x / scale).round().clamp(-127, 127).to(torch.int8), scale


def eight_bits(kind: str) -> Callable[[Bench], Iterator[Value]]:
    """A 14B feed-forward product in "fp8" or "int8" against bfloat16: error, and time with the conversion of x."""

    def run(bench: Bench) -> Iterator[Value]:
        capability = bench.device.capability
        if kind == "fp8" and (0, 0) < capability < (8, 9):
            raise LeftOutError(f"float8 products need compute capability 8.9, this device has {capability}")
        network, where = bench.sizes.networks["14B"], bench.device.torch_device
        width, ffn = (16 * max(1, size // 16) for size in (network.width, network.ffn))  # kernels take multiples of 16
        x, weight = (torch.randn(rows, width, device=where).bfloat16() for rows in (bench.sizes.tokens + 32, ffn))
        make = {"fp8": linear_fp8, "int8": linear_int8}[kind]
        plain, eight = linear_bf16(x, weight), make(x, weight)
        reference = functional.linear(x[:256].float(), weight.float())
        yield Value("bf16 error", relative_error(plain()[:256], reference), "", "<= 1e-2", "against float32")
        yield Value("error", relative_error(eight()[:256], reference), "", "<= 5e-2", "against float32")
        times = bench.device.times(plain, eight, rounds=bench.sizes.rounds)
        both = [median(each) for each in times]
        yield Value("time bf16", both[0], "s")
        yield Value("time", both[1], "s", note="x is converted in each call, not fused")
        yield Value(f"{kind} / bf16", both[1] / both[0], "")

    return run


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:80]
