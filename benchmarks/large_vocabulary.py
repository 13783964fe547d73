"""Peak memory and time of the loss and its gradients with a large vocabulary, beside a dense one.

    python benchmarks/large_vocabulary.py                      a row of 24,576 tokens on a CPU
    python benchmarks/large_vocabulary.py --tokens 98304       the published microbatch, on a GPU

Each is measured in a process of its own: on a GPU the peak of torch's allocator, on a CPU that of
the process, less what it was before the step.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch
from models import MASKED_SHARE
from torch.nn.functional import cross_entropy

from tessera.model.loss import masked_loss


def main() -> None:
    """Measure each kind in a process of its own, or the one kind asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=24_576, help="of which 30 % are predicted")
    parser.add_argument("--vocabulary", type=int, default=262_144)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kind", choices=["chunked", "dense"])
    options = parser.parse_args()
    if options.kind:
        measure(options)
        return
    for kind in ("chunked", "dense"):
        outcome = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--kind", kind])
        if outcome.returncode:
            print(f"{kind:8} failed (exit status {outcome.returncode}): out of memory?", flush=True)


def measure(options: argparse.Namespace) -> None:
    """One forward and backward pass of the decoder and its loss."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(options.threads)
    predicted = int(options.tokens * MASKED_SHARE)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    hidden = torch.randn(predicted, options.hidden, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(options.vocabulary, options.hidden, device=device)
    weight = weight.mul_(0.02).requires_grad_()
    bias = torch.zeros(options.vocabulary, device=device, requires_grad=True)
    labels = torch.randint(options.vocabulary, (predicted,), device=device)
    before = peak_bytes(device)
    begin = time.perf_counter()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        if options.kind == "chunked":
            loss = masked_loss(hidden, weight, bias, labels, compiled=device.type == "cuda")
        else:
            logits = torch.nn.functional.linear(hidden, weight, bias)
            loss = cross_entropy(logits.float(), labels, reduction="sum")
    loss.backward()
    value = loss.item() / predicted
    gibibytes = (peak_bytes(device) - before) / 2**30
    print(
        f"{options.kind:8} {predicted:,} x {options.vocabulary:,}: {gibibytes:5.1f} GiB at most, "
        f"{time.perf_counter() - begin:6.1f} s, loss {value:.4f}",
        flush=True,
    )


def peak_bytes(device: torch.device) -> int:
    """The most memory in use so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
